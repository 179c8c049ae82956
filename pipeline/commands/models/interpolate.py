"""hkdpipe interpolate: pictures between two of a generator's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkdpipe.pipeline.options import (
    FOLDER,
    command_line,
    folder_or_url,
    model_option,
    seed_option,
    work_options,
)
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary

if TYPE_CHECKING:
    from hkdpipe.pipeline.stage_calls import Work

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))


@click.command("interpolate", short_help="Pictures between two, by noise and latents.")
@model_option
@click.option("--out", type=FOLDER, metavar="DIR", required=True, help="Folder for PNG, GIF and WebP.")
@click.option(
    "--between",
    "pairs",
    type=(click.IntRange(min=0), click.IntRange(min=0)),
    multiple=True,
    metavar="A B",
    help="Numbers of two images of the seed, or of two trajectories of --archive; may be repeated "
    "(default: four pairs).",
)
@click.option("--steps", type=click.IntRange(min=2), default=9, show_default=True, help="Images of a pair.")
@seed_option
@click.option("--archive", type=folder_or_url, metavar="ARCHIVE", help="Trajectories: a folder or a URL.")
@click.option(
    "--time",
    type=float,
    metavar="SIGMA",
    help="Noise level of the archive's states whose latents are mixed (default: the start).",
)
@work_options
def command(
    model: Path,
    out: Path,
    pairs: tuple[tuple[int, int], ...],
    steps: int,
    seed: int,
    archive: Path | str | None,
    time: float | None,
    session: Session,
) -> None:
    """Go from one image to another: spherically between their noises, linearly between their latents.

    \b
      hkdpipe interpolate --model runs/digits/export --between 0 1 --out between
      hkdpipe interpolate --model runs/digits/export --archive runs/digits/trajectories --time 1 --out between
    """
    chosen = pairs or PAIRS

    def call(work: Work) -> Summary:
        from hkdpipe.stages.whitebox.trajectory import interpolate

        how: Any = {"archive": archive, "time": time, "device": work.device, "stop": work.stop}
        return interpolate(model, out, chosen, seed, steps, **how)

    summary = session.perform("interpolate", out, call)
    source = ("--archive", archive) if archive is not None else ("--seed", seed)
    more = ("--between", *chosen[0], "--steps", 2 * steps, "--out", out)
    session.report(summary, command_line("interpolate", "--model", model, *source, *more))
