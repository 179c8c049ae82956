"""hkdpipe sample: pictures from a trained generator, in one step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.pipeline.options import FOLDER, one_process_only, work_options
from hkdpipe.pipeline.progress import report
from hkdpipe.pipeline.work import working

if TYPE_CHECKING:
    from hkdpipe.stages.reporting import Summary


@click.command("sample", short_help="One-step samples of a model.")
@click.option("--model", type=FOLDER, metavar="DIR", required=True, help="An export or a checkpoint.")
@click.option(
    "--out", type=FOLDER, metavar="DIR", required=True, help="Folder for the PNG grid and the .npz."
)
@click.option("--count", type=click.IntRange(min=1), default=64, show_default=True, help="Pictures.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the noise."
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
    model: Path,
    out: Path,
    count: int,
    seed: int,
    class_number: int | None,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """One-step samples from a checkpoint or an export.

    \b
      hkdpipe sample --model runs/digits/export --count 64 --out samples
      hkdpipe sample --model conditional/export --class 3 --out threes
    """
    one_process_only("sample")
    with working(device, quiet) as work:
        from hkdpipe.stages.sample import sample

        def call() -> Summary:
            return sample(
                model,
                out,
                count,
                seed,
                class_number=class_number,
                device=work.device,
                reporter=work.reporter,
                stop=work.stop,
            )

        report(work.perform("sample", out, None, call), quiet, as_json)
