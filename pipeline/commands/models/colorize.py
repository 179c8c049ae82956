"""hkdpipe colorize: the colours of pictures of which the luminance is known, made up by a one-step model."""

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
    session: Session,
    **settings: Any,
) -> None:
    """Make up the colours of grey pictures, several times; of coloured ones the luminance is used, and kept.

    \b
      hkdpipe colorize --model runs/digits-color/export --image digits-color:7 --out colorized
      hkdpipe colorize --model runs/digits-color/export --image my-digits --count 8 --out colorized
    """

    def call(work: Work) -> Summary:
        from hkdpipe.stages.whitebox.completions import colorize

        wanted = CompletionSettings(**settings)
        return colorize(model, image, out, wanted, class_number=class_number, **work.how)

    summary = session.perform("colorize", out, call)
    again = ("--model", model, "--image", summary.data["first_picture"])
    following = command_line("inpaint", *again, "--out", out / "inpainted")
    session.report(summary, following)
