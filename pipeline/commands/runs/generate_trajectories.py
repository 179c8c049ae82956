"""hkdpipe generate-trajectories: stage 1."""

from __future__ import annotations

from pathlib import Path

import click

from hkdpipe.pipeline import stage_calls as stages
from hkdpipe.pipeline.options import (
    FOLDER,
    Given,
    command_line,
    configuration_options,
    next_command,
    one_of_run_dir_and_out,
    opened,
    place,
    teacher_option,
    work_options,
    worker_of,
)
from hkdpipe.pipeline.session import Session


@click.command("generate-trajectories", short_help="Stage 1: an archive of trajectories.")
@teacher_option
@click.option("--out", type=FOLDER, metavar="ARCHIVE", help="Archive to write, instead of a run directory.")
@click.option("--format", "form", metavar="FORM", help="zarr or webdataset: generation.format.")
@click.option(
    "--worker",
    metavar="I/N",
    help="One of N workers on one archive, I from 0; by default as SLURM's array, srun or torchrun say.",
)
@click.option(
    "--wait",
    is_flag=True,
    help="Stay until the archive is complete: make the shards of other workers, should they vanish.",
)
@configuration_options
@work_options
def command(
    given: Given,
    teacher: str | None,
    out: Path | None,
    form: str | None,
    worker: str | None,
    wait: bool,
    session: Session,
) -> None:
    """Stage 1: an archive of the teacher's deterministic trajectories.

    \b
    In a run directory:
      hkdpipe generate-trajectories --preset digits --run-dir runs/digits
    As an archive of its own:
      hkdpipe generate-trajectories --teacher my-teacher --out archive --set generation.count=50000
    By several workers, of any number, at any time, on any machine that sees the folder:
      hkdpipe generate-trajectories --run-dir runs/digits --worker 0/2 &
      hkdpipe generate-trajectories --run-dir runs/digits --worker 1/2
      torchrun --no-python --nproc-per-node gpu hkdpipe generate-trajectories --run-dir runs/digits
    """
    one_of_many = worker_of(worker)
    one_of_run_dir_and_out(given, out)
    given = given.override("teacher.source", teacher).override("generation.format", form)
    with opened(given, True, shared=one_of_many.count > 1) as (run, config), session.working() as work:
        archive = place("--out", out, run.trajectories if run else None)
        # One of several workers does not know how the stage as a whole began and ended.
        recorded_in = run if one_of_many.count == 1 else None
        summary = stages.generate(config, archive, work, recorded_in, one_of_many, wait)
        inputs = ("--archive", archive, "--teacher", config.teacher.source, "--out", "TRAINING")
        train = next_command("train", run) if run else command_line("train", *inputs)
        session.report(summary, *([] if summary.data["missing"] else [train]))
