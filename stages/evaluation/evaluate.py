"""Stage 3: measure a student beside its teacher, picture both, export the student."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hkdpipe.manifests.archive.reader import Archive, open_archive
from hkdpipe.manifests.ground.atomic_files import (
    make_folders,
    read_json_if_there,
    remove_temporaries,
    write_atomic,
    write_json,
)
from hkdpipe.manifests.ground.claims import owning
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.stages.evaluation.by_class import merged
from hkdpipe.stages.evaluation.context import Context
from hkdpipe.stages.evaluation.distribution import DISTRIBUTION, measure_distribution, remove_parts
from hkdpipe.stages.evaluation.evaluation_pictures import sample_picture, strip_picture
from hkdpipe.stages.evaluation.match import match_to_teacher
from hkdpipe.stages.evaluation.reference import Reference, load_reference
from hkdpipe.stages.evaluation.speed import measure_speed
from hkdpipe.stages.reports.model_card import model_card
from hkdpipe.stages.reports.published import published
from hkdpipe.stages.reports.report import REPORT, write_report
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.shared.reporting import Reporter, Summary
from hkdpipe.stages.shared.stage_state import evaluation_identity
from hkdpipe.trainer.exports.programs import check_exports, write_onnx, write_program
from hkdpipe.trainer.loop.checkpoint import newest_checkpoint, read_state
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.methods.registry import load_model
from hkdpipe.trainer.methods.student import saved_model
from hkdpipe.trainer.metrics.feature_networks import METRICS, FeatureNetwork, load_features
from hkdpipe.trainer.teachers.teacher import load_teacher


def evaluate(
    teacher: str,
    archive: Path | str,
    checkpoint: Path,
    out: Path,
    export: Path,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    world: World,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write metrics.json, tables (.csv) and pictures in `out`, and the model in `export`.

    `checkpoint` is one, or a folder of them, whose newest is taken. Every row measured is kept in `out`/rows
    under what it depends on, so that an interrupted evaluation goes on and an unchanged row is not repeated.
    Of several processes the first does all this, and the others help it to compute features.
    """
    started = time.monotonic()
    check_exports(settings.exports)
    path, state = _find_checkpoint(checkpoint, reporter)
    student = load_model(path, device, settings.weights)
    loaded = load_teacher(teacher, device)
    if loaded.image_shape != student.image_shape:
        raise UsageError(
            f"{path}: makes images of {student.image_shape}, the teacher of {loaded.image_shape}"
        )
    if student.arch.label_dim != loaded.arch.label_dim:
        raise UsageError(
            f"{path}: knows {student.arch.label_dim} classes, the teacher {loaded.arch.label_dim}"
        )
    identity = evaluation_identity(settings, state)
    weights = digest([state["sha256"], settings.weights])
    make_folders(out / "rows")

    def context_of(trajectories: Archive, check_owned: Callable[[], None]) -> Context:
        if trajectories.plan.teacher["sha256"] != loaded.sha256:
            raise UsageError(f"{archive}: made with another teacher than teacher.source '{loaded.source}'")
        return Context(
            loaded,
            student,
            trajectories,
            int(state.get("validation", 0)),
            settings,
            out,
            device,
            reporter,
            stop,
            check_owned,
            world.first,
        )

    if not world.first:
        with open_archive(archive) as trajectories:
            _measure_distribution(context_of(trajectories, lambda: None), weights)
        return Summary(title="evaluate", rows=(("process", f"{world.rank} of {world.size}, done"),))
    with owning(out, f"evaluation in {out}") as check_owned, open_archive(archive) as trajectories:
        context = context_of(trajectories, check_owned)
        for folder in (out, out / "rows", export.parent):
            remove_temporaries(folder)
        previous = read_json_if_there(out / "metrics.json")
        found = {"identity": identity, "inputs": _inputs(settings, trajectories)}
        same = previous and all(previous.get(name) == value for name, value in found.items())
        if same and (export / "config.json").is_file():
            return _summary(previous, out, export, did_nothing=True)
        measured = _measure(context, weights)
        plan = trajectories.plan
        metrics = {
            **found,
            "checkpoint": {"path": str(path), "seen": state["seen"], "sha256": state["sha256"]},
            "settings": {**vars(settings)},
            "model": student.config(),
            "teacher": {
                **{name: plan.teacher[name] for name in ("source", "sha256", "licence", "dataset")},
                "nfe": context.whole_sampler()[1],
            },
            "archive": {
                "trajectories": len(trajectories),
                "held_out": context.validation,
                "seed": plan.seed,
                "sampler": plan.sampler,
                "dtype": plan.dtype,
                "classes": list(plan.classes),
            },
            **measured,
            "published": _published(context),
            "device": _device_name(device),
            "precision": str(student.dtype).removeprefix("torch."),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "software": {"torch": torch.__version__, "numpy": np.__version__},
        }
        check_owned()
        _write_tables(out, metrics)
        facts = {**loaded.about, "licence": plan.teacher["licence"]}
        about = {
            "teacher": {"source": loaded.source, "sha256": loaded.sha256, **facts},
            "checkpoint": metrics["checkpoint"],
            "weights": settings.weights,
            "classes": list(plan.classes),
            "metrics": measured["rows"],
        }
        make_folders(export.parent)
        card = model_card(student.config(), about, measured["metric"], measured["match"])

        def complete(folder: Path) -> None:
            (folder / "README.md").write_text(card)
            if "program" in settings.exports:
                write_program(student, folder / "model.pt2")
            if "onnx" in settings.exports:
                write_onnx(student, folder / "model.onnx")

        check_owned()
        metrics["export"] = student.save(export, about, complete)
        check_owned()
        remove_parts(out)
        write_report(out, metrics)
        # Last: it says that all the rest is done.
        write_json(out / "metrics.json", metrics)
    return _summary(metrics, out, export, did_nothing=False)


def _inputs(settings: EvaluationSettings, archive: Archive) -> str:
    """Digest of what is compared with, as far as it can be told without reading all of it again."""
    place = Path(settings.reference)
    files = sorted(path for path in [place, *place.rglob("*")] if path.is_file())
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    models = [saved_model(Path(path), "ema").sha256 for path in settings.compared]
    return digest([stamps, models, archive.identity, len(archive)])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _find_checkpoint(path: Path, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    if (path / "state.json").is_file():
        return path, read_state(path)
    found = newest_checkpoint(path, reporter.warn) if path.is_dir() else None
    if found is None:
        raise InputError(
            f"{path}: no checkpoint; accepted: a checkpoint, or a folder of them made by hkdpipe train"
        )
    return found


def _published(context: Context) -> list[dict[str, Any]]:
    """What papers report for the archive's data set, where what is measured here can stand beside it."""
    if METRICS[context.settings.features] != "fid":
        return []
    plan = context.archive.plan
    return published(plan.teacher["dataset"], context.student.image_shape, plan.label_dim > 0)


def _measure(context: Context, weights: str) -> dict[str, Any]:
    settings = context.settings
    result: dict[str, Any] = {"metric": METRICS[settings.features]}
    result |= {"rows": [], "per_class": [], "match": [], "consistency": {}, "speed": []}
    result |= _measure_distribution(context, weights)
    with context.reporter.phase("pictures", 2, "pictures") as advance:
        sample_picture(context)
        advance(1)
        strip_picture(context)
        advance(2)
    if "match" in settings.metrics:
        if context.validation:
            match = match_to_teacher(context)
            result |= {"match": match.rows, "consistency": match.consistency}
            result["per_class"] = merged(result["per_class"], match.by_class)
        else:
            context.reporter.line("match to the teacher: skipped, as no trajectories were held out")
    if "speed" in settings.metrics:
        result["speed"] = measure_speed(context)
    return result


def _measure_distribution(context: Context, weights: str) -> dict[str, Any]:
    """'rows', 'per_class' and how they were got; nothing where no metric of distributions is asked for."""
    settings, shape = context.settings, context.student.image_shape
    if not DISTRIBUTION & set(settings.metrics):
        return {}
    network = load_features(settings.features, settings.inception, shape, context.device)
    reference = load_reference(settings.reference, context.archive, shape)
    rows, per_class = measure_distribution(context, network, reference, weights)
    return {"rows": rows, "per_class": per_class, "compared": _record(settings, network, reference)}


def _record(settings: EvaluationSettings, network: FeatureNetwork, reference: Reference) -> dict[str, Any]:
    """How the numbers were got: what somebody else needs to get them again."""
    images = reference.images
    noise = "torch generators as EDM's" if settings.edm_seeds else "hkdpipe's counter-based, 'evaluation'"
    return {
        "detector": {"name": network.name, "sha256": network.sha256, "resize": network.resize},
        "reference": {
            "source": reference.source,
            "sha256": reference.sha256,
            "images": None if images is None else len(images),
        },
        "noise": {"generator": noise, "seed": settings.seed, "first": 0, "ranges": settings.ranges},
        "images": "uint8, floor(127.5 x + 128), clipped",
    }


def _write_tables(out: Path, metrics: dict[str, Any]) -> None:
    import pandas as pd

    for name, rows in (
        ("metrics", metrics["rows"]),
        ("per_class", metrics["per_class"]),
        ("match", metrics["match"]),
        ("speed", metrics["speed"]),
    ):
        if rows:
            write_atomic(out / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False).encode())
        else:
            # Of an earlier evaluation, which was asked for it.
            (out / f"{name}.csv").unlink(missing_ok=True)


def _summary(metrics: dict[str, Any], out: Path, export: Path, did_nothing: bool) -> Summary:
    measured: dict[tuple[str, int], dict[str, Any]] = {}
    for row in [*metrics["rows"], *metrics["speed"]]:
        measured.setdefault((row["name"], row["nfe"]), {}).update(row)

    def cell(row: dict[str, Any], key: str, form: str, scale: float = 1) -> str:
        return form.format(scale * row[key]) if key in row else "-"

    per_class = metrics.get("per_class", [])
    judged = [row for row in per_class if row["name"] == "student" and "as_asked" in row]
    if judged:
        worst = min(judged, key=lambda row: row["as_asked"])
        measured[f"student, class {worst['class']}, its worst", 1] = worst
    conditional = ("as asked",) if judged else ()
    rows = [
        (
            name,
            str(nfe) if nfe else "-",
            cell(row, metrics["metric"], "{:.2f}"),
            cell(row, "confident", "{:.1f} %", 100),
            *[cell(row, "as_asked", "{:.1f} %", 100) for _ in conditional],
            cell(row, "ms_per_image_batch_1", "{:.1f} ms"),
        )
        for (name, nfe), row in measured.items()
    ]
    rows += [
        (f"{row['name']} (published)", str(row["nfe"]), f"{row['fid']:.2f}", *["-"] * (2 + len(conditional)))
        for row in metrics["published"]
    ]
    return Summary(
        title="evaluate",
        header=("", "evaluations", metrics["metric"], "p > 0.9", *conditional, "latency, one image"),
        rows=tuple(rows),
        files=(out / REPORT, out / "samples.png", out / "strip.png", out / "metrics.json", export),
        next_commands=(f"hkdpipe sample --model {export} --count 64 --out samples",),
        data={"per_class": per_class, **{key: metrics[key] for key in ("rows", "match", "speed")}},
        did_nothing=did_nothing,
    )
