"""report.html: an evaluation as one page that needs no network and runs no script.

It is made from what lies in the evaluation's folder alone, so that any command that adds to the folder can
make it again. Its words and elements are in the templates beside this file.
"""

import base64
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from hkdpipe.manifests.ground.atomic_files import read_json, write_atomic
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.ground.sections import flat
from hkdpipe.stages.reports.curves import STYLES, Curve, chart
from hkdpipe.stages.reports.published import PUBLISHED
from hkdpipe.stages.reports.templates import template
from hkdpipe.stages.settings.metrics import Metric, metrics, table_metrics
from hkdpipe.stages.shared.picture_grids import apart
from hkdpipe.stages.shared.reporting import duration
from hkdpipe.trainer.metrics.feature_spaces import SPACES
from hkdpipe.trainer.whitebox.koopman_skill import WITHOUT_EVOLUTION

REPORT = "report.html"
ANALYSIS = Path("analysis") / "analysis.json"
"""What another command found out: `title`, and `sections` with `title`, `text`, `pictures` (`file`, `alt`)
and `tables` (`title`, `file`: a .csv), files by their names in the same folder."""
_MEDIA = {".png": "image/png", ".svg": "image/svg+xml", ".gif": "image/gif", ".webp": "image/webp"}
_COMMON = {"format", "version", "method", "architecture"}  # of every model; the rest is its method's
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    body: Sequence[Sequence[str]]
    caption: str = ""
    marked: str = ""
    """The first cell of rows that stand out."""


def write_report(folder: Path, results: Row) -> None:
    """Write `folder`/report.html from an evaluation's `results` (metrics.json) and the files beside it.
    InputError where what an analysis left in the folder cannot be read."""
    teacher, model = results["teacher"], results["model"]
    side = model["architecture"]["img_resolution"]
    dataset = teacher["dataset"] if teacher["dataset"] != teacher["source"] else ""
    page = template(REPORT).render(
        title=f"One-step generator of {side}×{side} images",
        finished=results["finished"][:10],
        about=f"Method {model['method']}; teacher {teacher['source']}"
        + (f", trained on {dataset}" if dataset else "")
        + f". {results['checkpoint']['seen']:,} trajectories seen in training.",
        key_figures=[*_key_figures(results)],
        distances=_distances(results) if results["rows"] else None,
        samples=_samples(folder / "samples.png", results),
        strip=_strip(folder / "strip.png"),
        measured=[_section(metric, results) for metric in table_metrics() if results.get(metric.name)],
        analysis=_analysis(folder, results.get("export")),
        per_class=_numbers(results["per_class"]) if results["per_class"] else None,
        configuration={
            "Evaluation": _facts(flat(results["settings"])),
            "Method": _facts(flat({key: value for key, value in model.items() if key not in _COMMON})),
            "Network": _facts(flat(model["architecture"])),
            "Archive": _facts(flat(results["archive"])),
        },
        provenance=_provenance(results),
    )
    write_atomic(folder / REPORT, page.encode())


def _key_figures(results: Row) -> Iterable[dict[str, str]]:
    whole = ("teacher", results["teacher"]["nfe"])
    for metric in metrics().values():
        for column in metric.shown("key figure"):
            if metric.row:
                for row in results["rows"]:
                    wanted = row["name"] == "student" or (row["name"], row["nfe"]) == whole
                    if wanted and column.name in row:
                        name, value = f"{column.title}, {row['name']}", replace(column, spread="").said(row)
                        yield {"name": name, "value": value, "note": _evaluations(row["nfe"])}
            elif rows := results.get(metric.name):
                for found in [*column.found(rows[:1]).values()][-1:]:
                    others = [f"{row['name']}: {found.said(row)}" for row in rows[1:] if "name" in row]
                    note = column.note or "; ".join(others)
                    yield {"name": found.title, "value": found.said(rows[0]), "note": note}


def _evaluations(nfe: int) -> str:
    return f"{nfe} network evaluation{'s'[: nfe > 1]}"


def _distances(results: Row) -> dict[str, Any]:
    rows = results["rows"]
    of_rows = [metric for metric in metrics().values() if metric.row]
    shown = [column for metric in of_rows for column in metric.shown("table") if column.found(rows)]
    texts = [metric.text for metric in of_rows if {*shown} & {*metric.columns}]
    texts += [space.about for space in SPACES.values() if any(space.metric in row for row in rows)]
    if any(column.spread in row for column in shown for row in rows):
        texts.append("“±” is the standard deviation over images redrawn with replacement.")
    header = ["", "evaluations", *(column.heading for column in shown), "images"]
    body = [
        [row["name"], str(row["nfe"] or "–"), *(column.said(row) for column in shown), f"{row['samples']:,}"]
        for row in rows
    ]
    tables = [Table(header, body, "Measured here", rows[0]["name"])]
    if results["published"]:
        papers = [
            [r["name"], f"{r['nfe']:,}", f"{r[PUBLISHED]:.2f}", r["source"]] for r in results["published"]
        ]
        caption = "Published, for this data set: not measured here, and with other weights, noise and code"
        tables.append(Table(["", "evaluations", "FID", "source"], papers, caption))
    return {"text": " ".join(filter(None, texts)), "tables": tables}


def _samples(path: Path, results: Row) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    all_steps = results["settings"].get("student_steps", [1])
    with Image.open(path) as picture:
        *students, teacher = apart(picture, len(all_steps) + 1)
    order, nfe = ", by class" if results["archive"]["classes"] else "", results["teacher"]["nfe"]
    pictures = [
        (part, f"{'One' if k == 1 else k}-step samples of the student", f"Student, {_evaluations(k)}{order}")
        for part, k in zip(students, all_steps, strict=True)
    ]
    words = "Samples of the teacher from the same noise", f"Teacher, {nfe} evaluations, the same noise{order}"
    pictures.append((teacher, *words))
    return [{"source": _png(part), "alt": alt, "caption": caption} for part, alt, caption in pictures]


def _strip(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    with Image.open(path) as strip:
        width, height = strip.size
    return {"source": _data_uri(path), "width": width, "height": height}


def _section(metric: Metric, results: Row) -> dict[str, Any]:
    """What a metric found of the student itself: curves over the noise levels, a table, notes."""
    rows = results[metric.name]
    shown = [found for column in metric.shown("table") for found in column.found(rows).values()]
    body = [[row.get("name", ""), *(column.said(row) for column in shown)] for row in rows]
    notes = []
    for row in (results[name] for name in metric.empty if name != metric.name):
        for column in metric.columns:
            said = [f"{label}: {found.said(row)}" for label, found in column.found([row]).items()]
            notes += [f"{column.title}: {'; '.join(said)}."] if said else []
    table = Table(["", *(column.heading for column in shown)], body, metric.about, "student")
    return {
        "title": metric.section,
        "text": metric.text,
        "figures": [*_figures(metric, rows)] if len(rows) > 1 else [],
        "notes": notes,
        "table": table if shown else None,
        "numbers": _numbers(rows),
    }


def _figures(metric: Metric, rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    for axis in metric.shown("noise level"):
        for column in metric.shown("curve"):
            curves = [
                Curve(label, [row.get(found.name) for row in rows], STYLES[number % len(STYLES)])
                for number, (label, found) in enumerate(column.found(rows).items())
            ]
            if curves:
                sigmas = [row[axis.name] for row in rows]
                yield {"title": column.title, "curves": curves, "chart": chart(column.title, sigmas, curves)}


def _analysis(folder: Path, weights: str | None) -> dict[str, Any] | None:
    """Of the export whose weights have this SHA-256."""
    path = folder / ANALYSIS
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        current = found.get("weights") == weights
        parts = [_analysed(path.parent, part) for part in found["sections"]] if current else []
        return {"title": found["title"], "current": current, "parts": parts}
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise InputError(f"{path}: not what an analysis writes ({type(error).__name__}: {error})") from None


def _analysed(folder: Path, part: Row) -> dict[str, Any]:
    tables = []
    for table in part.get("tables", []):
        with _inside(folder, table["file"]).open(encoding="utf-8", newline="") as file:
            header, *body = csv.reader(file)
        tables.append({"title": table["title"], "table": Table(header, body)})
    pictures = [
        {"alt": picture["alt"], "source": _data_uri(_inside(folder, picture["file"]))}
        for picture in part.get("pictures", [])
    ]
    return {"title": part["title"], "text": part.get("text", ""), "pictures": pictures, "tables": tables}


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name or Path(name).suffix not in {*_MEDIA, ".csv"}:
        raise ValueError(f"{name!r} is not the name of a picture or a .csv in its folder")
    return folder / name


def _provenance(results: Row) -> dict[str, str]:
    teacher, checkpoint = results["teacher"], results["checkpoint"]
    hashes = {name: value for name, value in checkpoint["sha256"].items() if "optimizer" not in name}
    return _facts(
        {
            "checkpoint": checkpoint["path"],
            "weights": results["settings"]["weights"],
            **{f"SHA-256 of {name}": value for name, value in hashes.items()},
            "teacher": teacher["source"],
            "SHA-256 of the teacher": teacher["sha256"],
            "licence of the teacher": teacher["licence"] or "not stated",
            **flat(results.get("compared", {})),
            "device": results["device"],
            "precision": results["precision"],
            "software": ", ".join(f"{name} {version}" for name, version in results["software"].items()),
            "finished": results["finished"],
            "took": duration(results["seconds"]),
        }
    )


# Pieces


def _numbers(rows: Sequence[Row]) -> Table:
    """All that rows hold."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    names = [name.replace(WITHOUT_EVOLUTION, ", A = 0").replace("_", " ") for name in header]
    return Table(names, [[_number(row.get(name)) for name in header] for row in rows])


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _facts(values: Row) -> dict[str, str]:
    """In words."""

    def said(value: Any) -> str:
        if isinstance(value, list | tuple):
            return ", ".join(map(str, value)) or "none"
        return "–" if value in ("", None) else str(value)

    return {name: said(value) for name, value in values.items()}


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return _encoded(buffer.getvalue(), ".png")


def _data_uri(path: Path) -> str:
    return _encoded(path.read_bytes(), path.suffix)


def _encoded(data: bytes, suffix: str) -> str:
    return f"data:{_MEDIA[suffix]};base64,{base64.b64encode(data).decode()}"
