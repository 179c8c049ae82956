"""What a person sees while a stage works (on stderr) and when it is done (on stdout)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from hkdpipe.stages.shared.reporting import Advance, Reporter, Silent, Summary, duration
from hkdpipe.trainer.loop.world import told_rank

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def first_process() -> bool:
    """Of the processes that torchrun or srun starts, the first one speaks for all."""
    return told_rank() == "0"


def make_reporter(quiet: bool) -> Reporter:
    """A progress bar on a terminal, plain lines elsewhere; warnings alone if quiet, nothing if not the first
    process."""
    if not first_process():
        return Silent()
    if quiet:
        return Quiet()
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from rich.console import Console

        return Bars(Console(stderr=True))
    return Lines(sys.stderr)


class Quiet(Silent):
    """Warnings alone."""

    def warn(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Lines:
    """Plain lines: at the start of a phase, every `interval` seconds, and at its end."""

    def __init__(
        self, stream: TextIO, interval: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream = stream
        self.interval = interval
        self.clock = clock

    def line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        self.line(text)

    @contextmanager
    def phase(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        began = spoke = self.clock()
        before = done
        shown: Mapping[str, float] = {}

        def progress(*ends: str) -> str:
            seconds = self.clock() - began
            rate = (done - before) / seconds if seconds > 0 else 0.0
            parts = [f"{name}: {done:,}/{total:,} {unit}"]
            if rate > 0:
                parts.append(f"{rate:,.3g}/s" if rate < 1000 else f"{rate:,.0f}/s")
                if done < total:
                    parts.append(f"{duration((total - done) / rate)} left")
            return ", ".join([*parts, *_values(shown), *ends])

        def advance(now: int, **values: float) -> None:
            nonlocal done, spoke, shown
            done, shown = now, {**shown, **values}
            if self.clock() - spoke >= self.interval and done < total:
                spoke = self.clock()
                self.line(progress())

        self.line(f"{name}: {done:,}/{total:,} {unit}")
        yield advance
        if done > before:
            self.line(progress(f"done in {duration(self.clock() - began)}"))


class Bars:
    """A progress bar per phase, which stays when the phase is done."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def warn(self, text: str) -> None:
        self.line(text)

    @contextmanager
    def phase(self, name: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        from rich import progress
        from rich.text import Text

        class Rate(progress.ProgressColumn):
            def render(self, task: progress.Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.0f}/s" if speed and speed >= 10 else f"{speed:.2g}/s" if speed else "")

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}", markup=False),
            Rate(),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[shown]}", markup=False),
        )
        with progress.Progress(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=total, completed=done, unit=unit, shown="")

            def advance(now: int, **values: float) -> None:
                if values:
                    bars.update(task, completed=now, shown=", ".join(_values(values)))
                else:
                    bars.update(task, completed=now)

            yield advance


def report(summary: Summary, quiet: bool, as_json: bool) -> None:
    """A command's last words: one JSON object, or the summary for people, or nothing."""
    if not first_process():
        return
    if as_json:
        print(json.dumps(summary_data(summary)))
    elif not quiet:
        if summary.did_nothing:
            print("nothing to do: all of this was done before")
        print_summary(summary)


def print_summary(summary: Summary) -> None:
    """The table of what was done, the files written, and what to type next."""
    if summary.rows:
        print_table(summary.title, summary.header, summary.rows)
    for path in summary.files:
        print(f"wrote {path}")
    if summary.next_commands:
        print("Next:")
        for command in summary.next_commands:
            print(f"  {command}")
    sys.stdout.flush()


def print_table(title: str, header: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table: Table = Table(
        title=Text(title, "bold"), title_justify="left", box=box.SIMPLE, show_header=any(header)
    )
    for column, name in enumerate(header):
        table.add_column(Text(name), justify="left" if column == 0 else "default", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # In a file or a pipe no line is folded at a terminal's width.
    Console(width=None if sys.stdout.isatty() else 1000).print(table)


def summary_data(summary: Summary) -> dict[str, Any]:
    """A summary as JSON data."""
    return {
        "did_nothing": summary.did_nothing,
        "files": [str(path) for path in summary.files],
        **summary.data,
    }


def _values(values: Mapping[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in values.items()]
