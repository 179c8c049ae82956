"""hkdpipe inpaint: what a mask hides of pictures, made up by a one-step model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hkdpipe.pipeline.options import (
    class_option,
    command_line,
    completion_options,
    image_option,
    model_option,
    one_process_only,
    out_option,
    work_options,
)
from hkdpipe.pipeline.progress import report
from hkdpipe.pipeline.stage_calls import working
from hkdpipe.stages.settings.completion_settings import CompletionSettings


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
    device: str,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make up what a mask hides of pictures, several times; the other pixels are kept exactly.

    \b
      hkdpipe inpaint --model runs/digits/export --image digits:7 --out inpainted
      hkdpipe inpaint --model runs/digits/export --image my-digits --mask center --count 8 --out inpainted
    """
    one_process_only("inpaint")
    with working(device, quiet) as work:
        from hkdpipe.stages.whitebox.completions import inpaint

        how: Any = {"device": work.device, "reporter": work.reporter, "stop": work.stop}
        wanted = CompletionSettings(**settings)
        summary = work.perform(
            "inpaint",
            out,
            None,
            lambda: inpaint(model, image, mask, out, wanted, class_number=class_number, **how),
        )
        again = ("--model", model, "--image", summary.data["first_picture"], "--reference", "IMAGE")
        following = command_line("edit", *again, "--out", out / "edited")
        report(replace(summary, next_commands=(following,)), quiet, as_json)
