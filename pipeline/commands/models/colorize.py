"""hkdpipe colorize: the colours of pictures of which the luminance is known, made up by a one-step model."""

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


@click.command("colorize", short_help="Make up the colours of pictures.")
@model_option
@image_option
@out_option
@completion_options
@class_option
@work_options
def command(
    model: Path,
    image: str,
    out: Path,
    class_number: int | None,
    device: str,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make up the colours of grey pictures, several times; of coloured ones the luminance is used, and kept.

    \b
      hkdpipe colorize --model runs/digits-color/export --image digits-color:7 --out colorized
      hkdpipe colorize --model runs/digits-color/export --image my-digits --count 8 --out colorized
    """
    one_process_only("colorize")
    with working(device, quiet) as work:
        from hkdpipe.stages.whitebox.completions import colorize

        how: Any = {"device": work.device, "reporter": work.reporter, "stop": work.stop}
        wanted = CompletionSettings(**settings)
        summary = work.perform(
            "colorize",
            out,
            None,
            lambda: colorize(model, image, out, wanted, class_number=class_number, **how),
        )
        again = ("--model", model, "--image", summary.data["first_picture"])
        following = command_line("inpaint", *again, "--out", out / "inpainted")
        report(replace(summary, next_commands=(following,)), quiet, as_json)
