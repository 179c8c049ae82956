"""What the trainings of a comparison have led to, in numbers, and tables of their means. Free of torch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hkdpipe.manifests.ground.atomic_files import read_json

Numbers = dict[str, float]


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
        mean, spread = self.mean(key), self.spread(key)
        if mean is None:
            return "-"
        return " ± ".join(form.format(scale * value) for value in (mean, spread) if value is not None)


def columns(lines: Sequence[Line], metric: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A table for people: its header and the cells of its rows."""
    known = {key for line in lines for numbers in line.found for key in numbers}
    levels = sorted((int(key[6:]) for key in known if key.startswith("skill_")), reverse=True)
    header = (
        "",
        "seeds",
        metric,
        f"{metric}, A = 0",
        "p > 0.9, %",
        "MSE, start",
        "MSE, between",
        *(f"skill {level}x{level}" for level in levels),
        "trajectories",
        "evaluations",
        "training, s",
    )
    return header, [
        (
            line.row,
            str(len(line.found)),
            line.cell(metric, "{:.2f}"),
            line.cell(f"{metric}_without_evolution", "{:.2f}"),
            line.cell("confident", "{:.1f}", 100),
            line.cell("mse_start", "{:.4f}"),
            line.cell("mse_between", "{:.4f}"),
            *(line.cell(f"skill_{level}", "{:.2f}") for level in levels),
            _amount(line, "trajectories"),
            _amount(line, "evaluations"),
            line.cell("seconds", "{:.0f}"),
        )
        for line in lines
    ]


def _amount(line: Line, key: str) -> str:
    """What is the same for all seeds."""
    mean = line.mean(key)
    return "-" if mean is None else f"{mean:,.0f}"


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
