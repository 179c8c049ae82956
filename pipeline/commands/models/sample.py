"""hkdpipe sample: pictures from a trained generator in one step, or from a teacher by its sampler."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline.options import FOLDER, seed_option, work_options
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.settings.teacher_sampling import TeacherSampling
from hkdpipe.stages.shared.reporting import Summary

if TYPE_CHECKING:
    from hkdpipe.pipeline.stage_calls import Work


class _Number(click.FloatRange):
    """A number of at least 0; infinite only where `max` is."""

    def __init__(self, max: float | None = None) -> None:
        super().__init__(min=0, max=max)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if math.isnan(number) or (math.isinf(number) and self.max is None):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@click.command("sample", short_help="Samples of a model or of a teacher.")
@click.option(
    "--model",
    type=FOLDER,
    metavar="PATH",
    help="An export, its model.onnx, or a checkpoint: samples in one step, or in --steps.",
)
@click.option(
    "--teacher",
    metavar="TEACHER",
    help="'digits', a teacher's folder, or EDM's .pkl, .pt or .pth: samples of its own sampler.",
)
@click.option(
    "--out", type=FOLDER, metavar="DIR", required=True, help="Folder for the PNG grid and the .npz."
)
@click.option("--count", type=click.IntRange(min=1), default=64, show_default=True, help="Pictures.")
@seed_option
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    help="Of a model: network evaluations (default 1). Of the teacher's sampler: steps (default 18).",
)
@click.option(
    "--solver",
    type=click.Choice(["heun", "euler"]),
    help="Of the teacher's: heun (default; 2 * steps - 1 evaluations) or euler (DDIM; as many as steps).",
)
@click.option("--churn", type=_Number(), help="Of the teacher's sampler: EDM's S_churn (default 0: none).")
@click.option("--s-min", type=_Number(), help="Lowest noise level with churn (default 0).")
@click.option("--s-max", type=_Number(max=math.inf), help="Highest noise level with churn (default inf).")
@click.option("--s-noise", type=_Number(), help="Deviation of the noise that churn adds (default 1).")
@click.option(
    "--edm-seeds", is_flag=True, default=None, help="Noise as EDM draws it: image i from torch's seed + i."
)
@click.option(
    "--class",
    "class_number",
    type=int,
    metavar="NUMBER",
    help="Class of all pictures, if the model knows classes; without it, each has one drawn by the seed.",
)
@work_options
def command(
    model: Path | None,
    teacher: str | None,
    out: Path,
    count: int,
    seed: int,
    class_number: int | None,
    session: Session,
    steps: int | None,
    **sampling: Any,
) -> None:
    """Samples from a checkpoint or an export in one step or several, or a teacher's in many.

    \b
      hkdpipe sample --model runs/digits/export --count 64 --out samples
      hkdpipe sample --model runs/digits/export/model.onnx --count 64 --out samples
      hkdpipe sample --model runs/digits/export --steps 4 --out samples
      hkdpipe sample --model conditional/export --class 3 --out threes
      hkdpipe sample --teacher digits --steps 18 --count 64 --out samples
      hkdpipe sample --teacher my-teacher --steps 256 --churn 40 --s-min 0.05 --s-max 50 --s-noise 1.003 \\
          --out samples
    """
    given = {name: value for name, value in sampling.items() if value is not None}
    if (model is None) == (teacher is None):
        raise UsageError("--model or --teacher: give one of them")
    if model is not None and given:
        raise UsageError(f"{_option(min(given))}: accepted with --teacher only, for its sampler")
    if teacher is not None and steps == 1:
        raise click.BadParameter("1 is not in the range x>=2.", param_hint="'--steps'")
    if not given.get("churn"):
        for name in sorted({"s_min", "s_max", "s_noise"} & set(given)):
            raise UsageError(f"{_option(name)}: accepted with --churn above 0 only")

    def call(work: Work) -> Summary:
        from hkdpipe.stages.sampling.sample import sample, sample_teacher

        how: Any = {"class_number": class_number, **work.how}
        if model is not None:
            return sample(model, out, count, seed, steps=steps or 1, **how)
        assert teacher is not None
        of_teacher = TeacherSampling(**given) if steps is None else TeacherSampling(steps, **given)
        return sample_teacher(teacher, out, count, seed, of_teacher, **how)

    session.report(session.perform("sample", out, call))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
