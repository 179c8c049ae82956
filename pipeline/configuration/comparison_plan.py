"""What a comparison consists of: rows, each one configuration with a few keys changed, and seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.ground.sections import MAX_SEED, parse_section, setting
from hkdpipe.pipeline.configuration.config import (
    Config,
    check_sections,
    override,
    parse,
    read_preset,
    read_toml,
    sections,
)
from hkdpipe.trainer.settings.method_registry import methods

_OF_THE_COMPARISON = ("budget", "batch_size", "seed")


@dataclass(frozen=True)
class ComparisonSettings:
    """[comparison]"""

    base: str = setting("", "preset whose sections those of the comparison change; '': the defaults")
    seeds: tuple[int, ...] = setting(
        (0, 1, 2), "training.seed of the trainings of a row", minimum=0, maximum=MAX_SEED, single=True
    )
    equal: tuple[str, ...] = setting(
        ("trajectories", "evaluations"),
        "what all rows get as much of: 'trajectories': training.budget of them, in steps of "
        "training.batch_size; 'evaluations': of the network, as many as the row that takes the most of them, "
        "in as many steps: rows that take fewer for a trajectory see more trajectories in a step",
        choices=("trajectories", "evaluations"),
        single=True,
    )


@dataclass(frozen=True)
class Comparison:
    settings: ComparisonSettings
    base: Config
    """What the rows change; the archive and the evaluation of all."""
    rows: Mapping[str, Config]
    """By name."""


@dataclass(frozen=True)
class Trial:
    """A training and its evaluation."""

    row: str
    config: Config
    folder: Path
    """Within that of the comparison."""
    equal: tuple[str, ...]
    """The tables it stands in."""
    evaluations: int
    """Of the network, that a trajectory takes in a step."""

    @property
    def title(self) -> str:
        training = self.config.training
        return f"{self.row}, seed {training.seed}, {training.budget:,} trajectories"


def resolve_comparison(preset: str | None, file: Path | None, overrides: Sequence[str]) -> Comparison:
    """The comparison of a preset or of a file; `overrides` ('section.key=value') change what all rows share.

    UsageError where it is none, naming the row whose keys are not accepted.
    """
    if (preset is None) == (file is None):
        raise UsageError("--preset or --config: give one of them, a comparison")
    values = read_toml(file) if file is not None else read_preset(preset or "", "comparisons")
    rows = values.pop("rows", None)
    known = [*sections(), "comparison"]
    check_sections(values, known)
    override(values, overrides, known)
    settings = parse_section(ComparisonSettings, values.pop("comparison", {}), "comparison")
    for key in ("seeds", "equal"):
        given = getattr(settings, key)
        if not given or len(set(given)) < len(given):
            raise UsageError(
                f"comparison.{key}: got {list(given)}; accepted: at least one, none of them twice"
            )
    base = _over(read_preset(settings.base), values) if settings.base else values
    return Comparison(settings, parse(base), _rows(rows, base))


def trials(comparison: Comparison) -> list[Trial]:
    """All trainings, each once: the first seed of every row, then the next one.

    A row that takes the most evaluations of a trajectory stands in both tables with the same training.
    UsageError where a row cannot have as many evaluations in a step as the others.
    """
    taken = {
        name: methods()[row.training.method].evaluations(row.options) for name, row in comparison.rows.items()
    }
    found: dict[Path, Trial] = {}
    for seed in comparison.settings.seeds:
        for equal in comparison.settings.equal:
            for name, row in comparison.rows.items():
                training = replace(row.training, seed=seed)
                if equal == "evaluations":
                    batch_size = _as_many_evaluations(training.batch_size, name, taken)
                    budget = -(-training.budget * batch_size // training.batch_size)
                    warmup = round(training.warmup * batch_size / training.batch_size)
                    training = replace(training, batch_size=batch_size, budget=budget, warmup=warmup)
                folder = Path(slug(name), f"{training.budget}-trajectories", f"seed-{seed}")
                before = found[folder].equal if folder in found else ()
                config = replace(row, training=training)
                found[folder] = Trial(name, config, folder, (*before, equal), taken[name])
    return list(found.values())


def _as_many_evaluations(batch_size: int, row: str, taken: Mapping[str, int]) -> int:
    """Trajectories in a step of the row, with as many evaluations as the row that takes the most has of
    `batch_size`. UsageError where there is no such number."""
    most = max(taken.values())
    if batch_size * most % taken[row]:
        raise UsageError(
            f"training.batch_size: got {batch_size}; accepted with comparison.equal = 'evaluations': a "
            f"multiple of {taken[row] // math.gcd(most, taken[row])}, as '{row}' takes {taken[row]} "
            f"evaluations of a trajectory and another row {most}"
        )
    return batch_size * most // taken[row]


def slug(name: str) -> str:
    """A row's name as that of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _rows(rows: Any, base: Mapping[str, Any]) -> dict[str, Config]:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError("rows: missing; accepted: [[rows]], each with a name and the keys that it changes")
    found: dict[str, Config] = {}
    folders: dict[str, str] = {}
    of_rows = [name for name in sections() if name not in ("teacher", "generation", "evaluation")]
    for number, row in enumerate(rows):
        name = row.pop("name", None)
        if not isinstance(name, str) or not slug(name):
            raise UsageError(f"rows: number {number + 1} has no name; accepted: words, as in name = 'kd'")
        if slug(name) in folders:
            raise UsageError(f"rows: '{name}' and '{folders[slug(name)]}' would share a folder; rename one")
        folders[slug(name)] = name
        try:
            check_sections(row, of_rows)
            for key in row.get("training", {}):
                if key in _OF_THE_COMPARISON:
                    raise UsageError(f"training.{key}: refused: it is the same for all rows")
            found[name] = parse(_over(base, row))
        except UsageError as error:
            raise UsageError(f"row '{name}': ", *error.parts) from None
    return found


def _over(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of `values` with what `changes` says."""
    return {
        name: {**values.get(name, {}), **changes.get(name, {})}
        for name in sections()
        if name in values or name in changes
    }
