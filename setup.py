"""hkdpipe/ is the package, and the floors beside it are its packages hkdpipe.*, since names like `trainer`
would clash with others.

A room of a floor is a package as soon as it has an __init__.py; nothing lists them by hand.
"""

from setuptools import find_packages, setup

FLOORS = ("manifests", "trainer", "stages", "pipeline")

setup(
    packages=["hkdpipe"]
    + [
        f"hkdpipe.{name}"
        for floor in FLOORS
        for name in (floor, *(f"{floor}.{room}" for room in find_packages(floor)))
    ],
    package_dir={"hkdpipe": "hkdpipe", **{f"hkdpipe.{floor}": floor for floor in FLOORS}},
)
