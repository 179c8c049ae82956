"""The ways a command can end early. Each message is one line for the user; each class has one exit code."""


class HkdpipeError(Exception):
    """The work failed and its state is kept (diverged, disk full)."""

    exit_code = 1


class UsageError(HkdpipeError):
    """Wrong usage or configuration: names the key, what was given and what is accepted."""

    exit_code = 2


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
