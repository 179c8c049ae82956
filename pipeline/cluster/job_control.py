"""Talking to SLURM: submitting, asking and cancelling the jobs of a run, which RUN/slurm/jobs.json names."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from hkdpipe.manifests.ground.atomic_files import read_json, write_json
from hkdpipe.manifests.ground.errors import HkdpipeError, InputError
from hkdpipe.pipeline.cluster.job_script import log_pattern
from hkdpipe.pipeline.configuration.run_directory import RunDir

VERSION = 1
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""States of a job that is over; every other one may still lead to a result."""
_TAIL = 4096  # bytes: more than a last line


@dataclass(frozen=True)
class Job:
    """A job that was submitted for a stage."""

    stage: str
    number: str
    submitted: str


@dataclass(frozen=True)
class Task:
    """A job as the queue has it, or a task of an array."""

    job: str
    state: str
    reason: str
    nodes: str


def read_jobs(run: RunDir) -> list[Job]:
    """The jobs submitted so far, the newest last. InputError for a damaged record."""
    path = run.slurm / "jobs.json"
    if not path.exists():
        return []
    try:
        found = read_json(path)
        if found["version"] != VERSION:
            raise ValueError(f"version {found['version']}; accepted: {VERSION}")
        jobs = [Job(**entry) for entry in found["jobs"]]
        if not all(isinstance(value, str) for job in jobs for value in asdict(job).values()):
            raise TypeError("a value is no string")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: no record of jobs ({error}); delete it if no job is in the queue"
        ) from None
    return jobs


def latest(jobs: Sequence[Job]) -> dict[str, Job]:
    """By stage, the job submitted last."""
    return {job.stage: job for job in jobs}


def record_job(run: RunDir, stage: str, number: str) -> None:
    jobs = [*read_jobs(run), Job(stage, number, datetime.now(UTC).isoformat(timespec="seconds"))]
    write_json(run.slurm / "jobs.json", {"version": VERSION, "jobs": [asdict(job) for job in jobs]})


def submission(script: Path, after: str | None) -> list[str]:
    """The command line that submits a script, to begin when the job `after` has succeeded."""
    dependency = [f"--dependency=afterok:{after}"] if after else []
    return ["sbatch", "--parsable", *dependency, str(script)]


def submit(script: Path, after: str | None) -> str:
    """Submit a script; returns the job's number."""
    # Of several clusters the answer names one, after a semicolon.
    return _call(*submission(script, after)).strip().partition(";")[0]


def tasks(jobs: Sequence[Job]) -> list[Task]:
    """What the queue knows of the jobs: of one that has been over for a while, nothing."""
    if not jobs:
        return []
    numbers = ",".join(job.number for job in jobs)
    try:
        listed = _call(
            "squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", "--format=%F|%T|%r|%N"
        )
    except HkdpipeError as error:
        # The answer to a single number that SLURM has forgotten.
        if "Invalid job id" in str(error):
            return []
        raise
    return [Task(*line.strip().split("|")) for line in listed.splitlines()]


def cancel(jobs: Sequence[Job]) -> None:
    _call("scancel", *(job.number for job in jobs))


def states_of(job: Job, found: Sequence[Task]) -> Counter[str]:
    """How many of the job's tasks are in which state."""
    return Counter(task.state for task in found if task.job == job.number)


def is_live(states: Counter[str]) -> bool:
    """Whether some task is not over."""
    return any(state not in ENDED for state in states)


def last_line(run: RunDir, job: Job) -> str:
    """The last line of the job's log, of an array's the one written last; empty without one."""
    logs = list((run.slurm / "logs").glob(log_pattern(job.stage, job.number)))
    if not logs:
        return ""
    newest = max(logs, key=lambda path: path.stat().st_mtime_ns)
    with newest.open("rb") as file:
        file.seek(max(0, newest.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _call(*command: str) -> str:
    """What a command of SLURM's prints. HkdpipeError with what it says went wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise HkdpipeError(f"{command[0]}: not found; SLURM's commands are needed here") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise HkdpipeError(f"{command[0]}: {said.removeprefix(f'{command[0]}: ')}")
    return done.stdout
