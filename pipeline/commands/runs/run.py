"""hkdpipe run: all three stages in one run directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline import stage_calls as stages
from hkdpipe.pipeline.configuration.config import validate_run
from hkdpipe.pipeline.options import (
    Given,
    configuration_options,
    next_command,
    opened,
    work_options,
)
from hkdpipe.pipeline.progress import print_summary, summary_data
from hkdpipe.pipeline.session import Session, one_process_only

if TYPE_CHECKING:
    from hkdpipe.stages.shared.reporting import Summary


@click.command("run", short_help="All three stages, skipping what is done.")
@configuration_options
@work_options
def command(given: Given, session: Session) -> None:
    """All three stages in one run directory, skipping what is done.

    \b
    Without --run-dir, the run directory is runs/NAME, after the preset or the file:
      hkdpipe run --preset digits
      hkdpipe run --config mine.toml --run-dir /scratch/mine --device cuda
    Stopped at any moment, the same command goes on. Train longer, in the same place:
      hkdpipe run --run-dir runs/digits --set training.budget=400000
    """
    one_process_only("run")
    given = replace(given, run_dir=given.run_dir or _default_run_dir(given))
    validate_run(given.resolve())

    def show_step(summary: Summary) -> None:
        if not (session.quiet or session.as_json or summary.did_nothing):
            print_summary(replace(summary, next_commands=()))

    with opened(given, first=True) as (run, config):
        assert run is not None
        with session.working() as work:
            work.reporter.line(f"run directory: {run.path}")
            stages.check_stages_fit(config)
            generation = stages.generate(config, run.trajectories, work, run)
            show_step(generation)
            training = stages.train(config, run.trajectories, run.training, work, run)
            show_step(training)
            evaluation = stages.evaluate(
                config, run.trajectories, run.checkpoints, run.evaluation, run.export, work, run
            )
    summaries = {"generation": generation, "training": training, "evaluation": evaluation}
    did_nothing = all(summary.did_nothing for summary in summaries.values())
    if session.as_json:
        data = {name: summary_data(summary) for name, summary in summaries.items()}
        print(json.dumps({"run_dir": str(run.path), "did_nothing": did_nothing, "stages": data}))
    elif not session.quiet:
        if did_nothing:
            print(f"nothing to do: {run.path} is complete")
        print_summary(
            replace(
                evaluation,
                next_commands=(
                    stages.sampling_command(str(run.export)),
                    next_command("status", run),
                ),
            )
        )


def _default_run_dir(given: Given) -> Path:
    name = given.preset or (given.file and given.file.stem)
    if not name:
        raise UsageError(
            "--run-dir: missing; give it, or --preset or --config, after which runs/NAME is named"
        )
    return Path("runs") / name
