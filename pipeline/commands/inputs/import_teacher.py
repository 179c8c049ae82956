"""hkdpipe import-teacher: a folder of ours from an EDM checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.pipeline.options import FOLDER, json_option, one_process_only, quiet_option
from hkdpipe.pipeline.progress import report
from hkdpipe.pipeline.stage_calls import working

if TYPE_CHECKING:
    from hkdpipe.stages.shared.reporting import Summary


@click.command("import-teacher", short_help="Convert an EDM checkpoint, safely.")
@click.argument("file", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option("--licence", default="", metavar="TEXT", help="Carried into archives and exports.")
@click.option("--dataset", default="", metavar="NAME", help="What it was trained on, for the record.")
@quiet_option
@json_option
def command(file: Path, out: Path, licence: str, dataset: str, quiet: bool, as_json: bool) -> None:
    """Convert an EDM checkpoint FILE into a teacher's folder OUT.

    FILE is a snapshot as EDM publishes and writes them (.pkl), or a state dict of such a network (.pt, .pth).
    It is read without running anything in it.

    \b
      hkdpipe import-teacher edm-cifar10-32x32-uncond-vp.pkl teachers/cifar10 --licence "CC BY-NC-SA 4.0"
      hkdpipe generate-trajectories --preset cifar10 --teacher teachers/cifar10 --run-dir runs/cifar10
    """
    one_process_only("import-teacher")
    with working("cpu", quiet) as work:
        from hkdpipe.stages.teachers.import_teacher import import_teacher

        def call() -> Summary:
            summary = import_teacher(file, out, licence, dataset)
            following = (
                f"hkdpipe generate-trajectories --teacher {out} --out ARCHIVE "
                f"--set generation.steps={summary.data['steps']}"
            )
            return replace(summary, next_commands=(following,))

        report(work.perform("import-teacher", out, None, call), quiet, as_json)
