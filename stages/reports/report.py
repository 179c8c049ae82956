"""report.html: an evaluation as one page that needs no network and runs no script.

It is made from what lies in the evaluation's folder alone, so that any command that adds to the folder can
make it again.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from hkdpipe.manifests.ground.atomic_files import read_json, write_atomic
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.ground.sections import flat
from hkdpipe.stages.reports.curves import Curve, chart, swatch
from hkdpipe.stages.shared.picture_grids import apart
from hkdpipe.stages.shared.reporting import duration
from hkdpipe.trainer.whitebox.koopman_skill import WITHOUT_EVOLUTION

REPORT = "report.html"
ANALYSIS = Path("analysis") / "analysis.json"
"""What another command found out: `title`, and `sections` with `title`, `text`, `pictures` (`file`, `alt`)
and `tables` (`title`, `file`: a .csv), files by their names in the same folder."""
_MEDIA = {".png": "image/png", ".svg": "image/svg+xml", ".gif": "image/gif", ".webp": "image/webp"}
_STYLES = ("first", "second", "third", "fourth")
_SCORES = {
    "kid": ("KID", "{:.5f}"),
    "inception_score": ("Inception score", "{:.2f}"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "confident": ("p > 0.9", "{:.1%}"),
    "as_asked": ("as asked", "{:.1%}"),
}
_METRICS = {
    "fid": "FID: the Fréchet distance in the features of the reference Inception-v3; lower is better.",
    "fd_digits": "fd_digits: the Fréchet distance in the features of a small classifier of digits; lower is "
    "better. It is not FID and compares with nothing but itself.",
}
Row = Mapping[str, Any]


def write_report(folder: Path, metrics: Row) -> None:
    """Write `folder`/report.html from an evaluation's `metrics` (metrics.json) and the files beside it.

    InputError where what an analysis left in the folder cannot be read.
    """
    rows = metrics["rows"]
    sections = [
        _section("Distance to the reference", _distribution(metrics)) if rows else "",
        _samples(folder, metrics),
        _trajectories(folder, metrics),
        _analysis(folder, metrics.get("export")),
        _section("Cost", _cost(metrics["speed"])) if metrics["speed"] else "",
        _section("By class", _by_class(metrics)) if metrics["per_class"] else "",
        _section("Configuration", _configuration(metrics)),
        _section("Provenance", _provenance(metrics)),
    ]
    title = _title(metrics)
    page = Template((Path(__file__).with_name(REPORT)).read_text(encoding="utf-8"))
    body = "\n".join([_header(title, metrics), *filter(None, sections)])
    write_atomic(folder / REPORT, page.substitute(title=escape(title), body=body).encode())


# Sections


def _title(metrics: Row) -> str:
    arch = metrics["model"]["architecture"]
    side = arch["img_resolution"]
    return f"One-step generator of {side}×{side} images"


def _header(title: str, metrics: Row) -> str:
    teacher, model, seen = metrics["teacher"], metrics["model"], metrics["checkpoint"]["seen"]
    about = f"Method {model['method']}; teacher {teacher['source']}"
    if teacher["dataset"] and teacher["dataset"] != teacher["source"]:
        about += f", trained on {teacher['dataset']}"
    return (
        f'<header><p class="eyebrow">hkdpipe, evaluation of {escape(metrics["finished"][:10])}</p>'
        f"<h1>{escape(title)}</h1>"
        f'<p class="soft">{escape(about)}. {seen:,} trajectories seen in training.</p>'
        f'<dl class="key">{"".join(_key_figures(metrics))}</dl></header>'
    )


def _key_figures(metrics: Row) -> Iterable[str]:
    def figure(name: str, value: str, more: str) -> str:
        return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"

    metric = metrics["metric"]
    for row in metrics["rows"]:
        known = row["name"] in ("student", "teacher") and row["nfe"] in (1, metrics["teacher"]["nfe"])
        if known and metric in row:
            yield figure(f"{metric}, {row['name']}", f"{row[metric]:.2f}", _evaluations(row["nfe"]))
    latency = {row["name"]: _milliseconds(row["ms_per_image_batch_1"]) for row in metrics["speed"]}
    if latency:
        yield figure("latency, one image", latency["student"], f"teacher: {latency['teacher']}")
    if metrics["match"]:
        start = metrics["match"][0]
        yield figure("PSNR to the teacher", f"{start['psnr']:.1f} dB", "same noise, held out")
        if skills := _skills(metrics["match"]):
            yield figure("Koopman skill", f"{start[skills[-1]]:.2f}", "from the start, coarsest level")


def _distribution(metrics: Row) -> str:
    metric, rows = metrics["metric"], metrics["rows"]
    scores = [name for name in _SCORES if any(name in row for row in rows)]
    header = ["", metric, "evaluations", *(_SCORES[name][0] for name in scores), "images"]
    body = []
    for row in rows:
        distance = f"{row[metric]:.2f}" if metric in row else "–"
        if f"{metric}_std" in row:
            distance += f" ± {row[f'{metric}_std']:.2f}"
        said = [_SCORES[name][1].format(row[name]) if name in row else "–" for name in scores]
        body.append([row["name"], distance, str(row["nfe"] or "–"), *said, f"{row['samples']:,}"])
    text = _METRICS[metric]
    if any(f"{metric}_std" in row for row in rows):
        text += " “±” is the standard deviation over images redrawn with replacement."
    parts = f"<p>{escape(text)}</p>"
    parts += _table("Measured here", header, body, marked=rows[0]["name"])
    if metrics["published"]:
        papers = [[r["name"], f"{r['fid']:.2f}", f"{r['nfe']:,}", r["source"]] for r in metrics["published"]]
        parts += _table(
            "Published, for this data set: not measured here, and with other weights, noise and code",
            ["", "FID", "evaluations", "source"],
            papers,
        )
    return parts


def _samples(folder: Path, metrics: Row) -> str:
    path = folder / "samples.png"
    if not path.is_file():
        return ""
    with Image.open(path) as picture:
        student, teacher = apart(picture, 2)
    nfe = metrics["teacher"]["nfe"]
    order = ", by class" if metrics["archive"]["classes"] else ""
    figures = [
        (student, "One-step samples of the student", f"Student, 1 network evaluation{order}"),
        (
            teacher,
            "Samples of the teacher from the same noise",
            f"Teacher, {nfe} evaluations, the same noise{order}",
        ),
    ]
    plates = "".join(_figure(_png(part), alt, caption) for part, alt, caption in figures)
    return _section("Samples", f'<div class="plates">{plates}</div>')


def _trajectories(folder: Path, metrics: Row) -> str:
    rows, parts = metrics["match"], []
    if len(rows) > 1:
        parts.append(
            "<p>What the student makes in one step of every stored state of held-out trajectories, compared "
            "with their ends. The curves begin at noise and end nearly at the image.</p>"
        )
        parts.append(f'<div class="charts">{"".join(_charts(rows))}</div>')
        variance = metrics["consistency"]
        if variance:
            text = f"Variance over the states of a trajectory, mean over pixels: {variance['variance']:.2e}"
            if f"variance{WITHOUT_EVOLUTION}" in variance:
                text += f"; with A = 0: {variance[f'variance{WITHOUT_EVOLUTION}']:.2e}"
            parts.append(f'<p class="soft">{text}.</p>')
    if rows:
        header = list(dict.fromkeys(name for row in rows for name in row))
        body = [[_number(row.get(name)) for name in header] for row in rows]
        names = [_in_words(name) for name in header]
        parts.append(_folded("All numbers by stored state", _table("", names, body)))
    path = folder / "strip.png"
    if path.is_file():
        text = "Stored states of trajectories, and under each what the student makes of it in one step"
        with Image.open(path) as strip:
            size = f'width="{strip.width}" height="{strip.height}"'
        picture = f'<img src="{_data_uri(path)}" alt="{text}" {size}>'
        parts.append(f"<h3>Trajectories</h3>{_scrolling(text, picture)}")
        parts.append(
            '<p class="soft">Above each column its noise level σ; states are shown divided by max(1, σ).</p>'
        )
    return _section("Along the trajectory", "".join(parts)) if parts else ""


def _charts(rows: Sequence[Row]) -> Iterable[str]:
    sigmas = [row["sigma"] for row in rows]

    def curve(column: str, name: str, style: str) -> Curve:
        return Curve(name, [row.get(column) for row in rows], style)

    def figure(title: str, curves: Sequence[Curve]) -> str:
        names = (
            "".join(f"<li>{swatch(c.style)}{escape(c.name)}</li>" for c in curves) if len(curves) > 1 else ""
        )
        legend = f'<ul class="legend">{names}</ul>' if names else ""
        return f"<figure><h3>{escape(title)}</h3>{legend}{chart(title, sigmas, curves)}</figure>"

    for column, title in (
        ("mse", "Mean squared error against the end"),
        ("perceptual", "Perceptual distance to the end"),
        ("lpips", "LPIPS to the end"),
        ("deviation", "Mean squared deviation from the image decoded from the start"),
    ):
        if column in rows[0]:
            without = column + WITHOUT_EVOLUTION
            shown = [curve(column, "student", "first")]
            if without in rows[0]:
                shown.append(curve(without, "student with A = 0", "without"))
            yield figure(title, shown)
    if skills := _skills(rows):
        shown = [
            curve(name, f"{level}×{level}", _STYLES[number % len(_STYLES)])
            for number, (name, level) in enumerate((name, name.removeprefix("skill_")) for name in skills)
        ]
        yield figure("Koopman skill by level: 1 is exact, 0 is no evolution", shown)


def _analysis(folder: Path, weights: str | None) -> str:
    """Of the export whose weights have this SHA-256."""
    path = folder / ANALYSIS
    if not path.is_file():
        return ""
    found = read_json(path)
    try:
        if found.get("weights") != weights:
            return _section(found["title"], "<p>Left out, as it is of other weights: analyze anew.</p>")
        parts = []
        for part in found["sections"]:
            parts.append(f"<h3>{escape(part['title'])}</h3><p>{escape(part.get('text', ''))}</p>")
            for picture in part.get("pictures", []):
                alt = picture["alt"]
                source = _data_uri(_inside(path.parent, picture["file"]))
                parts.append(_scrolling(alt, f'<img class="plot" src="{source}" alt="{escape(alt)}">'))
                parts.append(f'<p class="soft">{escape(alt)}.</p>')
            for table in part.get("tables", []):
                with _inside(path.parent, table["file"]).open(encoding="utf-8", newline="") as file:
                    header, *body = csv.reader(file)
                parts.append(_folded(table["title"], _table("", header, body)))
        return _section(found["title"], "".join(parts))
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise InputError(
            f"{path}: not what hkdpipe analyze writes ({type(error).__name__}: {error})"
        ) from None


def _inside(folder: Path, name: str) -> Path:
    if Path(name).name != name or Path(name).suffix not in {*_MEDIA, ".csv"}:
        raise ValueError(f"{name!r} is not the name of a picture or a .csv in its folder")
    return folder / name


def _cost(rows: Sequence[Row]) -> str:
    batches = [
        name.removeprefix("ms_per_image_batch_") for name in rows[0] if name.startswith("ms_per_image_batch_")
    ]
    header = ["", "evaluations", *(f"batch {batch}" for batch in batches), "images a second, at best"]
    body = [
        [
            row["name"],
            str(row["nfe"]),
            *(_milliseconds(row[f"ms_per_image_batch_{batch}"]) for batch in batches),
            f"{max(row[f'images_per_second_batch_{batch}'] for batch in batches):,.1f}",
        ]
        for row in rows
    ]
    return _table("Milliseconds an image, median of warm calls", header, body, marked="student")


def _by_class(metrics: Row) -> str:
    rows = metrics["per_class"]
    header = list(dict.fromkeys(name for row in rows for name in row))
    return _table(
        "",
        [_in_words(name) for name in header],
        [[_number(row.get(name)) for name in header] for row in rows],
    )


def _configuration(metrics: Row) -> str:
    model = metrics["model"]
    groups = {
        "Evaluation": metrics["settings"],
        "Method": {key: value for key, value in model.items() if key in ("koopman", "kdm", "schedule")},
        "Network": model["architecture"],
        "Archive": metrics["archive"],
    }
    return "".join(_folded(name, _facts(flat(values))) for name, values in groups.items() if values)


def _provenance(metrics: Row) -> str:
    teacher, checkpoint = metrics["teacher"], metrics["checkpoint"]
    facts: dict[str, Any] = {
        "checkpoint": checkpoint["path"],
        "weights": metrics["settings"]["weights"],
        **{
            f"SHA-256 of {name}": value
            for name, value in checkpoint["sha256"].items()
            if "optimizer" not in name
        },
        "teacher": teacher["source"],
        "SHA-256 of the teacher": teacher["sha256"],
        "licence of the teacher": teacher["licence"] or "not stated",
    }
    if "compared" in metrics:
        compared = metrics["compared"]
        facts |= flat(compared)
    facts |= {
        "device": metrics["device"],
        "precision": metrics["precision"],
        "software": ", ".join(f"{name} {version}" for name, version in metrics["software"].items()),
        "finished": metrics["finished"],
        "took": duration(metrics["seconds"]),
    }
    return _facts(facts)


# Pieces


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(caption: str, header: Sequence[str], body: Sequence[Sequence[str]], marked: str = "") -> str:
    """A table that scrolls inside itself; the row that begins with `marked` stands out."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = []
    for first, *rest in body:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        kind = ' class="subject"' if marked and first == marked else ""
        name = escape(first).replace(" = ", "&nbsp;=&nbsp;")
        lines.append(f'<tr{kind}><th scope="row">{name}</th>{cells}</tr>')
    title = f"<caption><span>{escape(caption)}</span></caption>" if caption else ""
    table = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return _scrolling(caption or "Table", table)


def _scrolling(label: str, body: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _figure(source: str, alt: str, caption: str) -> str:
    image = f'<img src="{source}" alt="{escape(alt)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _facts(values: Mapping[str, Any]) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(_said(value))}</dd>" for name, value in values.items()
    )
    return f'<dl class="facts">{facts}</dl>'


def _skills(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0] if name.startswith("skill_")]


def _in_words(column: str) -> str:
    return column.replace(WITHOUT_EVOLUTION, ", A = 0").replace("_", " ")


def _evaluations(nfe: int) -> str:
    return f"{nfe} network evaluation{'s'[: nfe > 1]}"


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)


def _said(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "–" if value in ("", None) else str(value)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return _encoded(buffer.getvalue(), ".png")


def _data_uri(path: Path) -> str:
    return _encoded(path.read_bytes(), path.suffix)


def _encoded(data: bytes, suffix: str) -> str:
    return f"data:{_MEDIA[suffix]};base64,{base64.b64encode(data).decode()}"
