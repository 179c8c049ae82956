"""hkdpipe import-teacher: a folder of ours from an EDM checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from hkdpipe.pipeline.options import FOLDER, command_line, session_options
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary


@click.command("import-teacher", short_help="Convert an EDM checkpoint, safely.")
@click.argument("file", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--licence", default="", metavar="TEXT", help="Carried into archives and exports.")
@click.option("--dataset", default="", metavar="NAME", help="What it was trained on, for the record.")
@session_options
def command(file: Path, out: Path, licence: str, dataset: str, session: Session) -> None:
    """Convert an EDM checkpoint FILE into a teacher's folder OUT.

    FILE is a snapshot as EDM publishes and writes them (.pkl), or a state dict of such a network (.pt, .pth).
    It is read without running anything in it.

    \b
      hkdpipe import-teacher edm-cifar10-32x32-uncond-vp.pkl teachers/cifar10 --licence "CC BY-NC-SA 4.0"
      hkdpipe generate-trajectories --preset cifar10 --teacher teachers/cifar10 --run-dir runs/cifar10
    """

    def call(work: Work) -> Summary:
        from hkdpipe.stages.teachers.import_teacher import import_teacher

        return import_teacher(file, out, licence, dataset)

    summary = session.perform("import-teacher", out, call)
    steps = f"generation.steps={summary.data['steps']}"
    inputs = ("--teacher", out, "--out", "ARCHIVE", "--set", steps)
    session.report(summary, command_line("generate-trajectories", *inputs))
