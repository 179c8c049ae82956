"""How near samples are to real images: the Frechet distance and its relatives, row by row.

A row is kept in rows/ under what it depends on.
"""

import functools
import shutil
from pathlib import Path
from typing import Any

import torch

from hkdpipe.manifests.ground.atomic_files import read_json_if_there, write_json
from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.stages.evaluation.by_class import class_rows
from hkdpipe.stages.evaluation.context import Context, Sampler, sampler_of
from hkdpipe.stages.evaluation.feature_parts import Outputs, compute_parts, part_ranges, read_parts
from hkdpipe.stages.evaluation.metrics import fd
from hkdpipe.stages.evaluation.reference import Reference
from hkdpipe.stages.evaluation.seen import Seen, Subject, Target, network_outputs, quantised
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.settings.metrics import Metric, Need, Row, metrics
from hkdpipe.trainer.metrics.feature_networks import FeatureNetwork
from hkdpipe.trainer.students.loading import load_model, saved_model
from hkdpipe.trainer.teachers.sampler import evaluations


def subjects(context: Context, weights: str) -> list[Subject]:
    """The student, of a digest of `weights`; what the metrics add; the teacher by its steps; other models."""
    settings, teacher = context.settings, context.teacher.sha256
    found = [
        Subject(name, nfe, sampler, digest([weights, nfe]) if nfe > 1 else weights)
        for name, nfe, sampler in context.students()
    ]
    for metric in settings.chosen:
        found += metric.subjects(context, weights) if metric.subjects else []
    asked = [("teacher", context.solver, steps) for steps in settings.teacher_steps]
    asked += [("teacher, first order", "euler", steps) for steps in settings.first_order_steps]
    for name, solver, steps in asked:
        sampler = functools.partial(context.teacher_images, steps=steps, solver=solver)
        identity = digest([teacher, context.archive.plan.sampler, solver, steps])
        found.append(Subject(name, evaluations(steps, solver), sampler, identity))
    for path in settings.compared:
        model = load_model(path, context.device)
        theirs, own = ((one.image_shape, one.arch.label_dim) for one in (model, context.student))
        if theirs != own:
            made = (
                f": {path} makes images of {theirs[0]} of {theirs[1]} classes; accepted: as the student does"
            )
            raise WrongValue(Name("compared", EvaluationSettings), made)
        found.append(Subject(path, 1, sampler_of(model.folded()), saved_model(Path(path), "ema").sha256))
    return found


def measure_distribution(
    context: Context, network: FeatureNetwork, reference: Reference, weights: str
) -> tuple[list[Row], list[Row]]:
    """A row for each subject and for two random halves of the reference; rows by class, if there are any."""
    target = Target(context, network, reference)
    kept = [_row(context, subject, network, target) for subject in subjects(context, weights)]
    if not context.first:
        return [], []
    rows = [found["row"] for found in kept]
    if target.images and fd.METRIC in context.settings.chosen:
        rows.append(fd.halves_row(context, network.space.metric, target))
    return rows, [row for found in kept for row in found["per_class"]]


def remove_parts(folder: Path) -> None:
    """Delete the features of samples, whose rows are measured; those of references are kept for the next."""
    for path in (folder / "rows").glob("*-parts-*"):
        if path.is_dir():
            shutil.rmtree(path)


def _row(context: Context, subject: Subject, network: FeatureNetwork, target: Target) -> dict[str, Any]:
    """A `row`, and rows `per_class` of a conditional teacher; kept in rows/."""
    settings, wanted = context.settings, _wanted(context.settings, network)
    own = settings.newer([key for metric in wanted for key in metric.settings])
    identity = digest(
        [
            subject.identity,
            network.sha256,
            target.reference.sha256,
            context.archive.plan.classes,
            [settings.samples, settings.ranges, settings.seed, settings.batch_size, settings.edm_seeds],
            [sorted(metric.name for metric in wanted if metric.chosen), settings.bootstrap],
            *([own] if own else []),
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
    needs = {need for metric in wanted for need in metric.needs}
    compute = functools.partial(_sampled, context, subject.sampler, network, needs)
    title = f"{network.space.metric} of the {subject.name}, {subject.nfe} evaluation{'s'[: subject.nfe > 1]}"
    with context.reporter.phase(title, count, "images") as advance:
        compute_parts(folder, parts, compute, advance, wait=context.first)
    if not context.first:
        return {}
    seen = Seen(context, network, target, lambda: read_parts(folder, parts))
    about: Row = {"name": subject.name, "nfe": subject.nfe}
    kept = {"identity": identity, "row": {**about, "samples": settings.samples}}
    for metric in wanted:
        assert metric.row is not None
        kept["row"] |= metric.checked(metric.row(seen))
    kept["per_class"] = [{**about, **of_class} for of_class in _by_class(seen)]
    context.check_owned()
    write_json(path, kept)
    return kept


def _wanted(settings: EvaluationSettings, network: FeatureNetwork) -> list[Metric]:
    """The metrics of a row: those asked for, and those that are always measured."""
    always = [metric for metric in metrics().values() if not metric.chosen]
    known = [metric for metric in (*settings.chosen, *always) if metric.row]
    return [metric for metric in known if network.space.judges or "class logits" not in metric.needs]


def _by_class(seen: Seen) -> list[Row]:
    """Of a conditional teacher, where the reference's classes are known and its features at hand."""
    asked, target = seen.asked, seen.target
    if asked is None or not target.images or not seen.in_memory:
        return []
    return class_rows(
        seen.network.space.metric,
        seen.context.archive.plan.classes,
        asked,
        seen.first.features,
        seen.judged,
        target.all_features,
        target.labels,
    )


def _sampled(
    context: Context, sampler: Sampler, network: FeatureNetwork, needs: set[Need], part: range
) -> Outputs:
    """What the network says of the images from the noise of these numbers."""

    def batch_of(start: int, stop: int) -> torch.Tensor:
        # One batch shape for all, since another one changes the last bits.
        end = start + context.settings.batch_size
        return quantised(sampler(*context.given(start, end)).float())

    return network_outputs(context, network, part, batch_of, needs)
