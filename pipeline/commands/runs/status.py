"""hkdpipe status: where a run stands."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hkdpipe.manifests.ground.errors import HkdpipeError
from hkdpipe.pipeline.cluster import job_control
from hkdpipe.pipeline.configuration.config import resolve
from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.configuration.run_record import read_record
from hkdpipe.pipeline.options import FOLDER, json_option, next_command
from hkdpipe.pipeline.progress import print_table
from hkdpipe.stages.shared.reporting import duration


@click.command("status", short_help="Where a run stands.")
@click.option("--run-dir", type=FOLDER, metavar="DIR", required=True, help="Run directory.")
@json_option
def command(run_dir: Path, as_json: bool) -> None:
    """Where a run stands: its stages, how far each is, what their files say, and its SLURM jobs.

    \b
      hkdpipe status --run-dir runs/digits
      hkdpipe status --run-dir runs/digits --json
    """
    run = RunDir(run_dir)
    run.check_exists()
    config = resolve(None, None, run.config, ())
    record = read_record(run.record, lambda text: click.echo(text, err=True))
    states = run.states(config)
    jobs = _jobs(run)
    complete = all(state.state == "complete" for state in states)
    if as_json:
        stages = {
            state.name: {**asdict(state), "record": record["stages"].get(state.name)} for state in states
        }
        print(json.dumps({"run_dir": str(run.path), "complete": complete, "stages": stages, "jobs": jobs}))
        return
    print_table(
        f"{run.path}: {'complete' if complete else 'not complete'}",
        ("stage", "state", "done", "last", "detail"),
        tuple(
            (
                state.name,
                state.state,
                f"{state.done:,} of {state.total:,} {state.unit}",
                _last(record["stages"].get(state.name, {})),
                state.detail,
            )
            for state in states
        ),
    )
    if jobs:
        print_table(
            "jobs",
            ("stage", "job", "state", "where or why", "log"),
            tuple(
                (job["stage"], job["job"], _counted(job["states"]), job["detail"], job["log"]) for job in jobs
            ),
        )
    if not complete and not any(job["live"] for job in jobs):
        print(f"Next:\n  {next_command('run', run)}")


def _jobs(run: RunDir) -> list[dict[str, Any]]:
    """The newest job of each stage: what the queue says of it, and the last line of its log."""
    jobs = list(job_control.latest(job_control.read_jobs(run)).values())
    try:
        tasks = job_control.tasks(jobs)
    except HkdpipeError as error:
        click.echo(f"{error}; the states of jobs are unknown", err=True)
        tasks = []
    found = []
    for job in jobs:
        states = job_control.states_of(job, tasks)
        details = {task.nodes or task.reason for task in tasks if task.job == job.number} - {"None", ""}
        found.append(
            {
                "stage": job.stage,
                "job": job.number,
                "states": dict(states),
                "live": job_control.is_live(states),
                "detail": ", ".join(sorted(details)),
                "log": job_control.last_line(run, job),
            }
        )
    return found


def _counted(states: dict[str, int]) -> str:
    """RUNNING, or of an array 2 RUNNING, 6 PENDING."""
    if not states:
        return "not in the queue"
    if sum(states.values()) == 1:
        return next(iter(states))
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _last(entry: dict[str, object]) -> str:
    """In words, what run.json says of a stage. A killed one is 'running' forever, hence 'begun'."""
    state, seconds = entry.get("state"), entry.get("seconds")
    if state == "running":
        return f"begun {entry.get('started')}"
    if state is None or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        return ""
    return f"{state}, {duration(seconds)}"
