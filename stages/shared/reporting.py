"""How a stage speaks while it works and what it hands back when it is done."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hkdpipe.manifests.ground.errors import Interrupted

Advance = Callable[..., None]
"""advance(done: int, **values: float): the absolute amount done, and values to show beside it."""


class Reporter(Protocol):
    """Shows progress. A stage opens one phase after the other."""

    def phase(self, name: str, total: int, unit: str, done: int = 0) -> AbstractContextManager[Advance]:
        """A phase of `total` units, `done` of which were there before (so they do not count for the rate)."""

    def line(self, text: str) -> None:
        """One line that stays."""

    def warn(self, text: str) -> None:
        """One line that nobody who asks for errors alone shall miss."""


class Silent:
    """A reporter that shows nothing."""

    @contextmanager
    def phase(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        yield lambda done, **values: None

    def line(self, text: str) -> None:
        pass

    warn = line


@dataclass(frozen=True)
class Summary:
    """What a stage did: rows of a table for people, the same for machines, and what to type next."""

    title: str
    rows: tuple[tuple[str, ...], ...]
    """Cells of a table; each row has as many cells as `header`."""
    header: tuple[str, ...] = ("", "")
    files: tuple[Path, ...] = ()
    next_commands: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON-serialisable, for programs that read it."""
    did_nothing: bool = False
    """Everything was done before."""


def heed(stop: Callable[[], bool], kept: str = "nothing was written") -> None:
    """Raise Interrupted when asked to stop, which says what was kept."""
    if stop():
        raise Interrupted(f"stopped; {kept}")


def duration(seconds: float) -> str:
    """12 s, 3:07 min, 2:15 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
