"""A run directory: what lies where, and what may still change in its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkdpipe.manifests.ground.atomic_files import make_folders, write_atomic
from hkdpipe.manifests.ground.claims import owning
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.ground.sections import Kind
from hkdpipe.pipeline.configuration.config import Config, dump, resolve, sections

if TYPE_CHECKING:
    from hkdpipe.stages.shared.stage_state import StageState


@dataclass(frozen=True)
class Change:
    """A key with another value than the stored configuration has."""

    key: str
    stored: Any
    given: Any


@dataclass(frozen=True)
class RunDir:
    path: Path
    check_owned: Callable[[], None] = lambda: None
    """Called before the record is written: raises where another process works in the run directory now."""

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def record(self) -> Path:
        return self.path / "run.json"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def training(self) -> Path:
        return self.path / "training"

    @property
    def checkpoints(self) -> Path:
        return self.training / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    def check_exists(self) -> None:
        """InputError where this is not a run directory."""
        if not self.config.is_file():
            raise InputError(f"{self.config}: missing, so {self.path} is not a run directory")

    def states(self, config: Config) -> tuple[StageState, StageState, StageState]:
        """How far each stage is."""
        from hkdpipe.stages.shared.stage_state import evaluation_state, generation_state, training_state

        return (
            generation_state(self.trajectories, config.generation),
            training_state(self.training, config.training),
            evaluation_state(self.evaluation, self.export, self.training, config.evaluation),
        )

    def begun(self, config: Config) -> set[str]:
        """The sections that results in here already follow from; an evaluation is simply done again."""
        if (self.training / "metrics.csv").exists() or any(self.checkpoints.glob("step-*")):
            return {*config.used} - {"evaluation"}
        if (self.trajectories / "plan.json").exists() or (self.trajectories / "manifest.json").exists():
            return {"teacher", "generation"}
        return set()

    @contextmanager
    def owned(self, shared: bool = False) -> Iterator[RunDir]:
        """Create the run directory if need be, and keep other commands from working in it.

        `shared`: but not those that share it. Yields the run directory that knows its owner.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--run-dir: {self.path} is not a folder")
        make_folders(self.path)
        with owning(self.path, f"run directory {self.path}", shared) as check_owned:
            yield replace(self, check_owned=check_owned)

    def adopt(self, config: Config) -> list[Change]:
        """Make `config` the stored configuration, if it may be; returns what is new in it."""
        if not self.config.exists():
            write_atomic(self.config, dump(config).encode())
            return []
        stored = resolve(None, None, self.config, ())
        check_change(stored, config, self.begun(stored))
        changed = changes(stored, config)
        if changed:
            write_atomic(self.config, dump(config).encode())
        return changed


def changes(stored: Config, given: Config) -> list[Change]:
    """The keys in which two configurations differ."""
    return [
        Change(f"{section}.{key.name}", old, new)
        for section in dict.fromkeys((*stored.used, *given.used))
        for key in fields(stored.section(section))
        if (old := getattr(stored.section(section), key.name))
        != (new := getattr(given.section(section), key.name))
    ]


def kind_of(key: str) -> Kind:
    """The kind of 'section.key'."""
    section, _, name = key.partition(".")
    kind: Kind = next(field.metadata["kind"] for field in fields(sections()[section]) if field.name == name)
    return kind


def check_change(stored: Config, given: Config, begun: set[str]) -> None:
    """Refuse another value of an identity key, or less of a growing one, in a section of `begun`.

    Raises UsageError with the key, both values and what to do.
    """
    for change in changes(stored, given):
        if change.key.partition(".")[0] not in begun:
            continue
        kind = kind_of(change.key)
        if kind == "identity":
            rule = "it decides results that are there already"
        elif kind == "growing" and change.given < change.stored:
            rule = "it may only grow"
        else:
            continue
        raise UsageError(
            f"{change.key}: this run has {_shown(change.stored)}, given {_shown(change.given)}; "
            f"{rule}: keep the value, or take another --run-dir"
        )


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
