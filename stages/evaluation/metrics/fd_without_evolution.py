"""A row of the student with A = 0 beside the student's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.stages.evaluation.metrics import fd
from hkdpipe.stages.settings.metrics import Metric, register

if TYPE_CHECKING:
    from hkdpipe.stages.evaluation.context import Context
    from hkdpipe.stages.evaluation.seen import Subject
    from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings


def _subjects(context: Context, weights: str) -> list[Subject]:
    from hkdpipe.stages.evaluation.context import sampler_of
    from hkdpipe.stages.evaluation.seen import Subject
    from hkdpipe.trainer.whitebox.koopman_skill import has_operator, without_evolution

    if has_operator(context.student):
        idle = sampler_of(without_evolution(context.student).folded())
        return [Subject("student, A = 0", 1, idle, digest([weights, "A = 0"]))]
    if context.first:
        context.reporter.line("the student with A = 0: skipped, as it has no operator")
    return []


def _check(settings: EvaluationSettings) -> None:
    if fd.METRIC.name not in settings.metrics:
        accepted = f"'{METRIC.name}' beside '{fd.METRIC.name}'"
        raise WrongValue(
            Name("metrics", type(settings)), f": got {list(settings.metrics)}; accepted: {accepted}"
        )


METRIC = register(
    Metric(
        "fd_without_evolution",
        "the Fréchet distance of a student with A = 0, too",
        needs=("features",),
        subjects=_subjects,
        check=_check,
    )
)
