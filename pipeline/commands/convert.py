"""hkdpipe convert: an archive in the other form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.pipeline.options import FOLDER, json_option, one_process_only, quiet_option
from hkdpipe.pipeline.progress import report
from hkdpipe.pipeline.work import working

if TYPE_CHECKING:
    from hkdpipe.stages.reporting import Summary


@click.command("convert", short_help="Write an archive in the other form.")
@click.argument("source", type=FOLDER)
@click.argument("out", type=FOLDER)
@click.option(
    "--format", "form", type=click.Choice(["zarr", "webdataset"]), required=True, help="The form of OUT."
)
@quiet_option
@json_option
def command(source: Path, out: Path, form: str, quiet: bool, as_json: bool) -> None:
    """Write the archive SOURCE as the archive OUT in another form, losslessly.

    \b
      hkdpipe convert runs/digits/trajectories digits-tar --format webdataset

    The same command again goes on with what is missing.
    """
    one_process_only("convert")
    with working("cpu", quiet) as work:
        from hkdpipe.stages.convert import convert

        def call() -> Summary:
            return convert(source, out, form, reporter=work.reporter, stop=work.stop)

        report(work.perform("convert", out, None, call), quiet, as_json)
