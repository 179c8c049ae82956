"""What the trainings of a comparison have led to, in numbers, and tables of their means. Free of torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkdpipe.manifests.ground.atomic_files import read_json

Numbers = dict[str, float]
AMOUNTS = ("trajectories", "evaluations")
"""What is the same for all seeds."""


def trial_numbers(evaluation: Path, evaluations: int) -> Numbers:
    """One number of each kind from what an evaluation left in its folder.

    `evaluations` are those of the network that a trajectory takes in a step. `mse_start` and `mse_between`
    are the errors from the start, and from the states between it and the end, in the mean over these;
    `skill_H` the Koopman skill from the start, of the level of H pixels.
    """
    metrics = read_json(evaluation / "metrics.json")
    metric, match = metrics["metric"], metrics["match"]
    rows = {row["name"]: row for row in reversed(metrics["rows"])}  # of several steps, the first
    numbers = {key: rows["student"][key] for key in (metric, "confident") if key in rows.get("student", {})}
    if (idle := rows.get("student, A = 0")) is not None:
        numbers[f"{metric}_without_evolution"] = idle[metric]
    if match:
        numbers["mse_start"] = match[0]["mse"]
        numbers |= {key: value for key, value in match[0].items() if key.startswith("skill_")}
    if match[1:]:
        numbers["mse_between"] = statistics.fmean(row["mse"] for row in match[1:])
    seen = metrics["checkpoint"]["seen"]
    return {**numbers, "trajectories": seen, "evaluations": seen * evaluations}


@dataclass(frozen=True)
class Line:
    """A row of a table: its numbers over the seeds that are done."""

    row: str
    equal: str
    found: Sequence[Numbers]

    def mean(self, key: str) -> float | None:
        """None where the row has no such number."""
        values = self._values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key: str) -> float | None:
        """The standard deviation over seeds; None of fewer than two."""
        values = self._values(key)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, key: str) -> list[float]:
        return [numbers[key] for numbers in self.found if key in numbers]

    def cell(self, key: str, form: str, scale: float = 1.0) -> str:
        """Mean ± spread in words."""
        mean, spread = self.mean(key), None if key in AMOUNTS else self.spread(key)
        if mean is None:
            return "-"
        return " ± ".join(form.format(scale * value) for value in (mean, spread) if value is not None)


def columns(lines: Sequence[Line], metric: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table for people: its header and the cells of its rows."""
    known = {key for line in lines for numbers in line.found for key in numbers}
    levels = sorted((int(key[6:]) for key in known if key.startswith("skill_")), reverse=True)
    shown: list[tuple[str, str, str, float]] = [
        (metric, metric, "{:.2f}", 1),
        (f"{metric}, A = 0", f"{metric}_without_evolution", "{:.2f}", 1),
        ("p > 0.9, %", "confident", "{:.1f}", 100),
        ("MSE, start", "mse_start", "{:.4f}", 1),
        ("MSE, between", "mse_between", "{:.4f}", 1),
        *((f"skill {level}x{level}", f"skill_{level}", "{:.2f}", 1.0) for level in levels),
        *((amount, amount, "{:,.0f}", 1.0) for amount in AMOUNTS),
        ("training, s", "seconds", "{:.0f}", 1),
    ]
    header = ("", "seeds", *(title for title, *_ in shown))
    cells = [[line.cell(key, form, scale) for _, key, form, scale in shown] for line in lines]
    return header, [(line.row, str(len(line.found)), *own) for line, own in zip(lines, cells, strict=True)]


def flat(line: Line) -> dict[str, Any]:
    """A line for machines: every number's mean, and its standard deviation where there is one."""
    values: dict[str, Any] = {"equal": line.equal, "row": line.row, "seeds": len(line.found)}
    for key in dict.fromkeys(key for numbers in line.found for key in numbers):
        values[key] = line.mean(key)
        if (spread := line.spread(key)) is not None:
            values[f"{key}_std"] = spread
    return values


def markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown under a heading."""
    cells = [header, ["---"] * len(header), *rows]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in cells)
