"""Stage 3: measure a student beside its teacher, picture both, export the student."""

import datetime
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.ground import atomic_files
from hkdpipe.manifests.ground.atomic_files import write_atomic
from hkdpipe.manifests.ground.claims import owning
from hkdpipe.manifests.ground.errors import InputError, Name, UsageError, WrongValue
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.stages.evaluation.by_class import merged
from hkdpipe.stages.evaluation.context import STUDENT, Context
from hkdpipe.stages.evaluation.distribution import measure_distribution, remove_parts
from hkdpipe.stages.evaluation.evaluation_pictures import sample_picture, strip_picture
from hkdpipe.stages.evaluation.metrics.fd import halvings
from hkdpipe.stages.evaluation.reference import Reference, load_reference
from hkdpipe.stages.evaluation.seen import feature_network
from hkdpipe.stages.reports.model_card import model_card
from hkdpipe.stages.reports.published import PUBLISHED, published
from hkdpipe.stages.reports.report import REPORT, write_report
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.settings.metrics import columns, table_metrics
from hkdpipe.stages.settings.teacher_settings import TeacherSettings
from hkdpipe.stages.shared.reporting import Reporter, Summary
from hkdpipe.stages.shared.stage_state import evaluation_identity
from hkdpipe.trainer.exports.programs import check_exports, write_onnx, write_program
from hkdpipe.trainer.loop.checkpoint import newest_checkpoint, read_state
from hkdpipe.trainer.loop.world import World
from hkdpipe.trainer.metrics.feature_networks import FeatureNetwork
from hkdpipe.trainer.metrics.feature_spaces import SPACES
from hkdpipe.trainer.students.loading import load_model, saved_model
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
    sampling: str = "",
) -> Summary:
    """Write metrics.json, tables (.csv) and pictures in `out`, and the model in `export`.

    `checkpoint` is one, or a folder of them, whose newest is taken. Every row measured is kept in `out`/rows
    under what it depends on, so that an interrupted evaluation goes on and an unchanged row is not repeated.
    Of several processes the first does all this, and the others help it to compute features. `sampling` is a
    command that the model's card tells of.
    """
    started = time.monotonic()
    check_exports(settings.exports)
    path, state = _find_checkpoint(checkpoint, reporter)
    student = load_model(path, device, settings.weights)
    loaded = load_teacher(teacher, device)
    for makes, own, others in (
        ("makes images of {}, the teacher of {}", student.image_shape, loaded.image_shape),
        ("knows {} classes, the teacher {}", student.arch.label_dim, loaded.arch.label_dim),
    ):
        if own != others:
            raise UsageError(f"{path}: {makes.format(own, others)}")
    for steps in settings.student_steps:
        try:
            student.check_steps(steps)
        except WrongValue as error:
            raise WrongValue(Name("student_steps", EvaluationSettings), *error.parts[1:]) from None
    atomic_files.make_folders(out / "rows")
    with ExitStack() as stack:
        # The folder is the first one's: the others have no say in it.
        owned = owning(out, f"evaluation in {out}") if world.first else nullcontext(lambda: None)
        check_owned = stack.enter_context(owned)
        trajectories = stack.enter_context(open_archive(archive))
        if trajectories.plan.teacher["sha256"] != loaded.sha256:
            source = Name("source", TeacherSettings)
            raise WrongValue(f"{archive}: made with another teacher than ", source, f" '{loaded.source}'")
        held_out = int(state.get("validation", 0))
        context = Context(
            loaded,
            student,
            trajectories,
            held_out,
            settings,
            out,
            device,
            reporter,
            stop,
            check_owned,
            world.first,
        )
        evaluation = _Evaluation(context, path, state, export, sampling)
        if world.first:
            return evaluation.completed(started)
        evaluation.measure_distribution()
        return Summary(title="evaluate", rows=(("process", f"{world.rank} of {world.size}, done"),))


@dataclass(frozen=True)
class _Evaluation:
    context: Context
    path: Path
    """Of the checkpoint."""
    state: dict[str, Any]
    export: Path
    sampling: str

    def completed(self, started: float) -> Summary:
        """Measure, write and export what is not there."""
        context, out = self.context, self.context.out
        for folder in (out, out / "rows", self.export.parent):
            atomic_files.remove_temporaries(folder)
        previous = atomic_files.read_json_if_there(out / "metrics.json")
        found = {"identity": evaluation_identity(context.settings, self.state), "inputs": _inputs(context)}
        same = previous and all(previous.get(name) == value for name, value in found.items())
        if same and (self.export / "config.json").is_file():
            return _summary(previous, out, self.export, did_nothing=True)
        metrics = {**found, **self.about(), **self.measured(), "published": []}
        if metrics["metric"] == PUBLISHED:
            # What papers report for the archive's data set can stand beside it.
            plan, shape = context.archive.plan, context.student.image_shape
            metrics["published"] = published(plan.teacher["dataset"], shape, plan.label_dim > 0)
        metrics |= {
            "device": torch.cuda.get_device_name(gpu) if (gpu := context.device).type == "cuda" else "cpu",
            "precision": str(context.student.dtype).removeprefix("torch."),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "software": {"torch": torch.__version__, "numpy": np.__version__},
        }
        context.check_owned()
        _write_tables(out, metrics)
        metrics["export"] = self.exported(metrics)
        context.check_owned()
        remove_parts(out)
        write_report(out, metrics)
        # Last: it says that all the rest is done.
        atomic_files.write_json(out / "metrics.json", metrics)
        return _summary(metrics, out, self.export, did_nothing=False)

    def about(self) -> dict[str, Any]:
        """What is measured, and how."""
        context, plan = self.context, self.context.archive.plan
        return {
            "checkpoint": {"path": str(self.path), **{name: self.state[name] for name in ("seen", "sha256")}},
            "settings": {**vars(context.settings)},
            "model": context.student.config(),
            "teacher": {
                **{name: plan.teacher[name] for name in ("source", "sha256", "licence", "dataset")},
                "nfe": context.whole_sampler()[1],
            },
            "archive": {
                "trajectories": len(context.archive),
                "held_out": context.validation,
                "seed": plan.seed,
                "sampler": plan.sampler,
                "dtype": plan.dtype,
                "classes": list(plan.classes),
            },
        }

    def measured(self) -> dict[str, Any]:
        """By names of tables, the numbers; pictures are written."""
        context = self.context
        result: dict[str, Any] = {"metric": SPACES[context.settings.features].metric}
        result |= {"rows": [], "per_class": []}
        for metric in table_metrics():
            result |= metric.empty
        result |= self.measure_distribution()
        with context.reporter.phase("pictures", 2, "pictures") as advance:
            sample_picture(context)
            advance(1)
            strip_picture(context)
            advance(2)
        for metric in context.settings.chosen:
            if metric.tables is None:
                continue
            if "trajectories" in metric.needs and not context.validation:
                context.reporter.line(f"{metric.about}: skipped, as no trajectories were held out")
                continue
            found = metric.tables(context)
            for row in found[metric.name]:
                metric.checked(row)
            result["per_class"] = merged(result["per_class"], found.pop("per_class", []))
            result |= found
        return result

    def measure_distribution(self) -> dict[str, Any]:
        """'rows', 'per_class' and how they were got; nothing where no metric needs the feature network."""
        context, shape = self.context, self.context.student.image_shape
        settings = context.settings
        if not settings.sees:
            return {}
        network = feature_network(settings, shape, context.device)
        reference = load_reference(settings.reference, context.archive, shape)
        weights = digest([self.state["sha256"], settings.weights])
        rows, per_class = measure_distribution(context, network, reference, weights)
        return {"rows": rows, "per_class": per_class, "compared": _record(settings, network, reference)}

    def exported(self, metrics: dict[str, Any]) -> str:
        """Write the model with its card. Returns the SHA-256 of its weights."""
        context, plan = self.context, self.context.archive.plan
        student, settings, teacher = context.student, context.settings, context.teacher
        facts = {**teacher.about, "licence": plan.teacher["licence"]}
        about = {
            "teacher": {"source": teacher.source, "sha256": teacher.sha256, **facts},
            "checkpoint": metrics["checkpoint"],
            "weights": settings.weights,
            "classes": list(plan.classes),
            "metrics": metrics["rows"],
        }
        atomic_files.make_folders(self.export.parent)
        found = [(metric.card, metrics[metric.name]) for metric in table_metrics()]
        said = [card(rows) for card, rows in found if card and rows]
        text = model_card(student.config(), about, metrics["metric"], said, self.sampling)

        def complete(folder: Path) -> None:
            (folder / "README.md").write_text(text)
            if "program" in settings.exports:
                write_program(student, folder / "model.pt2")
            if "onnx" in settings.exports:
                write_onnx(student, folder / "model.onnx")

        context.check_owned()
        return student.save(self.export, about, complete)


def _inputs(context: Context) -> str:
    """Digest of what is compared with, as far as it can be told without reading all of it again."""
    settings, archive = context.settings, context.archive
    place = Path(settings.reference)
    files = sorted(path for path in [place, *place.rglob("*")] if path.is_file())
    stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    models = [saved_model(Path(path), "ema").sha256 for path in settings.compared]
    return digest([stamps, models, archive.identity, len(archive)])


def _find_checkpoint(path: Path, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    if (path / "state.json").is_file():
        return path, read_state(path)
    found = newest_checkpoint(path, reporter.warn) if path.is_dir() else None
    if found is None:
        accepted = "a checkpoint, or a folder of them that a training made"
        raise InputError(f"{path}: no checkpoint; accepted: {accepted}")
    return found


def _record(settings: EvaluationSettings, network: FeatureNetwork, reference: Reference) -> dict[str, Any]:
    """How the numbers were got: what somebody else needs to get them again."""
    images = reference.images
    noise = "torch generators as EDM's" if settings.edm_seeds else "hkdpipe's counter-based, 'evaluation'"
    several = max(settings.student_steps, default=1) > 1
    later = {"later steps": "hkdpipe's counter-based, 'evaluation-step-K'"} if several else {}
    return {
        "detector": {"name": network.space.name, "sha256": network.sha256, "resize": network.resize},
        "reference": {
            "source": reference.source,
            "sha256": reference.sha256,
            "images": None if images is None else len(images),
        },
        "noise": {"generator": noise, **later, "seed": settings.seed, "first": 0, "ranges": settings.ranges},
        "images": "uint8, floor(127.5 x + 128), clipped",
        "halvings of the reference": halvings(network.space.dimension),
    }


def _write_tables(out: Path, metrics: dict[str, Any]) -> None:
    import pandas as pd

    for name in ("rows", "per_class", *(metric.name for metric in table_metrics())):
        rows, file = metrics[name], out / f"{'metrics' if name == 'rows' else name}.csv"
        if rows:
            write_atomic(file, pd.DataFrame(rows).to_csv(index=False).encode())
        else:
            # Of an earlier evaluation, which was asked for it.
            file.unlink(missing_ok=True)


def _summary(metrics: dict[str, Any], out: Path, export: Path, did_nothing: bool) -> Summary:
    tables = {metric.name: metrics.get(metric.name, []) for metric in table_metrics()}
    per_class = metrics.get("per_class", [])
    measured: dict[tuple[str, int], dict[str, Any]] = {}
    for row in [*metrics["rows"], *(row for rows in tables.values() for row in rows if "name" in row)]:
        measured.setdefault((row["name"], row["nfe"]), {}).update(row)
    for column in columns("worst class"):
        judged = [row for row in per_class if row["name"] == STUDENT and column.name in row]
        if judged:
            worst = min(judged, key=lambda row: row[column.name] * (1 if column.better == "higher" else -1))
            measured[f"{STUDENT}, class {worst['class']}, its worst", 1] = worst
    for row in metrics["published"]:
        measured[f"{row['name']} (published)", row["nfe"]] = {PUBLISHED: row[PUBLISHED]}
    shown = [c for c in columns("summary") if any(c.name in row for row in measured.values())]
    return Summary(
        title="evaluate",
        header=("", "evaluations", *(column.title for column in shown)),
        rows=tuple(
            (name, str(nfe or "-"), *(column.said(row, "-") for column in shown))
            for (name, nfe), row in measured.items()
        ),
        files=(out / REPORT, out / "samples.png", out / "strip.png", out / "metrics.json", export),
        data={"per_class": per_class, "rows": metrics["rows"], **tables},
        did_nothing=did_nothing,
    )
