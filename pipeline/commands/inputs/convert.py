"""hkdpipe convert: an archive in the other form, or KDM's pairs as an archive."""

from __future__ import annotations

from pathlib import Path

import click

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline.options import FOLDER, command_line, session_options
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary


@click.command("convert", short_help="Write an archive in the other form, or pairs as an archive.")
@click.argument("source", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--format", "form", type=click.Choice(["zarr", "webdataset"]), required=True, help="The form of OUT."
)
@click.option(
    "--teacher",
    metavar="TEACHER",
    help="What the pairs were sampled with, where SOURCE is a folder of pairs.",
)
@session_options
def command(source: Path, out: Path, form: str, teacher: str | None, session: Session) -> None:
    """Write the archive SOURCE as the archive OUT in another form, losslessly; or a folder of .npz files,
    each with start and end of a trajectory, as in KDM's data sets, as an archive of these two states.

    \b
      hkdpipe convert runs/digits/trajectories digits-tar --format webdataset
      hkdpipe convert cifar10_uncond_train_data pairs --format zarr --teacher edm-cifar10-32x32-uncond-vp.pkl

    The same command again goes on with what is missing.
    """

    def call(work: Work) -> Summary:
        from hkdpipe.stages.generation.convert import convert
        from hkdpipe.stages.generation.kdm_pairs import holds_pairs, import_pairs

        pairs = holds_pairs(source)
        if pairs != (teacher is not None):
            needed = "needed with" if pairs else "only for"
            raise UsageError(
                f"--teacher: {needed} a folder of pairs (.npz), which {source} is{'' if pairs else ' not'}"
            )
        if teacher is not None:
            return import_pairs(source, out, form, teacher, reporter=work.reporter, stop=work.stop)
        return convert(source, out, form, reporter=work.reporter, stop=work.stop)

    summary = session.perform("convert", out, call)
    inputs = ("--archive", out, "--teacher", teacher or summary.data["teacher"], "--out", "TRAINING")
    session.report(summary, *([] if summary.data["missing"] else [command_line("train", *inputs)]))
