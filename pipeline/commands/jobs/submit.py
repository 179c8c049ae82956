"""hkdpipe submit: the stages of a run as SLURM jobs."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from hkdpipe.manifests.ground.atomic_files import make_folders, write_atomic
from hkdpipe.manifests.ground.errors import HkdpipeError, InUseError, UsageError
from hkdpipe.manifests.ground.sections import nearest
from hkdpipe.pipeline.cluster import job_control
from hkdpipe.pipeline.cluster.cluster_file import Cluster, read_cluster
from hkdpipe.pipeline.cluster.job_script import COMMANDS, job_script, script_path
from hkdpipe.pipeline.configuration.config import Config, resolve, validate_run
from hkdpipe.pipeline.configuration.run_directory import RunDir, changes, check_change
from hkdpipe.pipeline.error_wording import worded
from hkdpipe.pipeline.explain import explain_cluster
from hkdpipe.pipeline.options import (
    FOLDER,
    Given,
    configuration_options,
    next_command,
    opened,
    session_options,
)
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import check_stages_fit
from hkdpipe.stages.shared.reporting import Summary

# What becomes of a stage.
COMPLETE, QUEUED, MISSING, LEFT_OUT = "complete", "in the queue", "submitted", "not asked for"


@click.command(
    "submit",
    short_help="The stages as SLURM jobs.",
    epilog="\b\nThe cluster file, in which every key may be left out:\n"
    + textwrap.indent(explain_cluster(), "  ", lambda line: True).rstrip(),
)
@click.option(
    "--cluster", "cluster_file", type=FOLDER, metavar="FILE", required=True, help="The cluster file; below."
)
@click.option("--stages", metavar="NAMES", help="Some of generation,training,evaluation (default: all).")
@click.option("--after", metavar="JOB", help="Begin when this job has succeeded.")
@click.option("--array", metavar="N[%LIMIT]", help="Tasks of generation, and how many may run at once.")
@click.option("--time", metavar="TIME", help="Time limit of every job, as 24:00:00.")
@click.option("--nodes", type=click.IntRange(min=1), help="Nodes of training.")
@click.option("--dry-run", is_flag=True, help="Print scripts and commands; write and submit nothing.")
@configuration_options
@session_options
def command(
    given: Given,
    cluster_file: Path,
    stages: str | None,
    after: str | None,
    array: str | None,
    time: str | None,
    nodes: int | None,
    dry_run: bool,
    session: Session,
) -> None:
    """The stages of a run as SLURM jobs, each of which begins when the one before has succeeded.

    \b
      hkdpipe submit --preset cifar10 --run-dir /data/cifar10 --cluster cluster.toml
      hkdpipe submit --run-dir /data/cifar10 --cluster cluster.toml --array 64%16 --nodes 2 --dry-run
      hkdpipe status --run-dir /data/cifar10
      hkdpipe cancel --run-dir /data/cifar10

    A job that is preempted, or whose time is up, is started again and goes on. After a failure the same
    command submits what is missing. The scripts lie in DIR/slurm, and may be submitted by hand.
    """
    if given.run_dir is None:
        raise UsageError("--run-dir: missing; give a folder that all nodes see")
    chosen = _stages(stages)
    cluster = read_cluster(cluster_file).changed(array, time, nodes)
    config = given.resolve()
    validate_run(config)
    if "training" in chosen:
        _check_processes(config, cluster)
    run = RunDir(given.run_dir)
    jobs = job_control.latest(job_control.read_jobs(run))
    tasks = job_control.tasks(list(jobs.values()))
    live = {
        stage: job.number
        for stage, job in jobs.items()
        if job_control.is_live(job_control.states_of(job, tasks))
    }
    _check_configuration(run, config, live)
    complete = {state.name for state in run.states(config) if state.state == "complete"}
    plan = _plan(chosen, complete, live, after)
    _check_predecessors(run, plan, live, tasks)
    if MISSING in plan.values() and not (cluster.cluster.container or cluster.cluster.program):
        _warn_of_failures(config)

    if dry_run:
        if plan["generation"] == MISSING:
            print(f"# {_archive(config, run)}\n")
        _print(run, cluster, plan, live, after)
        return
    if MISSING in plan.values():
        if not live:
            with opened(given, first=True):
                pass
        make_folders(run.slurm / "logs")
    numbers = _submit(run, cluster, plan, live, after)
    summary = Summary(
        title="submit",
        header=("stage", "", "job"),
        rows=tuple((stage, what, numbers.get(stage, "")) for stage, what in plan.items()),
        data={stage: {"state": what, "job": numbers.get(stage)} for stage, what in plan.items()},
        did_nothing=MISSING not in plan.values(),
    )
    session.report(summary, next_command("status", run))


def _stages(text: str | None) -> set[str]:
    chosen = set(COMMANDS if text is None else text.split(","))
    for stage in sorted(chosen - set(COMMANDS)):
        raise UsageError(f"--stages: no stage '{stage}'{nearest(stage, COMMANDS)}")
    return chosen


def _check_processes(config: Config, cluster: Cluster) -> None:
    """Refuse at once what training would refuse when its turn comes."""
    processes = cluster.training.nodes * cluster.training.processes
    if config.training.batch_size % processes:
        raise UsageError(
            f"training.batch_size: got {config.training.batch_size}; accepted: a multiple of the processes, "
            f"of which {cluster.training.nodes} nodes have {processes}"
        )


def _warn_of_failures(config: Config) -> None:
    """Say what a stage would fail by on this machine. The nodes may have files that are not here."""
    try:
        check_stages_fit(config)
    except HkdpipeError as error:
        click.echo(f"submit: on this machine the jobs would fail; {worded(error, None)}", err=True)


def _check_configuration(run: RunDir, config: Config, live: Mapping[str, str]) -> None:
    """Refuse a configuration that the run may not have, now or ever."""
    if not run.config.exists():
        return
    stored = resolve(None, None, run.config, ())
    check_change(stored, config, run.begun(stored))
    if live and (changed := changes(stored, config)):
        raise InUseError(
            f"{changed[0].key}: jobs that have the value {changed[0].stored} are in the queue "
            f"({', '.join(live.values())}); wait for their end, or: {next_command('cancel', run)}"
        )


def _plan(chosen: set[str], complete: set[str], live: Mapping[str, str], after: str | None) -> dict[str, str]:
    """What becomes of each stage. UsageError where one is chosen that lacks the one before."""
    plan: dict[str, str] = {}
    ready = True
    for stage in COMMANDS:
        # A stage that is done is looked at again if the one before is not: it may have more to do then.
        follows = bool(plan) and list(plan.values())[-1] in (QUEUED, MISSING)
        if stage in live:
            plan[stage] = QUEUED
        elif stage in complete and not follows:
            plan[stage] = COMPLETE
        elif stage not in chosen:
            plan[stage] = LEFT_OUT
        elif ready or after:
            plan[stage] = MISSING
        else:
            raise UsageError(
                f"--stages: {stage} needs the stage before it, which is neither complete, nor in the queue, "
                "nor among the stages given"
            )
        ready = plan[stage] != LEFT_OUT or stage in complete
    return plan


def _check_predecessors(
    run: RunDir, plan: Mapping[str, str], live: Mapping[str, str], tasks: Iterable[job_control.Task]
) -> None:
    """Refuse to let a job wait for an array that goes on, but can no longer succeed as a whole."""
    failed = {task.job for task in tasks if task.state in job_control.ENDED - {"COMPLETED"}}
    for stage, number in live.items():
        if number in failed and MISSING in plan.values():
            raise InUseError(
                f"{stage}: tasks of job {number} failed and others go on; submit again when they have ended, "
                f"or: {next_command('cancel', run)}"
            )


def _after(stage: str, numbers: Mapping[str, str], given: str | None) -> str | None:
    """The job to wait for: that of the stage before, else the one given."""
    names = list(COMMANDS)
    place = names.index(stage)
    return numbers.get(names[place - 1], given) if place else given


def _archive(config: Config, run: RunDir) -> str:
    """What generation has left to store."""
    from hkdpipe.manifests.archive.contents import missing_shards
    from hkdpipe.stages.generation.disk_space import needed
    from hkdpipe.stages.generation.generate import make_plan
    from hkdpipe.trainer.teachers.teacher import load_teacher

    try:
        archive = make_plan(load_teacher(config.teacher.source), config.generation)
    except HkdpipeError as error:
        return f"archive: of unknown size here ({worded(error, None)})"
    missing = missing_shards(run.trajectories, archive)
    return f"archive: {needed(archive, missing)[1]}, in {len(missing):,} shards"


def _print(
    run: RunDir, cluster: Cluster, plan: Mapping[str, str], live: Mapping[str, str], after: str | None
) -> None:
    numbers = dict(live)
    for stage, what in plan.items():
        script = script_path(run, stage)
        if what != MISSING:
            print(f"# {stage}: {what}\n")
            continue
        print(f"# {script}\n{job_script(stage, run, cluster, Path.cwd())}")
        print(f"# {shlex.join(job_control.submission(script, _after(stage, numbers, after)))}\n")
        numbers[stage] = f"JOB-OF-{stage.upper()}"


def _submit(
    run: RunDir, cluster: Cluster, plan: Mapping[str, str], live: Mapping[str, str], after: str | None
) -> dict[str, str]:
    """Write and submit what is missing; returns the jobs by stage."""
    numbers = dict(live)
    for stage in (stage for stage, what in plan.items() if what == MISSING):
        script = script_path(run, stage)
        write_atomic(script, job_script(stage, run, cluster, Path.cwd()).encode())
        try:
            numbers[stage] = job_control.submit(script, _after(stage, numbers, after))
        except HkdpipeError as error:
            raise HkdpipeError(f"{stage}: not submitted: {error}") from None
        try:
            job_control.record_job(run, stage, numbers[stage])
        except OSError as error:
            raise HkdpipeError(
                f"{stage}: submitted as job {numbers[stage]}, which could not be noted in {run.slurm} "
                f"({error.strerror}), so that nothing knows of it: scancel {numbers[stage]}"
            ) from None
    return numbers
