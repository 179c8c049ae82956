"""Stage 3: measure a student beside its teacher, picture both, export the student."""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests import rng
from hkdpipe.manifests.archive import Archive, open_archive
from hkdpipe.manifests.claims import owning
from hkdpipe.manifests.errors import InputError, Interrupted, UsageError
from hkdpipe.manifests.files import (
    make_folders,
    read_json,
    remove_temporaries,
    write_atomic,
    write_json,
)
from hkdpipe.manifests.settings import digest
from hkdpipe.stages.by_class import Reference, Row, class_rows, match_rows, merged
from hkdpipe.stages.model_card import model_card
from hkdpipe.stages.pictures import beside, grid, save_png, strip
from hkdpipe.stages.reporting import Reporter, Summary
from hkdpipe.stages.settings import EvaluationSettings
from hkdpipe.stages.state import evaluation_identity
from hkdpipe.trainer.checkpoint import newest_checkpoint, read_state
from hkdpipe.trainer.features import FeatureNetwork, load_features
from hkdpipe.trainer.frechet import frechet_distance, statistics
from hkdpipe.trainer.images import load_images, load_labels
from hkdpipe.trainer.labels import one_hot
from hkdpipe.trainer.methods import load_model
from hkdpipe.trainer.methods.student import Student
from hkdpipe.trainer.perceptual import normalised_difference
from hkdpipe.trainer.sampler import evaluations, sample_trajectory
from hkdpipe.trainer.teacher import Teacher, load_teacher

MATCHED = 256  # held-out trajectories the match to the teacher is measured on
PICTURED = 64
STRIP_ROWS = 4

Sampler = Callable[[Tensor, Tensor | None], Tensor]
"""Unit noise (N, C, H, W) and labels (N, label_dim), None of an unconditional teacher, to images."""


@dataclass(frozen=True)
class _Context:
    """What every measurement of one evaluation shares."""

    teacher: Teacher
    student: Student
    archive: Archive
    validation: int
    settings: EvaluationSettings
    out: Path
    device: torch.device
    reporter: Reporter
    stop: Callable[[], bool]
    check_owned: Callable[[], None]
    """Called before a result is written: raises where the folder is another process's now."""

    def check_stop(self) -> None:
        if self.stop():
            raise Interrupted("stopped; the rows measured so far are kept")

    @property
    def solver(self) -> str:
        """Of the teacher's sampler."""
        return str(self.archive.plan.sampler["solver"])

    @property
    def predicted(self) -> int:
        """How many of the stored states the student predicts from: all but the end, or the start alone."""
        return len(self.archive.sigmas) - 1 if self.student.between else 1

    def noise(self, start: int, stop: int) -> Tensor:
        """The evaluation's unit noise, which no archive and no other sampling uses."""
        values = rng.unit_noise(
            self.settings.seed, "evaluation", range(start, stop), self.student.image_shape
        )
        return torch.from_numpy(values).to(self.device)

    def classes(self, start: int, stop: int) -> NDArray[np.int64] | None:
        """The classes (N,) asked for with that noise, drawn of those trained on; None without classes."""
        known = self.archive.plan.classes
        if not known:
            return None
        return rng.choice(self.settings.seed, "evaluation-labels", range(start, stop), known)

    def told(self, classes: NDArray[np.int64] | None) -> Tensor | None:
        """Class numbers as the networks take them."""
        return one_hot(classes, self.archive.plan.label_dim, self.device)


def evaluate(
    teacher: str,
    archive: Path | str,
    checkpoint: Path,
    out: Path,
    export: Path,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write metrics.json, tables (.csv) and pictures in `out`, and the model in `export`.

    `checkpoint` is one, or a folder of them, whose newest is taken. Every row measured is kept in `out`/rows
    under what it depends on, so that an interrupted evaluation goes on and an unchanged row is not repeated.
    """
    path, state = _find_checkpoint(checkpoint, reporter)
    student = load_model(path, device, cast(Any, settings.weights))
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
    make_folders(out / "rows")
    with owning(out, f"evaluation in {out}") as check_owned, open_archive(archive) as trajectories:
        if trajectories.plan.teacher["sha256"] != loaded.sha256:
            raise UsageError(f"{archive}: made with another teacher than teacher.source '{loaded.source}'")
        for folder in (out, out / "rows", export.parent):
            remove_temporaries(folder)
        previous = _read_if_there(out / "metrics.json")
        if previous and previous.get("identity") == identity and (export / "config.json").is_file():
            return _summary(previous, out, export, did_nothing=True)
        context = _Context(
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
        )
        measured = _measure(context, digest([state["sha256"], settings.weights]))
        metrics = {
            "identity": identity,
            "checkpoint": {"path": str(path), "seen": state["seen"], "sha256": state["sha256"]},
            "settings": {**vars(settings)},
            **measured,
            "software": {"torch": torch.__version__, "numpy": np.__version__},
        }
        check_owned()
        _write_tables(out, metrics)
        facts = {**loaded.about, "licence": trajectories.plan.teacher["licence"]}
        about = {
            "teacher": {"source": loaded.source, "sha256": loaded.sha256, **facts},
            "checkpoint": metrics["checkpoint"],
            "weights": settings.weights,
            "classes": list(trajectories.plan.classes),
            "metrics": measured["rows"],
        }
        make_folders(export.parent)
        check_owned()
        student.save(export, about)
        card = model_card(student.config(), about, measured["metric"], measured["match"])
        write_atomic(export / "README.md", card.encode())
        check_owned()
        # Last: it says that all the rest is there.
        write_json(out / "metrics.json", metrics)
    return _summary(metrics, out, export, did_nothing=False)


def _find_checkpoint(path: Path, reporter: Reporter) -> tuple[Path, dict[str, Any]]:
    if (path / "state.json").is_file():
        return path, read_state(path)
    found = newest_checkpoint(path, reporter.line) if path.is_dir() else None
    if found is None:
        raise InputError(
            f"{path}: no checkpoint; accepted: a checkpoint, or a folder of them made by hkdpipe train"
        )
    return found


def _read_if_there(path: Path) -> dict[str, Any] | None:
    try:
        return cast(dict[str, Any], read_json(path))
    except InputError:
        return None


def _measure(context: _Context, weights: str) -> dict[str, Any]:
    settings = context.settings
    result: dict[str, Any] = {"metric": f"fd_{settings.features}"}
    result |= {"rows": [], "per_class": [], "match": [], "speed": []}
    if "fd" in settings.metrics:
        network = load_features(settings.features, context.student.image_shape, context.device)
        reference = load_images(settings.reference)
        if reference.shape[1:] != context.student.image_shape or len(reference) < 4:
            raise UsageError(
                f"evaluation.reference: '{settings.reference}' holds {len(reference)} images of "
                f"{reference.shape[1:]}; accepted: at least 4 of {context.student.image_shape}"
            )
        result["rows"], result["per_class"] = _frechet_rows(context, network, reference, weights)
    with context.reporter.phase("pictures", 2, "pictures") as advance:
        _sample_picture(context)
        advance(1)
        _strip_picture(context)
        advance(2)
    if "match" in settings.metrics:
        if context.validation:
            result["match"], by_class = _match(context)
            result["per_class"] = merged(result["per_class"], by_class)
        else:
            context.reporter.line("match to the teacher: skipped, as no trajectories were held out")
    if "speed" in settings.metrics:
        result["speed"] = _speed(context)
    return result


def _frechet_rows(
    context: _Context, network: FeatureNetwork, reference: NDArray[np.float32], weights: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The student, the teacher with each number of steps, and two random halves of the reference; and, of a
    conditional teacher, student and teacher by class."""
    settings = context.settings
    features = _features(network, torch.from_numpy(reference).to(context.device))
    labels = _reference_labels(context)
    target = Reference(features, labels)
    noise = [
        settings.samples,
        settings.seed,
        settings.batch_size,
        network.sha256,
        context.archive.plan.classes,
    ]
    hashed = [
        None if array is None else hashlib.sha256(array.tobytes()).hexdigest()
        for array in (reference, labels)
    ]
    compared = digest([noise, hashed])
    student = context.student.sample
    measured = [_row(context, "student", 1, student, network, target, digest([compared, weights]))]
    for steps in settings.teacher_steps:
        identity = digest([compared, context.teacher.sha256, context.archive.plan.sampler, steps])
        sampler = functools.partial(_teacher_images, context, steps=steps)
        nfe = evaluations(steps, context.solver)
        measured.append(_row(context, "teacher", nfe, sampler, network, target, identity))
    rows = [kept["row"] for kept in measured]
    rows.append(_halves_row(context, network, features))
    return rows, [row for kept in measured for row in kept["per_class"]]


def _reference_labels(context: _Context) -> NDArray[np.int64] | None:
    """The classes of the reference images; None where they are not those of the teacher."""
    label_dim = context.archive.plan.label_dim
    labels = load_labels(context.settings.reference) if label_dim else None
    if labels is not None and labels.max() + 1 != label_dim:
        context.reporter.line(
            f"{context.settings.reference}: has {labels.max() + 1} classes, the teacher {label_dim}: the "
            "distance is not measured by class"
        )
        return None
    return labels


def _teacher_images(context: _Context, noise: Tensor, labels: Tensor | None, *, steps: int) -> Tensor:
    sampler = {**context.archive.plan.sampler, "steps": steps}
    end, _ = sample_trajectory(context.teacher, noise, labels=labels, **sampler, keep=[steps])
    return end[0]


def _row(
    context: _Context,
    name: str,
    nfe: int,
    sampler: Sampler,
    network: FeatureNetwork,
    target: Reference,
    identity: str,
) -> dict[str, Any]:
    """The distance of `samples` images and how the classifier sees them: a `row`, and rows `per_class` of a
    conditional teacher; kept in rows/."""
    path = context.out / "rows" / f"{name}-{nfe}.json"
    kept = _read_if_there(path)
    if kept and kept.get("identity") == identity:
        return kept
    settings = context.settings
    features, probabilities = [], []
    title = f"{network.metric} of the {name}, {nfe} evaluation{'s'[: nfe > 1]}"
    with context.reporter.phase(title, settings.samples, "images") as advance, torch.inference_mode():
        for start in range(0, settings.samples, settings.batch_size):
            context.check_stop()
            stop = min(start + settings.batch_size, settings.samples)
            # One batch shape for all, since another one changes the last bits.
            end = start + settings.batch_size
            labels = context.told(context.classes(start, end))
            images = quantised(sampler(context.noise(start, end), labels)[: stop - start].float())
            features.append(network.features(images).cpu().numpy())
            probabilities.append(network.probabilities(images).cpu().numpy())
            advance(stop)
    made, likely = np.concatenate(features), np.concatenate(probabilities)
    classes = np.bincount(likely.argmax(axis=1), minlength=likely.shape[1]) / len(likely)
    row = {
        "name": name,
        "nfe": nfe,
        "samples": settings.samples,
        network.metric: frechet_distance(statistics([made]), statistics([target.features])),
        "confident": float((likely.max(axis=1) > 0.9).mean()),
        "class_shares": classes.tolist(),
    }
    per_class = []
    asked = context.classes(0, settings.samples)
    if asked is not None:
        # The classifier knows the ten digits: of other classes it can say nothing.
        judged = likely.argmax(axis=1) if context.archive.plan.teacher["dataset"] == "digits" else None
        if judged is not None:
            row["as_asked"] = float((judged == asked).mean())
        rows = class_rows(network.metric, context.archive.plan.classes, asked, made, judged, target)
        per_class = [{"name": name, "nfe": nfe, **class_row} for class_row in rows]
    kept = {"identity": identity, "row": row, "per_class": per_class}
    context.check_owned()
    write_json(path, kept)
    return kept


def _halves_row(context: _Context, network: FeatureNetwork, features: NDArray[np.float64]) -> dict[str, Any]:
    """The distance between two random halves of the reference: the mean of ten divisions."""
    half = len(features) // 2
    distances = []
    for division in range(10):
        order = rng.permutation(context.settings.seed, "halves", division, len(features))
        one, other = features[order[:half]], features[order[half:]]
        distances.append(frechet_distance(statistics([one]), statistics([other])))
    return {
        "name": "two halves of the reference",
        "nfe": 0,
        "samples": half,
        network.metric: float(np.mean(distances)),
        "smallest": min(distances),
        "largest": max(distances),
    }


@torch.inference_mode()
def _features(network: FeatureNetwork, images: Tensor) -> NDArray[np.float64]:
    parts = [network.features(quantised(part)).cpu().numpy() for part in images.split(512)]
    return np.concatenate(parts).astype(np.float64)


def quantised(images: Tensor) -> Tensor:
    """Images in [-1, 1] as they come back from 8-bit files, rounded as `to_uint8` does."""
    return (images * 127.5 + 128).clamp(0, 255).floor() / 127.5 - 1


def _match(context: _Context) -> tuple[list[Row], list[Row]]:
    """How well the student maps the stored states of held-out trajectories to their end; and the start, by
    class."""
    sigmas = context.archive.sigmas
    held_out = range(min(MATCHED, context.validation))
    states = context.archive.read(held_out, range(len(sigmas)))
    ends = torch.from_numpy(states[:, -1]).float().to(context.device)
    classes = context.archive.plan.labels(held_out)
    labels = context.told(classes)
    layers = _perceptual_layers(context)
    rows = []
    by_class: list[Row] = []
    with (
        context.reporter.phase("match to the teacher", context.predicted, "times") as advance,
        torch.inference_mode(),
    ):
        for index, sigma in enumerate(sigmas[: context.predicted].tolist()):
            context.check_stop()
            x = torch.from_numpy(states[:, index]).float().to(context.device)
            images = context.student.predict(x, torch.full((len(x),), sigma, device=context.device), labels)
            error = ((images - ends) ** 2).mean(dim=(1, 2, 3))
            row = {
                "state": index,
                "sigma": sigma,
                "mse": float(error.mean()),
                "psnr": float((10 * torch.log10(4 / error)).mean()),
            }
            if layers is not None:
                row["perceptual"] = float(normalised_difference(layers(images), layers(ends)).mean())
            rows.append(row)
            if index == 0 and classes is not None:
                found = match_rows(classes, error.cpu().numpy())
                by_class = [{"name": "student", "nfe": 1, **class_row} for class_row in found]
            advance(index + 1)
    return rows, by_class


def _perceptual_layers(context: _Context) -> Callable[[Tensor], list[Tensor]] | None:
    """Features of the metric's classifier, not of the one in the loss; None for other images."""
    if context.student.image_shape != (1, 8, 8):
        return None
    from hkdpipe.trainer.classifier import load_classifier

    return load_classifier("digits-classifier-metric").to(context.device).features


def _speed(context: _Context) -> list[dict[str, Any]]:
    """Latency of one image and throughput in batches, warm, of the student and of the whole sampler."""
    steps = context.archive.plan.sampler["steps"]
    subjects: list[tuple[str, int, Sampler]] = [
        ("student", 1, context.student.sample),
        (
            "teacher",
            evaluations(steps, context.solver),
            functools.partial(_teacher_images, context, steps=steps),
        ),
    ]
    rows = []
    with context.reporter.phase("speed", len(subjects), "samplers") as advance:
        for done, (name, nfe, sampler) in enumerate(subjects, 1):
            row: dict[str, Any] = {"name": name, "nfe": nfe}
            for batch in (1, context.settings.batch_size):
                context.check_stop()
                labels = context.told(context.classes(0, batch))
                seconds = _seconds(sampler, context.noise(0, batch), labels, context.device)
                row[f"ms_per_image_batch_{batch}"] = 1e3 * seconds / batch
                row[f"images_per_second_batch_{batch}"] = batch / seconds
            rows.append(row)
            advance(done)
    return rows


@torch.inference_mode()
def _seconds(sampler: Sampler, noise: Tensor, labels: Tensor | None, device: torch.device) -> float:
    """The median time of a call, after a warm-up: of 5 calls, or as many as fit two seconds."""

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: list[float] = []
    sampler(noise, labels)
    while len(times) < 5 and sum(times) < 2:
        synchronise()
        start = time.perf_counter()
        sampler(noise, labels)
        synchronise()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


@torch.inference_mode()
def _sample_picture(context: _Context) -> None:
    """One-step samples beside the teacher's from the same noise, of a conditional teacher in the order of
    their classes."""
    context.check_stop()
    noise, classes, sorted_by = context.noise(0, PICTURED), context.classes(0, PICTURED), ""
    if classes is not None:
        order = np.argsort(classes, kind="stable")
        noise, classes, sorted_by = noise[order], classes[order], ", by class"
    labels = context.told(classes)
    steps = context.archive.plan.sampler["steps"]
    nfe = evaluations(steps, context.solver)
    parts = [
        (f"one step (1 evaluation){sorted_by}", context.student.sample(noise, labels)),
        (
            f"teacher, same noise ({nfe}){sorted_by}",
            _teacher_images(context, noise, labels, steps=steps),
        ),
    ]
    pictures = [(caption, grid(images.float().cpu().numpy(), 8)) for caption, images in parts]
    picture = beside(pictures)
    context.check_owned()
    save_png(context.out / "samples.png", picture)


@torch.inference_mode()
def _strip_picture(context: _Context) -> None:
    """Stored states of some held-out trajectories, and what the student makes of each of them."""
    context.check_stop()
    sigmas = context.archive.sigmas
    count = min(STRIP_ROWS, len(context.archive))
    states = context.archive.read(range(count), range(len(sigmas)))
    classes = context.archive.plan.labels(range(count))
    rows, captions = [], []
    for index, trajectory in enumerate(states):
        x = torch.from_numpy(trajectory).float().to(context.device)
        known = context.predicted
        own = None if classes is None else np.repeat(classes[index], known)
        levels = torch.from_numpy(sigmas[:known]).float().to(context.device)
        made = context.student.predict(x[:known], levels, context.told(own))
        shown = trajectory.astype(np.float32) / np.maximum(1, sigmas)[:, None, None, None]
        blank = torch.ones_like(x[known:-1])
        rows += [shown, torch.cat([made, blank, x[-1:]]).cpu().numpy()]
        captions += [
            f"trajectory {index}{'' if classes is None else f', class {classes[index]}'}: "
            "states (x / max(1, sigma))",
            "one step from each state; the end itself",
        ]
    picture = strip(rows, captions, [f"{sigma:.2g}" for sigma in sigmas])
    context.check_owned()
    save_png(context.out / "strip.png", picture)


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
    return Summary(
        title="evaluate",
        header=("", "evaluations", metrics["metric"], "p > 0.9", *conditional, "latency, one image"),
        rows=tuple(rows),
        files=(out / "samples.png", out / "strip.png", out / "metrics.json", export),
        next_commands=(f"hkdpipe sample --model {export} --count 64 --out samples",),
        data={"per_class": per_class, **{key: metrics[key] for key in ("rows", "match", "speed")}},
        did_nothing=did_nothing,
    )
