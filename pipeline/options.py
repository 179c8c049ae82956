"""Options that several commands share, and how the commands find their files and their configuration."""

from __future__ import annotations

import functools
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from hkdpipe.manifests.ground.claims import BEAT_SECONDS, STALE_SECONDS
from hkdpipe.manifests.ground.errors import InUseError, UsageError
from hkdpipe.manifests.places.remote import is_url
from hkdpipe.pipeline.configuration.config import Config, resolve
from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.session import Session
from hkdpipe.stages.generation.worker import Worker
from hkdpipe.stages.settings.completion_settings import CompletionSettings


class LocalPath(click.Path):
    """A path; what looks like a URL is refused, as it would become a folder of that name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(f"got '{value}'; accepted: a folder or file on this machine", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = LocalPath(path_type=Path)
_Place = TypeVar("_Place", bound=Path | str)


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


def session_options(command: Callable[..., None]) -> Callable[..., None]:
    """--quiet and --json, as the argument `session`, of a command that has no use for a GPU."""

    @click.option("--quiet", is_flag=True, help="Print nothing but errors.")
    @json_option
    @functools.wraps(command)
    def bundled(quiet: bool, as_json: bool, device: str = "cpu", **others: Any) -> None:
        command(session=Session(device, quiet, as_json), **others)

    return bundled


def work_options(command: Callable[..., None]) -> Callable[..., None]:
    """--device, --quiet and --json, as the argument `session`."""
    words = "cpu, cuda, cuda:N or auto (default): a GPU if there is one."
    return click.option("--device", default="auto", metavar="NAME", help=words)(session_options(command))


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, as the last line, instead of tables."
)
teacher_option = click.option(
    "--teacher",
    metavar="TEACHER",
    help="'digits', a teacher's folder, or EDM's .pkl, .pt or .pth: teacher.source.",
)

seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the noise."
)


model_option = click.option(
    "--model", type=FOLDER, metavar="DIR", required=True, help="An export or a checkpoint of hkd."
)
image_option = click.option(
    "--image",
    metavar="IMAGE",
    required=True,
    help="A picture; NUMBER or SEED:NUMBER for one of hkdpipe sample; a folder, .zip or .npz of pictures, "
    "'digits' or 'digits-color', each also with :NUMBER for one of them.",
)
out_option = click.option(
    "--out", type=FOLDER, metavar="DIR", required=True, help="Folder for what is written."
)
class_option = click.option(
    "--class",
    "class_number",
    type=int,
    metavar="NUMBER",
    help="Class that a model with classes is told; without it, of samples, the one drawn by the seed.",
)


def completion_options(command: Callable[..., None]) -> Callable[..., None]:
    """Those of CompletionSettings, with its defaults."""
    default = CompletionSettings()
    options: tuple[tuple[str, Any, float, str], ...] = (
        ("--lowest", float, default.lowest, "Noise level of the last step."),
        (
            "--highest",
            float,
            default.highest,
            "Noise level of the second step (of the first: pure noise).",
        ),
        ("--steps", click.IntRange(min=3), default.steps, "Evaluations of the model."),
        ("--count", click.IntRange(min=1), default.count, "Completions of each picture."),
    )
    for name, kind, value, words in options:
        command = click.option(name, type=kind, default=value, show_default=True, help=words)(command)
    return seed_option(command)


def one_of_run_dir_and_out(given: Given, out: Path | None) -> None:
    """A stage writes into its place in the run directory, or where --out says."""
    if given.run_dir is None and out is None:
        raise UsageError("--run-dir or --out: missing; give one of them")
    if given.run_dir is not None and out is not None:
        raise UsageError("--run-dir and --out: give one of them")


def place(option: str, path: _Place | None, in_run_dir: Path | None) -> _Place | Path:
    """An explicit path, else the one in the run directory."""
    chosen = path or in_run_dir
    if chosen is None:
        raise UsageError(f"{option}: missing; give it, or --run-dir")
    return chosen


def folder_or_url(text: str) -> Path | str:
    """The place of an archive: a URL stays as it is."""
    return text if is_url(text) else Path(text)


def command_line(*words: object) -> str:
    """A command to suggest, as a shell takes it."""
    return shlex.join(["hkdpipe", *map(str, words)])


def next_command(name: str, run: RunDir) -> str:
    """A command to suggest, in the same run directory."""
    return command_line(name, "--run-dir", run.path)


def worker_of(text: str | None) -> Worker:
    """Which of how many workers this process is, from 0: as `--worker i/n` says, else its environment.

    A SLURM array counts its tasks, torchrun and srun the processes of a task. Raises UsageError for what is
    no such pair.
    """
    if text is not None:
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UsageError(f"--worker: got '{text}'; accepted: i/n, i from 0 below n, as in 0/8")
        return Worker(int(index), int(count))
    first, step = _number("SLURM_ARRAY_TASK_MIN", 0), _number("SLURM_ARRAY_TASK_STEP", 1)
    task = (_number("SLURM_ARRAY_TASK_ID", first) - first) // max(1, step)
    tasks = max(task + 1, _number("SLURM_ARRAY_TASK_COUNT", 1))
    rank, size = 0, 1
    if "WORLD_SIZE" in os.environ:
        rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    elif "SLURM_STEP_ID" in os.environ:
        rank, size = _number("SLURM_PROCID", 0), _number("SLURM_NTASKS", 1)
    size = max(rank + 1, size)
    return Worker(task * size + rank, tasks * size)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"environment: {name}: got '{text}'; accepted: a number from 0 on")
    return int(text)


@contextmanager
def opened(given: Given, first: bool, shared: bool = False) -> Iterator[tuple[RunDir | None, Config]]:
    """The run directory, if one was given, and the configuration, which it keeps from here on.

    Only the first process owns the directory and writes to it; `shared`: beside others that do the same.
    """
    from hkdpipe.pipeline.configuration.run_record import record_changes

    config = given.resolve()
    if given.run_dir is None:
        yield None, config
        return
    if not first:
        yield RunDir(given.run_dir), config
        return
    with ExitStack() as stack:
        run = _own(stack, RunDir(given.run_dir), shared)
        record_changes(run.record, run.adopt(config), lambda text: click.echo(text, err=True))
        yield run, config


def _own(stack: ExitStack, run: RunDir, shared: bool) -> RunDir:
    """Own the run directory; InUseError if another process does.

    A job of SLURM may follow one that was lost on another machine, so it refuses only when it has seen that
    the owner lives; otherwise it waits until the claim counts as abandoned.
    """
    seen: dict[str, float] = {}
    waited = 0
    while True:
        try:
            owned = stack.enter_context(run.owned(shared))
        except InUseError:
            beats = {path.name: path.stat().st_mtime for path in (run.path / "claims").glob("*.json")}
            lives = any(beat > seen.get(name, beat) for name, beat in beats.items())
            if lives or waited > STALE_SECONDS or "SLURM_JOB_ID" not in os.environ:
                raise
            seen = beats
            waited += 1
            time.sleep(1)
            continue
        if waited:
            # The lost one's claims on the stages' folders may be younger by as much.
            time.sleep(BEAT_SECONDS)
        return owned
