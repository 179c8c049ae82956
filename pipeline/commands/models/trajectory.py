"""hkdpipe trajectory: stored trajectories as a generator sees them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.options import (
    FOLDER,
    command_line,
    folder_or_url,
    one_process_only,
    place,
    work_options,
)
from hkdpipe.pipeline.progress import report
from hkdpipe.pipeline.stage_calls import working

SHOWN = (0, 1, 2, 3)


@click.command("trajectory", short_help="Trajectories as a model sees them.")
@click.option("--model", type=FOLDER, metavar="DIR", help="An export or a checkpoint of hkd.")
@click.option("--archive", type=folder_or_url, metavar="ARCHIVE", help="Trajectories: a folder or a URL.")
@click.option("--run-dir", type=FOLDER, metavar="DIR", help="A run, whose export and archive are taken.")
@click.option("--out", type=FOLDER, metavar="DIR", required=True, help="Folder for PNG, GIF and WebP.")
@click.option(
    "--index",
    "indices",
    type=click.IntRange(min=0),
    multiple=True,
    help="Number of a trajectory; may be repeated (default: the first four).",
)
@work_options
def command(
    model: Path | None,
    archive: Path | str | None,
    run_dir: Path | None,
    out: Path,
    indices: tuple[int, ...],
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show the end as seen from every stored state, and the start's observables evolved part of the way.

    The latter are outside of what the decoder was trained on, and marked so.

    \b
      hkdpipe trajectory --run-dir runs/digits --out trajectory
      hkdpipe trajectory --model runs/digits/export --archive archive --index 7 --out trajectory
    """
    one_process_only("trajectory")
    run = RunDir(run_dir) if run_dir else None
    model = place("--model", model, run.export if run else None)
    states = place("--archive", archive, run.trajectories if run else None)
    with working(device, quiet) as work:
        from hkdpipe.stages.whitebox.trajectory import trajectory

        how: Any = {"device": work.device, "stop": work.stop}
        shown = indices or SHOWN
        summary = work.perform("trajectory", out, None, lambda: trajectory(model, states, out, shown, **how))
        following = command_line("analyze", "--model", model, "--out", out / "analysis")
        report(replace(summary, next_commands=(following,)), quiet, as_json)
