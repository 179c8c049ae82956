"""hkdpipe analyze: the spectra of a generator's operators, and what their bands do to its images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.options import FOLDER, command_line, place, seed_option, work_options
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary

if TYPE_CHECKING:
    from hkdpipe.pipeline.stage_calls import Work


@click.command("analyze", short_help="Spectra of a model, and what its bands do.")
@click.option("--model", type=FOLDER, metavar="DIR", help="An export or a checkpoint of hkd.")
@click.option(
    "--run-dir",
    type=FOLDER,
    metavar="DIR",
    help="A run: its export, into evaluation/analysis and report.html.",
)
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder for pictures, tables and analysis.json.")
@click.option(
    "--count", type=click.IntRange(min=1), default=32, show_default=True, help="Images to measure on."
)
@seed_option
@click.option(
    "--band",
    "bands",
    multiple=True,
    metavar="BAND",
    help="smallest, middle, largest, all, or quantiles of alpha as in 0.2:0.5; may be repeated "
    "(default: the three thirds).",
)
@work_options
def command(
    model: Path | None,
    run_dir: Path | None,
    out: Path | None,
    count: int,
    seed: int,
    bands: tuple[str, ...],
    session: Session,
) -> None:
    """Show what the Koopman operators of a generator are and do, with pictures and numbers.

    Eigenvalues by level; images decoded from spectral bands; each band's effect over time and by spatial
    frequency; of conditional models also by class.

    \b
      hkdpipe analyze --run-dir runs/digits
      hkdpipe analyze --model runs/digits/export --out analysis
      hkdpipe analyze --model runs/digits/export --out analysis --band 0:0.1 --band 0.9:1
    """
    run = RunDir(run_dir) if run_dir else None
    model = place("--model", model, run.export if run else None)
    if run is not None and out is not None:
        raise UsageError("--run-dir and --out: give one of them")
    out = place("--out", out, run.evaluation / "analysis" if run else None)

    def call(work: Work) -> Summary:
        from hkdpipe.stages.whitebox.analyze import analyze, shown_in_report
        from hkdpipe.trainer.whitebox.bands import THIRDS, parse_band

        chosen = [parse_band(text) for text in bands] or THIRDS
        summary = analyze(model, out, count, seed, chosen, **work.how)
        return shown_in_report(summary, out.parent) if run else summary

    summary = session.perform("analyze", out, call)
    session.report(summary, command_line("interpolate", "--model", model, "--out", out / "interpolation"))
