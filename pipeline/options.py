"""Options that several commands share, and how the commands find their files and their configuration."""

from __future__ import annotations

import functools
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from hkdpipe.manifests.errors import UsageError
from hkdpipe.pipeline.config import Config, resolve
from hkdpipe.pipeline.rundir import RunDir

FOLDER = click.Path(path_type=Path)


@dataclass(frozen=True)
class Given:
    """What a command line says about the configuration."""

    run_dir: Path | None
    preset: str | None
    file: Path | None
    overrides: tuple[str, ...]

    def override(self, key: str, value: str | None) -> Given:
        """With the value of an option that stands for a key, if it was given."""
        if value is None:
            return self
        return replace(self, overrides=(*self.overrides, f"{key}={json.dumps(value, ensure_ascii=False)}"))

    def resolve(self) -> Config:
        stored = RunDir(self.run_dir).config if self.run_dir else None
        return resolve(self.preset, self.file, stored, self.overrides)


def configuration_options(command: Callable[..., None]) -> Callable[..., None]:
    """--run-dir, --preset, --config and --set, as the argument `given`."""

    @click.option(
        "--run-dir", type=FOLDER, metavar="DIR", help="Run directory; the same command again resumes."
    )
    @click.option("--preset", metavar="NAME", help="A configuration that ships with hkdpipe, such as digits.")
    @click.option(
        "--config", "file", type=FOLDER, metavar="FILE", help="A configuration of your own, in TOML."
    )
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Set one key, over preset and file; may be repeated.",
    )
    @functools.wraps(command)
    def bundled(
        run_dir: Path | None, preset: str | None, file: Path | None, overrides: tuple[str, ...], **others: Any
    ) -> None:
        command(given=Given(run_dir, preset, file, overrides), **others)

    return bundled


device_option = click.option(
    "--device",
    default="auto",
    metavar="NAME",
    help="cpu, cuda, cuda:N or auto (default): a GPU if there is one.",
)
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, as the last line, instead of tables."
)


def work_options(command: Callable[..., None]) -> Callable[..., None]:
    """--device, --quiet and --json."""
    return device_option(quiet_option(json_option(command)))


def one_of_run_dir_and_out(given: Given, out: Path | None) -> None:
    """A stage writes into its place in the run directory, or where --out says."""
    if given.run_dir is None and out is None:
        raise UsageError("--run-dir or --out: missing; give one of them")
    if given.run_dir is not None and out is not None:
        raise UsageError("--run-dir and --out: give one of them")


def place(option: str, path: Path | None, in_run_dir: Path | None) -> Path:
    """An explicit path, else the one in the run directory."""
    found = path or in_run_dir
    if found is None:
        raise UsageError(f"{option}: missing; give it, or --run-dir")
    return found


def next_command(name: str, run: RunDir) -> str:
    """A command to suggest, in the same run directory."""
    return shlex.join(["hkdpipe", name, "--run-dir", str(run.path)])


def one_process_only(command: str) -> None:
    """Refuse to be started several times by torchrun: the processes would repeat one another's work."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise UsageError(
            f"{command}: started as one of {size} processes (WORLD_SIZE); accepted: one process, as only "
            "'hkdpipe train' is distributed: torchrun --no-python --nproc-per-node 2 hkdpipe train"
        )


@contextmanager
def opened(given: Given, first: bool) -> Iterator[tuple[RunDir | None, Config]]:
    """The run directory, if one was given, and the configuration, which it keeps from here on.

    Only the first process locks the directory and writes to it.
    """
    from hkdpipe.pipeline.record import record_changes

    config = given.resolve()
    if given.run_dir is None:
        yield None, config
        return
    run = RunDir(given.run_dir)
    if not first:
        yield run, config
        return
    with run.locked():
        record_changes(run.record, run.adopt(config), lambda text: click.echo(text, err=True))
        yield run, config
