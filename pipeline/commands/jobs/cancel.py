"""hkdpipe cancel: take a run's jobs out of the queue."""

from __future__ import annotations

from pathlib import Path

import click

from hkdpipe.pipeline.cluster import job_control
from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.options import FOLDER, next_command, session_options
from hkdpipe.pipeline.session import Session
from hkdpipe.stages.shared.reporting import Summary


@click.command("cancel", short_help="Cancel a run's SLURM jobs.")
@click.option("--run-dir", type=FOLDER, metavar="DIR", required=True, help="Run directory.")
@session_options
def command(run_dir: Path, session: Session) -> None:
    """Cancel the jobs of a run that are waiting or running; what they have done is kept.

    \b
      hkdpipe cancel --run-dir /data/cifar10
    """
    run = RunDir(run_dir)
    run.check_exists()
    jobs = job_control.read_jobs(run)
    tasks = job_control.tasks(jobs)
    live = [job for job in jobs if job_control.is_live(job_control.states_of(job, tasks))]
    if live:
        job_control.cancel(live)
    summary = Summary(
        title="cancel",
        header=("stage", "", "job"),
        rows=tuple((job.stage, "cancelled", job.number) for job in live),
        data={"cancelled": [job.number for job in live]},
        did_nothing=not live,
    )
    session.report(summary, next_command("status", run))
