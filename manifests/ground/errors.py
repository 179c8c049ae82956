"""The ways a command can end early. Each message is one line for the user; each class has one exit code."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Name:
    """Of a value in Python: a field of the settings class `of`, or, without one, a function's argument."""

    field: str
    of: type | None = None


@dataclass(frozen=True)
class Remedy:
    """What helps, in words; the command line puts its own in their place, with these values."""

    words: str
    values: Mapping[str, object] = field(default_factory=dict)


class HkdpipeError(Exception):
    """The work failed and its state is kept (diverged, disk full).

    The message is put together from parts. A value is known by its name in Python, and the command line puts
    its own in its place: WrongValue(Name("steps"), ": got 0; accepted: at least 1") says "steps: got 0;
    accepted: at least 1", and to who typed a command the option's name, or the key's where it is a setting.
    """

    exit_code = 1

    def __init__(self, *parts: str | Name | Remedy) -> None:
        self.parts = parts
        super().__init__(self.worded(lambda name: name.field, lambda remedy: remedy.words))

    def worded(self, name: Callable[[Name], str], remedy: Callable[[Remedy], str]) -> str:
        """The message with these words of each name and of each remedy."""
        return "".join(
            part if isinstance(part, str) else name(part) if isinstance(part, Name) else remedy(part)
            for part in self.parts
        )


class UsageError(HkdpipeError):
    """Wrong usage or configuration: names the key, what was given and what is accepted."""

    exit_code = 2


class WrongValue(UsageError):
    """A value that is not accepted: names it, what was given and what is accepted."""


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
