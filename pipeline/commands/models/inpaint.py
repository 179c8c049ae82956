"""hkdpipe inpaint: what a mask hides of pictures, made up by a one-step model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hkdpipe.pipeline.options import (
    class_option,
    command_line,
    completion_options,
    image_option,
    model_option,
    out_option,
    work_options,
)
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.settings.completion_settings import CompletionSettings
from hkdpipe.stages.shared.reporting import Summary


@click.command("inpaint", short_help="Make up what a mask hides of pictures.")
@model_option
@image_option
@click.option(
    "--mask",
    metavar="MASK",
    default="lower-half",
    show_default=True,
    help="What to paint: lower-half, upper-half, left-half, right-half, lower-left, center, all, or a grey "
    "picture, whose white is painted.",
)
@out_option
@completion_options
@class_option
@work_options
def command(
    model: Path,
    image: str,
    mask: str,
    out: Path,
    class_number: int | None,
    session: Session,
    **settings: Any,
) -> None:
    """Make up what a mask hides of pictures, several times; the other pixels are kept exactly.

    \b
      hkdpipe inpaint --model runs/digits/export --image digits:7 --out inpainted
      hkdpipe inpaint --model runs/digits/export --image my-digits --mask center --count 8 --out inpainted
    """

    def call(work: Work) -> Summary:
        from hkdpipe.stages.whitebox.completions import inpaint

        wanted = CompletionSettings(**settings)
        return inpaint(model, image, mask, out, wanted, class_number=class_number, **work.how)

    summary = session.perform("inpaint", out, call)
    again = ("--model", model, "--image", summary.data["first_picture"], "--reference", "IMAGE")
    following = command_line("edit", *again, "--out", out / "edited")
    session.report(summary, following)
