"""hkdpipe status: where a run stands."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from hkdpipe.manifests.errors import InputError
from hkdpipe.pipeline.config import resolve
from hkdpipe.pipeline.options import FOLDER, json_option, next_command
from hkdpipe.pipeline.progress import print_table
from hkdpipe.pipeline.record import read_record
from hkdpipe.pipeline.rundir import RunDir
from hkdpipe.stages.reporting import duration


@click.command("status", short_help="Where a run stands.")
@click.option("--run-dir", type=FOLDER, metavar="DIR", required=True, help="Run directory.")
@json_option
def command(run_dir: Path, as_json: bool) -> None:
    """Where a run stands: its stages, how far each is, and what their files say.

    \b
      hkdpipe status --run-dir runs/digits
      hkdpipe status --run-dir runs/digits --json
    """
    run = RunDir(run_dir)
    if not run.config.is_file():
        raise InputError(f"{run.config}: missing, so {run.path} is not a run directory")
    from hkdpipe.stages.state import evaluation_state, generation_state, training_state

    config = resolve(None, None, run.config, ())
    record = read_record(run.record, lambda text: click.echo(text, err=True))
    states = (
        generation_state(run.trajectories, config.generation),
        training_state(run.training, config.training),
        evaluation_state(run.evaluation, run.export, run.training, config.evaluation),
    )
    complete = all(state.state == "complete" for state in states)
    if as_json:
        stages = {
            state.name: {**asdict(state), "record": record["stages"].get(state.name)} for state in states
        }
        print(json.dumps({"run_dir": str(run.path), "complete": complete, "stages": stages}))
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
    if not complete:
        print(f"Next:\n  {next_command('run', run)}")


def _last(entry: dict[str, object]) -> str:
    """In words, what run.json says of a stage. A killed one is 'running' forever, hence 'begun'."""
    state, seconds = entry.get("state"), entry.get("seconds")
    if state == "running":
        return f"begun {entry.get('started')}"
    if state is None or not isinstance(seconds, int | float):
        return ""
    return f"{state}, {duration(seconds)}"
