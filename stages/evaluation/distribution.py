"""How near samples are to real images: the Frechet distance and its relatives, row by row.

A row is kept in rows/ under what it depends on. What the feature network said of its images is kept in parts
until the evaluation is done, so that neither an interruption nor a second process repeats any of it.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import read_json_if_there, write_json
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.stages.evaluation.by_class import Row, class_rows
from hkdpipe.stages.evaluation.context import Context, Sampler
from hkdpipe.stages.evaluation.feature_parts import Outputs, compute_parts, part_ranges, read_parts
from hkdpipe.stages.evaluation.reference import ARCHIVE, Reference
from hkdpipe.trainer.methods.registry import load_model
from hkdpipe.trainer.methods.student import saved_model
from hkdpipe.trainer.metrics.feature_networks import FeatureNetwork
from hkdpipe.trainer.metrics.frechet_distance import (
    Statistics,
    frechet_distance,
    quick_frechet_distance,
    statistics,
)
from hkdpipe.trainer.metrics.scores import inception_score, kernel_distance, precision_recall
from hkdpipe.trainer.teachers.sampler import evaluations
from hkdpipe.trainer.whitebox.koopman_skill import has_operator, without_evolution

DISTRIBUTION = {"fd", "kid", "inception_score", "precision_recall"}
"""The metrics measured here."""
HALVINGS, HALVINGS_IN_MANY_DIMENSIONS = 10, 2  # of Inception's 2,048, each costs minutes of linear algebra
BatchOf = Callable[[int, int], torch.Tensor]
"""batch_of(start, stop): images uint8 (batch_size, C, H, W), of which the first stop - start count."""


@dataclass(frozen=True)
class Subject:
    """Something that makes images."""

    name: str
    nfe: int
    sampler: Sampler
    identity: str
    """Digest of its weights and of how it samples."""


def subjects(context: Context, weights: str) -> list[Subject]:
    """The student, whose weights' digest is given, and with A = 0 if asked for; the teacher with each number
    of steps; other models."""
    settings, teacher = context.settings, context.teacher.sha256
    found = [Subject("student", 1, context.student.folded().sample, weights)]
    if "fd_without_evolution" in settings.metrics:
        if has_operator(context.student):
            idle = without_evolution(context.student).folded()
            found.append(Subject("student, A = 0", 1, idle.sample, digest([weights, "A = 0"])))
        elif context.first:
            context.reporter.line("the student with A = 0: skipped, as it has no operator")
    asked = [("teacher", context.solver, steps) for steps in settings.teacher_steps]
    asked += [("teacher, first order", "euler", steps) for steps in settings.first_order_steps]
    for name, solver, steps in asked:
        sampler = functools.partial(context.teacher_images, steps=steps, solver=solver)
        identity = digest([teacher, context.archive.plan.sampler, solver, steps])
        found.append(Subject(name, evaluations(steps, solver), sampler, identity))
    for path in settings.compared:
        model = load_model(path, context.device)
        if (model.image_shape, model.arch.label_dim) != (
            context.student.image_shape,
            context.student.arch.label_dim,
        ):
            raise UsageError(
                f"evaluation.compared: {path} makes images of {model.image_shape} of "
                f"{model.arch.label_dim} classes; accepted: as the student does"
            )
        found.append(Subject(path, 1, model.folded().sample, saved_model(Path(path), "ema").sha256))
    return found


class Target:
    """The reference, seen through the network."""

    def __init__(self, context: Context, network: FeatureNetwork, reference: Reference) -> None:
        """UsageError where statistics alone do not serve the metrics asked for."""
        self.reference = reference
        self.labels = _usable_labels(context, reference)
        self._parts: tuple[Path, list[range]] | None = None
        if reference.statistics is not None:
            if {"kid", "precision_recall"} & set(context.settings.metrics):
                raise UsageError(
                    f"evaluation.metrics: '{reference.source}' holds statistics alone; accepted with it: "
                    '"fd", "inception_score", "match", "speed"'
                )
            width = len(reference.statistics.mean)
            if width != network.dimension:
                raise UsageError(
                    f"evaluation.reference: '{reference.source}' holds statistics of {width} features; "
                    f"accepted: of {network.dimension}, as '{network.name}' has"
                )
            self.statistics = reference.statistics
            return
        images = reference.images
        assert images is not None
        batch = context.settings.batch_size
        parts = part_ranges(len(images), batch)
        identity = digest([network.sha256, reference.sha256, batch])
        folder = context.out / "rows" / f"reference-{identity[:16]}"

        def compute(part: range) -> Outputs:
            def batch_of(start: int, stop: int) -> torch.Tensor:
                # Padded, since another batch shape changes the last bits.
                rows = np.minimum(np.arange(start, start + batch), len(images) - 1)
                return torch.from_numpy(images[rows]).to(context.device)

            return _outputs(context, network, part, batch_of)

        title = f"{network.name} features of the reference"
        with context.reporter.phase(title, len(images), "images") as advance:
            compute_parts(folder, parts, compute, advance, wait=context.first)
        self._parts = folder, parts
        if context.first:
            self.statistics = statistics(self.features())

    def features(self) -> Iterator[NDArray[np.float32]]:
        """Of the reference's images, in blocks; not of one that is statistics alone."""
        assert self._parts is not None
        return (outputs.features for outputs in read_parts(*self._parts))

    @functools.cached_property
    def all_features(self) -> NDArray[np.float32]:
        return np.concatenate(list(self.features()))

    @property
    def images(self) -> int:
        """How many there are; 0 of statistics alone."""
        return 0 if self.reference.images is None else len(self.reference.images)


def measure_distribution(
    context: Context, network: FeatureNetwork, reference: Reference, weights: str
) -> tuple[list[Row], list[Row]]:
    """A row for each subject and one for two random halves of the reference; and, of a conditional teacher,
    rows by class."""
    target = Target(context, network, reference)
    kept = [_row(context, subject, network, target) for subject in subjects(context, weights)]
    if not context.first:
        return [], []
    rows = [found["row"] for found in kept]
    if target.images and "fd" in context.settings.metrics:
        rows.append(_halves_row(context, network, target))
    return rows, [row for found in kept for row in found["per_class"]]


def remove_parts(folder: Path) -> None:
    """Delete the features of samples, whose rows are measured; those of references are kept for the next."""
    for path in (folder / "rows").glob("*-parts-*"):
        if path.is_dir():
            shutil.rmtree(path)


def _row(context: Context, subject: Subject, network: FeatureNetwork, target: Target) -> dict[str, Any]:
    """A `row`, and rows `per_class` of a conditional teacher; kept in rows/."""
    settings = context.settings
    wanted = sorted(DISTRIBUTION & set(settings.metrics))
    identity = digest(
        [
            subject.identity,
            network.sha256,
            target.reference.sha256,
            context.archive.plan.classes,
            [settings.samples, settings.ranges, settings.seed, settings.batch_size, settings.edm_seeds],
            [wanted, settings.bootstrap],
        ]
    )
    name = "".join(letter if letter.isalnum() else "-" for letter in subject.name)
    if subject.name in settings.compared:
        # Paths of which the letters alone may be the same, or too many.
        name = f"{name[-80:]}-{digest(subject.name)[:8]}"
    path = context.out / "rows" / f"{name}-{subject.nfe}.json"
    kept = read_json_if_there(path)
    if isinstance(kept, dict) and kept.get("identity") == identity:
        return kept
    count = settings.samples * settings.ranges
    parts = part_ranges(count, settings.batch_size)
    folder = path.with_name(f"{path.stem}-parts-{identity[:16]}")
    compute = functools.partial(_sampled, context, subject.sampler, network)
    title = f"{network.metric} of the {subject.name}, {subject.nfe} evaluation{'s'[: subject.nfe > 1]}"
    with context.reporter.phase(title, count, "images") as advance:
        compute_parts(folder, parts, compute, advance, wait=context.first)
    if not context.first:
        return {}
    row, per_class = _measured(context, network, target, lambda: read_parts(folder, parts))
    kept = {
        "identity": identity,
        "row": {"name": subject.name, "nfe": subject.nfe, "samples": settings.samples, **row},
        "per_class": [{"name": subject.name, "nfe": subject.nfe, **of_class} for of_class in per_class],
    }
    context.check_owned()
    write_json(path, kept)
    return kept


def _sampled(context: Context, sampler: Sampler, network: FeatureNetwork, part: range) -> Outputs:
    """What the network says of the images from the noise of these numbers."""

    def batch_of(start: int, stop: int) -> torch.Tensor:
        # One batch shape for all, since another one changes the last bits.
        end = start + context.settings.batch_size
        images = sampler(context.noise(start, end), context.told(context.classes(start, end))).float()
        return quantised(images)

    return _outputs(context, network, part, batch_of)


def quantised(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as uint8, rounded as `to_uint8` does."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def _outputs(context: Context, network: FeatureNetwork, part: range, batch_of: BatchOf) -> Outputs:
    """Of a part's images, which `batch_of` gives in batches of one shape."""
    kept = network.judges or "inception_score" in context.settings.metrics
    features, logits = [], []
    for start in range(part.start, part.stop, context.settings.batch_size):
        context.check_stop()
        count = min(context.settings.batch_size, part.stop - start)
        seen, judged = network.outputs(batch_of(start, start + count))
        features.append(seen[:count].cpu().numpy())
        logits.append(judged[:count, : None if kept else 0].cpu().numpy())
    context.check_owned()
    return Outputs(np.concatenate(features), np.concatenate(logits))


def _measured(
    context: Context, network: FeatureNetwork, target: Target, parts: Callable[[], Iterator[Outputs]]
) -> tuple[Row, list[Row]]:
    """The numbers of a row from what the network said of its images, and those by class."""
    settings, count = context.settings, context.settings.samples
    row: Row = {}

    def features(number: int) -> Iterator[NDArray[np.float32]]:
        return (part.features for part in _slices(parts(), number * count, (number + 1) * count))

    if "fd" in settings.metrics:
        found = [
            frechet_distance(statistics(features(number)), target.statistics)
            for number in range(settings.ranges)
        ]
        row[network.metric] = min(found)
        if settings.ranges > 1:
            row["ranges"] = found
        if settings.bootstrap:
            row[f"{network.metric}_std"] = _bootstrap(context, lambda: features(0), target.statistics)
    if not network.judges and not DISTRIBUTION - {"fd"} & set(settings.metrics):
        return row, []
    first = list(_slices(parts(), 0, count))
    made = np.concatenate([part.features for part in first])
    logits = np.concatenate([part.logits for part in first])
    if "kid" in settings.metrics:
        row |= kernel_distance(made, target.all_features)
    if "inception_score" in settings.metrics:
        row |= inception_score(logits)
    if "precision_recall" in settings.metrics:
        row |= precision_recall(made, target.all_features)
    judged = None
    if network.judges:
        likely = torch.from_numpy(logits).softmax(dim=1).numpy()
        shares = np.bincount(likely.argmax(axis=1), minlength=likely.shape[1]) / len(likely)
        row["confident"] = float((likely.max(axis=1) > 0.9).mean())
        row["class_shares"] = shares.tolist()
        # It knows the ten digits: of other classes it can say nothing.
        if context.archive.plan.teacher["dataset"] == "digits":
            judged = likely.argmax(axis=1)
    asked = context.classes(0, count)
    if asked is None or not target.images:
        return row, []
    if judged is not None:
        row["as_asked"] = float((judged == asked).mean())
    return row, class_rows(
        network.metric,
        context.archive.plan.classes,
        asked,
        made,
        judged,
        target.all_features,
        target.labels,
    )


def _slices(parts: Iterator[Outputs], start: int, stop: int) -> Iterator[Outputs]:
    """What lies between two numbers of images."""
    first = 0
    for part in parts:
        here = slice(max(0, start - first), max(0, min(len(part.features), stop - first)))
        if here.start < here.stop:
            yield Outputs(part.features[here], part.logits[here])
        first += len(part.features)


def _bootstrap(
    context: Context, features: Callable[[], Iterator[NDArray[np.float32]]], target: Statistics
) -> float:
    """Standard deviation of the Frechet distance over samples drawn from the samples with replacement."""
    count = context.settings.samples
    found = []
    for number in range(context.settings.bootstrap):
        context.check_stop()
        positions = np.arange(number * count, (number + 1) * count)
        drawn = rng.uniform(context.settings.seed, "bootstrap", positions, 1)[:, 0]
        times = np.bincount((drawn * count).astype(np.int64), minlength=count)
        found.append(quick_frechet_distance(statistics(_repeated(features(), times)), target))
    return float(np.std(found, ddof=1))


def _repeated(
    blocks: Iterator[NDArray[np.float32]], times: NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    """Every feature as often as `times` (N,) says, in blocks."""
    first = 0
    for block in blocks:
        own = times[first : first + len(block)]
        if own.any():
            yield np.repeat(block, own, axis=0)
        first += len(block)


def _halves_row(context: Context, network: FeatureNetwork, target: Target) -> Row:
    """The distance between two random halves of the reference: the mean of some divisions."""
    count = target.images
    half = count // 2
    distances = []
    few_dimensions = next(target.features()).shape[1] < 1024
    for division in range(HALVINGS if few_dimensions else HALVINGS_IN_MANY_DIMENSIONS):
        order = rng.permutation(context.settings.seed, "halves", division, count)
        parts = (np.bincount(part, minlength=count) for part in (order[:half], order[half:]))
        distances.append(frechet_distance(*(statistics(_repeated(target.features(), own)) for own in parts)))
    return {
        "name": "two halves of the reference",
        "nfe": 0,
        "samples": half,
        network.metric: float(np.mean(distances)),
        "smallest": min(distances),
        "largest": max(distances),
    }


def _usable_labels(context: Context, reference: Reference) -> NDArray[np.int64] | None:
    """The classes of the reference images; None where they are not those of the teacher."""
    labels, label_dim = reference.labels, context.archive.plan.label_dim
    # Those of an archive are the teacher's, of which it may have some only.
    if labels is not None and reference.source != ARCHIVE and labels.max() + 1 != label_dim:
        context.reporter.line(
            f"{reference.source}: has {labels.max() + 1} classes, the teacher {label_dim}: the distance is "
            "not measured by class"
        )
        return None
    return labels
