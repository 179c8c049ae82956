"""hkdpipe trajectory: stored trajectories as a generator sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.options import (
    FOLDER,
    command_line,
    folder_or_url,
    place,
    work_options,
)
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary

if TYPE_CHECKING:
    from hkdpipe.pipeline.stage_calls import Work

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
    session: Session,
) -> None:
    """Show the end as seen from every stored state, and the start's observables evolved part of the way.

    The latter are outside of what the decoder was trained on, and marked so.

    \b
      hkdpipe trajectory --run-dir runs/digits --out trajectory
      hkdpipe trajectory --model runs/digits/export --archive archive --index 7 --out trajectory
    """
    run = RunDir(run_dir) if run_dir else None
    model = place("--model", model, run.export if run else None)
    states = place("--archive", archive, run.trajectories if run else None)

    def call(work: Work) -> Summary:
        from hkdpipe.stages.whitebox.trajectory import trajectory

        return trajectory(model, states, out, indices or SHOWN, device=work.device, stop=work.stop)

    summary = session.perform("trajectory", out, call)
    session.report(summary, command_line("analyze", "--model", model, "--out", out / "analysis"))
