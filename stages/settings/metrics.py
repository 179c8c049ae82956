"""What can be measured of a student. A metric is a module of stages/evaluation/metrics that registers
itself, or one of a plug-in.

Free of torch, as those modules are until they measure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hkdpipe.manifests.ground.discovery import discover

Row = dict[str, Any]
Need = Literal["features", "logits", "class logits", "reference features", "images", "trajectories"]
"""What the feature network says of samples ('class logits': where it knows the images' classes), and of the
reference's images (not of statistics alone); the pixels of both; held-out trajectories."""
Place = Literal["table", "curve", "key figure", "summary", "worst class", "noise level"]


@dataclass(frozen=True)
class Column:
    """A number of a row, in metrics.json and a .csv."""

    name: str
    """One that ends with * stands for all that begin so."""
    title: str = ""
    """In words; of one with *, what it stands for takes the star's place."""
    form: str = ""
    """A format; '': three digits, or all before the point."""
    unit: str = ""
    better: Literal["", "lower", "higher"] = ""
    shown: tuple[Place, ...] = ()
    """Where in the report, and 'summary': in the table on the terminal."""
    note: str = ""
    """Stands below a key figure."""
    spread: str = ""
    """The column of its standard deviation."""
    type: type = float
    label: Callable[[str], str] = str
    """A name of one of those that begin so, from what stands in the star's place."""

    @property
    def heading(self) -> str:
        return f"{self.title} {({'lower': '↓', 'higher': '↑', '': ''})[self.better]}".strip()

    def said(self, row: Mapping[str, Any], missing: str = "–") -> str:
        """The row's number in words."""
        if (value := row.get(self.name)) is None:
            return missing
        scaled = 100 * value if self.unit == "%" else value
        form = self.form or ("{:.3g}" if abs(scaled) < 1000 else "{:,.0f}")
        text = form.format(scaled)
        if self.spread in row:
            text += f" ± {form.format(row[self.spread])}"
        return f"{text} {self.unit}".strip()

    def holds(self, name: str) -> bool:
        return name.startswith(self.name[:-1]) if self.name.endswith("*") else name == self.name

    def found(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Column]:
        """The columns it stands for in these rows, by their labels; without a star itself, if it is there."""
        names = dict.fromkeys(name for row in rows for name in row if self.holds(name))
        labels = {self.label(name.removeprefix(self.name.removesuffix("*"))): name for name in names}
        return {
            label: replace(self, name=name, title=self.title.replace("*", label))
            for label, name in labels.items()
        }


@dataclass(frozen=True)
class Metric:
    """One of `metrics` in [evaluation], in few words `about`. It has at least one of three parts.

    `row` measures samples: what was seen of them (seen.Seen) to a part of their row. `subjects` gives further
    makers of images for such rows, from the evaluation's context and the digest of the student's weights.
    `tables` measures the student itself, once, from that context: entries of metrics.json as in `empty`,
    and rows by class.
    """

    name: str
    about: str
    needs: tuple[Need, ...] = ()
    columns: tuple[Column, ...] = ()
    settings: tuple[str, ...] = ()
    """Keys of its own that decide what `row` measures."""
    row: Callable[[Any], Row] | None = None
    subjects: Callable[[Any, str], list[Any]] | None = None
    tables: Callable[[Any], dict[str, Any]] | None = None
    empty: Mapping[str, Any] = field(default_factory=dict)
    section: str = ""
    """The title of what `tables` found, in the report."""
    text: str = ""
    """What the report says of its numbers."""
    card: Callable[[list[Row]], str] | None = None
    """A sentence of the model's card, from the rows that `tables` found."""
    check: Callable[[Any], None] | None = None
    """Raises UsageError where the settings do not serve it."""
    chosen: bool = True
    """False: not to be asked for, but measured wherever what it needs is there."""

    def shown(self, where: Place) -> list[Column]:
        return [column for column in self.columns if where in column.shown]

    def checked(self, row: Row) -> Row:
        """A row of declared numbers alone. TypeError for another one."""
        for name, value in row.items():
            column = next((column for column in self.columns if column.holds(name)), None)
            if column is None or not isinstance(value, column.type):
                raise TypeError(f"metric {self.name}: {name} = {value!r} is not a column that it declares")
        return row


_METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    if _METRICS.setdefault(metric.name, metric) is not metric:
        raise ValueError(f"two metrics named {metric.name}")
    return metric


def metrics() -> dict[str, Metric]:
    """All by their names."""
    discover("hkdpipe.stages.evaluation.metrics")
    return dict(_METRICS)


def choices() -> dict[str, str]:
    """Those to ask for, and what they are."""
    return {name: metric.about for name, metric in metrics().items() if metric.chosen}


def table_metrics() -> list[Metric]:
    return [metric for metric in metrics().values() if metric.tables]


def columns(where: Place) -> list[Column]:
    """Those of all metrics that are shown there."""
    return [column for metric in metrics().values() for column in metric.shown(where)]
