"""hkdpipe evaluate: stage 3."""

from __future__ import annotations

from pathlib import Path

import click

from hkdpipe.pipeline import stage_calls as stages
from hkdpipe.pipeline.options import (
    FOLDER,
    Given,
    configuration_options,
    folder_or_url,
    one_of_run_dir_and_out,
    opened,
    place,
    teacher_option,
    work_options,
)
from hkdpipe.pipeline.progress import first_process
from hkdpipe.pipeline.session import Session


@click.command("evaluate", short_help="Stage 3: measure and export it.")
@teacher_option
@click.option(
    "--archive",
    type=folder_or_url,
    metavar="ARCHIVE",
    help="Archive trained on, if not the run's own: a folder or a URL.",
)
@click.option(
    "--checkpoint",
    type=FOLDER,
    metavar="PATH",
    help="A checkpoint, or a folder of them: its newest is taken.",
)
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write, instead of a run directory.")
@click.option(
    "--inception",
    metavar="FILE",
    help="Weights of the FID's detector: evaluation.inception, and evaluation.features = 'inception'.",
)
@configuration_options
@work_options
def command(
    given: Given,
    teacher: str | None,
    archive: Path | str | None,
    checkpoint: Path | None,
    out: Path | None,
    inception: str | None,
    session: Session,
) -> None:
    """Stage 3: measure the generator against its teacher, and export it.

    \b
    In a run directory:
      hkdpipe evaluate --run-dir runs/digits
    Any checkpoint (the export goes to DIR/export):
      hkdpipe evaluate --checkpoint training/checkpoints --archive archive --teacher my-teacher --out DIR
    On four GPUs of a machine, FID in the features of a local weights file:
      torchrun --no-python --nproc-per-node 4 hkdpipe evaluate --run-dir runs/cifar10 \\
        --inception weights-inception-2015-12-05-6726825d.pth
    """
    one_of_run_dir_and_out(given, out)
    given = given.override("teacher.source", teacher).override("evaluation.inception", inception)
    if inception is not None:
        given = given.override("evaluation.features", "inception")
    if given.run_dir is None:
        place("--checkpoint", checkpoint, None)
        place("--archive", archive, None)
    with opened(given, first=first_process()) as (run, config), session.working() as work:
        folder = place("--out", out, run.evaluation if run else None)
        export = run.export if run else folder / "export"
        summary = stages.evaluate(
            config,
            place("--archive", archive, run.trajectories if run else None),
            place("--checkpoint", checkpoint, run.checkpoints if run else None),
            folder,
            export,
            work,
            run,
        )
        session.report(summary, stages.sampling_command(str(export)))
