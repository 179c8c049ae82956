"""hkdpipe train: stage 2."""

from __future__ import annotations

from pathlib import Path

import click

from hkdpipe.pipeline import stage_calls as stages
from hkdpipe.pipeline.options import (
    FOLDER,
    Given,
    command_line,
    configuration_options,
    folder_or_url,
    next_command,
    one_of_run_dir_and_out,
    opened,
    place,
    teacher_option,
    work_options,
)
from hkdpipe.pipeline.progress import first_process
from hkdpipe.pipeline.session import Session


@click.command("train", short_help="Stage 2: train the generator.")
@teacher_option
@click.option(
    "--archive",
    type=folder_or_url,
    metavar="ARCHIVE",
    help="Archive to learn from, if not the run's own: a folder, or a URL such as s3://bucket/archive.",
)
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write, instead of a run directory.")
@click.option("--init-from", metavar="MODEL", help="Checkpoint or export to start from: training.init_from.")
@click.option(
    "--method",
    metavar="METHOD",
    help="How the student learns: training.method, explained by `hkdpipe config --explain`.",
)
@configuration_options
@work_options
def command(
    given: Given,
    teacher: str | None,
    archive: Path | str | None,
    out: Path | None,
    init_from: str | None,
    method: str | None,
    session: Session,
) -> None:
    """Stage 2: train the one-step generator on an archive.

    \b
    In a run directory:
      hkdpipe train --run-dir runs/digits
    From an archive elsewhere:
      hkdpipe train --archive archive --out training --teacher my-teacher --set training.budget=2000000
    From an object store, through the cache in $HKDPIPE_CACHE:
      hkdpipe train --archive s3://bucket/archive --out training --teacher my-teacher
    On four GPUs of a machine:
      torchrun --no-python --nproc-per-node 4 hkdpipe train --run-dir runs/digits
    """
    one_of_run_dir_and_out(given, out)
    if given.run_dir is None:
        place("--archive", archive, None)
    given = given.override("teacher.source", teacher).override("training.method", method)
    given = given.override("training.init_from", init_from)
    with opened(given, first=first_process()) as (run, config), session.working() as work:
        archive = place("--archive", archive, run.trajectories if run else None)
        folder = place("--out", out, run.training if run else None)
        summary = stages.train(config, archive, folder, work, run)
        following = command_line(
            *("evaluate", "--checkpoint", folder / "checkpoints", "--archive", archive),
            *("--teacher", config.teacher.source, "--out", "EVALUATION"),
        )
        following = next_command("evaluate", run) if run is not None else following
        session.report(summary, following)
