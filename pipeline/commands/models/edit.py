"""hkdpipe edit: a spectral band of a reference mixed into an image."""

from __future__ import annotations

from pathlib import Path

import click

from hkdpipe.pipeline.options import (
    class_option,
    command_line,
    image_option,
    model_option,
    out_option,
    work_options,
)
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary


@click.command("edit", short_help="Mix a spectral band of a reference into an image.")
@model_option
@image_option
@click.option("--reference", metavar="IMAGE", required=True, help="What is mixed in: as --image.")
@out_option
@click.option(
    "--ratio",
    "ratios",
    type=click.FloatRange(0, 1),
    multiple=True,
    default=(0.1, 0.2, 0.5, 0.8, 0.9),
    show_default=True,
    help="How much of the band is the reference's; may be repeated.",
)
@click.option(
    "--band",
    default="smallest",
    show_default=True,
    metavar="BAND",
    help="What is mixed: smallest, middle or largest third of alpha, all, or its quantiles as in 0.2:0.5.",
)
@click.option(
    "--time",
    type=float,
    metavar="SIGMA",
    help="Noise level at which it is mixed in (default: the midpoint of Karras' time).",
)
@click.option(
    "--mask",
    default="lower-left",
    show_default=True,
    metavar="MASK",
    help="Where: lower-half, upper-half, left-half, right-half, lower-left, center, all, or a grey picture, "
    "white for wholly.",
)
@click.option(
    "--all-bands/--no-all-bands",
    default=True,
    show_default=True,
    help="Beside the edit the same of all bands, the baseline that knows no frequencies.",
)
@click.option("--teacher", metavar="TEACHER", help="Invert pictures by this teacher's ODE, not the encoder.")
@class_option
@work_options
def command(
    model: Path,
    image: str,
    reference: str,
    out: Path,
    ratios: tuple[float, ...],
    band: str,
    time: float | None,
    mask: str,
    all_bands: bool,
    teacher: str | None,
    class_number: int | None,
    session: Session,
) -> None:
    """Mix a spectral band of a reference into an image, inside a mask, by several ratios.

    \b
      hkdpipe edit --model runs/digits/export --image 0:3 --reference 0:5 --out edited
      hkdpipe edit --model runs/digits/export --image digits:7 --reference digits:8 --teacher digits \\
          --band largest --mask all --out edited
    """

    def call(work: Work) -> Summary:
        from hkdpipe.stages.whitebox.edit import Edit, edit
        from hkdpipe.trainer.whitebox.bands import parse_band

        wanted = Edit(ratios, parse_band(band), mask, time, all_bands)
        how = {"teacher": teacher, "class_number": class_number, **work.how}
        return edit(model, image, reference, out, wanted, **how)

    summary = session.perform("edit", out, call)
    following = command_line("inpaint", "--model", model, "--image", image, "--out", out / "inpainted")
    session.report(summary, following)
