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
from hkdpipe.pipeline.configuration.config import SECTIONS, Config, dump, resolve

if TYPE_CHECKING:
    from hkdpipe.stages.shared.stage_state import StageState

_DECIDED_BY = {"generation": ("teacher", "generation"), "training": ("training", "koopman", "kdm")}
"""The sections that a stage's result follows from. Evaluation is missing: it is simply done again."""


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

    def begun(self) -> set[str]:
        """The sections that results in here already follow from."""
        sections: set[str] = set()
        if (self.trajectories / "plan.json").exists() or (self.trajectories / "manifest.json").exists():
            sections.update(_DECIDED_BY["generation"])
        if (self.training / "metrics.csv").exists() or any(self.checkpoints.glob("step-*")):
            sections.update(_DECIDED_BY["generation"], _DECIDED_BY["training"])
        return sections

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
        check_change(stored, config, self.begun())
        changed = changes(stored, config)
        if changed:
            write_atomic(self.config, dump(config).encode())
        return changed


def changes(stored: Config, given: Config) -> list[Change]:
    """The keys in which two configurations differ."""
    return [
        Change(f"{section.name}.{key.name}", old, new)
        for section in fields(stored)
        for key in fields(getattr(stored, section.name))
        if (old := getattr(getattr(stored, section.name), key.name))
        != (new := getattr(getattr(given, section.name), key.name))
    ]


def kind_of(key: str) -> Kind:
    """The kind of 'section.key'."""
    section, _, name = key.partition(".")
    kind: Kind = next(field.metadata["kind"] for field in fields(SECTIONS[section]) if field.name == name)
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
