"""Small networks that ship with the package; ASSETS.md beside this file says how each was made."""

from pathlib import Path


def asset(name: str) -> Path:
    """The folder of a network that ships."""
    return Path(__file__).parent / name
