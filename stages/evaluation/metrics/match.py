"""How well a student follows its teacher from the stored states of held-out trajectories."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hkdpipe.stages.settings.metrics import Column, Metric, Row, register

if TYPE_CHECKING:
    from torch import Tensor

    from hkdpipe.stages.evaluation.context import Context
    from hkdpipe.trainer.losses.perceptual import Distance
    from hkdpipe.trainer.students.student import Student


def match_to_teacher(context: Context) -> dict[str, Any]:
    """How well the student maps the stored states of held-out trajectories to their end, with its operators
    and with A = 0, and how alike the images are that it makes of one trajectory.

    `match`: a row for each state: errors against the trajectories' ends, `deviation` from the image decoded
    from the start, and skill_H, the Koopman skill of the level whose tensors are H pixels high.
    `consistency`: the `variance` of the images decoded from one trajectory's states, over the states.
    `per_class`, of a conditional teacher: the error from the start for each class.
    """
    import torch

    from hkdpipe.stages.evaluation.by_class import match_rows
    from hkdpipe.trainer.whitebox import koopman_skill as skills

    sigmas = context.archive.sigmas
    held_out = range(min(context.settings.matched, context.validation))
    stored = context.archive.read(held_out, range(len(sigmas)))
    states = torch.from_numpy(stored).float().to(context.device)
    ends = states[:, -1]
    classes = context.archive.plan.labels(held_out)
    labels = context.told(classes)
    perceptual = _perceptual(context)
    students: dict[str, Student] = {"": context.student}
    if skills.has_operator(context.student):
        students[skills.WITHOUT_EVOLUTION] = skills.without_evolution(context.student)
    over_states = {suffix: _OverStates() for suffix in students if context.predicted > 1}
    rows: list[Row] = []
    by_class: list[Row] = []
    with (
        context.reporter.phase("match to the teacher", context.predicted, "times") as advance,
        torch.inference_mode(),
    ):
        for index, sigma in enumerate(sigmas[: context.predicted].tolist()):
            context.check_stop()
            row = {"state": index, "sigma": sigma}
            levels = torch.full((len(states),), sigma, device=context.device)
            for suffix, student in students.items():
                images = student.predict(states[:, index], levels, labels).float()
                error = ((images - ends) ** 2).mean(dim=(1, 2, 3))
                found = {
                    "mse": float(error.mean()),
                    "psnr": float((10 * torch.log10(4 / error)).mean()),
                    **{name: float(distance(images, ends).mean()) for name, distance in perceptual.items()},
                }
                if suffix in over_states:
                    found["deviation"] = over_states[suffix].add(images)
                row |= {f"{name}{suffix}": value for name, value in found.items()}
                if index == 0 and classes is not None and not suffix:
                    of_classes = match_rows(classes, error.cpu().numpy())
                    by_class = [{"name": "student", "nfe": 1, **of_class} for of_class in of_classes]
            rows.append(row)
            advance(index + 1)
    if skills.has_operator(context.student):
        context.check_stop()
        skill = skills.koopman_skill(context.student, states[:, :-1], sigmas[:-1].tolist(), labels)
        for level, values in skill.items():
            # The last state has none: it is what the others are led to.
            for row, value in zip(rows, values, strict=False):
                row[f"skill_{level}"] = value
    variances = {f"variance{suffix}": found.variance for suffix, found in over_states.items()}
    return {"match": rows, "consistency": variances, "per_class": by_class}


class _OverStates:
    """How the images that a student makes of one trajectory differ, state by state."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, images: Tensor) -> float:
        """The mean squared deviation of images (N, C, H, W) from those that came first."""
        exact = images.double()
        if not self._count:
            self._first = exact
            self._sum = self._squares = exact.new_zeros(exact.shape)
        deviation = exact - self._first
        self._count += 1
        self._sum = self._sum + deviation
        self._squares = self._squares + deviation**2
        return float((deviation**2).mean())

    @property
    def variance(self) -> float:
        """Of a pixel over the states, the mean over pixels and trajectories."""
        return float((self._squares / self._count - (self._sum / self._count) ** 2).mean())


def _perceptual(context: Context) -> dict[str, Distance]:
    """Not the loss's: of digits in the metric's classifier, and LPIPS where its weights are at hand."""
    from hkdpipe.trainer.losses.perceptual import lpips_at_hand, normalised_difference
    from hkdpipe.trainer.metrics.digits_classifier import DIGITS, load_classifier

    found: dict[str, Distance] = {}
    if context.student.image_shape in DIGITS:
        layers = load_classifier("digits-classifier-metric").to(context.device).features
        found["perceptual"] = lambda one, other: normalised_difference(layers(one), layers(other))
    lpips = lpips_at_hand(context.settings.lpips, context.device)
    if lpips is not None and context.student.image_shape[0] in (1, 3):
        found["lpips"] = lpips
    return found


def _card(rows: list[Row]) -> str:
    return (
        "Difference from the teacher's images for the same noise, on held-out trajectories: root mean square "
        f"{math.sqrt(rows[0]['mse']):.4f}, in a range from -1 to 1."
    )


def _curve(name: str, title: str) -> Column:
    return Column(name, title, better="lower", shown=("curve",), label=_student)


def _student(ending: str) -> str:
    return "student with A = 0" if ending else "student"


_EXACT = "Koopman skill by level: 1 is exact, 0 is no evolution"
_COLUMNS = (
    Column("state", type=int),
    Column("sigma", shown=("noise level",)),
    Column("psnr", "PSNR to the teacher", "{:.1f}", "dB", "higher", ("key figure",), "same noise, held out"),
    Column("psnr_*"),
    _curve("mse*", "Mean squared error against the end"),
    _curve("perceptual*", "Perceptual distance to the end"),
    _curve("lpips*", "LPIPS to the end"),
    _curve("deviation*", "Mean squared deviation from the image decoded from the start"),
    Column("skill_*", _EXACT, better="higher", shown=("curve",), label="{0}×{0}".format),
    Column(
        "skill_*", "Koopman skill", "{:.2f}", shown=("key figure",), note="from the start, coarsest level"
    ),
    Column(
        "variance*", "Variance over the states of a trajectory, mean over pixels", "{:.2e}", label=_student
    ),
)

register(
    Metric(
        "match",
        "match to the teacher on held-out trajectories",
        needs=("trajectories",),
        columns=_COLUMNS,
        tables=match_to_teacher,
        card=_card,
        empty={"match": [], "consistency": {}},
        section="Along the trajectory",
        text="What the student makes in one step of every stored state of held-out trajectories, compared "
        "with their ends. The curves begin at noise and end nearly at the image.",
    )
)
