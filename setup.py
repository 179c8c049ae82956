"""The folders at the top are the packages hkdpipe.*, since names like `trainer` would clash with others.

A room of a floor is a package as soon as it has an __init__.py; nothing lists them by hand.
"""

from setuptools import find_packages, setup

FLOORS = ("manifests", "trainer", "stages", "pipeline")

setup(
    packages=[
        f"hkdpipe.{name}"
        for floor in FLOORS
        for name in (floor, *(f"{floor}.{room}" for room in find_packages(floor)))
    ],
    package_dir={f"hkdpipe.{floor}": floor for floor in FLOORS},
)
