"""The ways a command can end early. Each message is one line for the user; each class has one exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class HkdpipeError(Exception):
    """The work failed and its state is kept (diverged, disk full)."""

    exit_code = 1


class UsageError(HkdpipeError):
    """Wrong usage or configuration: names the key, what was given and what is accepted."""

    exit_code = 2


@dataclass(frozen=True)
class Name:
    """Of a value in Python: a field of the settings class `of`, or, without one, a function's argument."""

    field: str
    of: type | None = None


class WrongValue(UsageError):
    """A value that is not accepted, known by its name in Python: the command line puts its own in its place.

    WrongValue(Name("steps"), ": got 0; accepted: at least 1") says "steps: got 0; accepted: at least 1", and
    on the command line "--steps: ...", or "generation.steps: ..." where the name is one of settings.
    """

    def __init__(self, *parts: str | Name) -> None:
        self.parts = parts
        super().__init__(self.worded(lambda name: name.field))

    def worded(self, word: Callable[[Name], str]) -> str:
        """The message with `word` of each name."""
        return "".join(part if isinstance(part, str) else word(part) for part in self.parts)


class InputError(HkdpipeError):
    """An input is missing or damaged: names the file and what is wrong with it."""

    exit_code = 3


class InUseError(HkdpipeError):
    """Another process works on the same files."""

    exit_code = 4


class Interrupted(HkdpipeError):
    """Stopped on request at a safe point; the same command goes on from there."""

    exit_code = 75


def first_line(error: Exception) -> str:
    """What an error of somebody else's says, in one line; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
