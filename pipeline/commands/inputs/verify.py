"""hkdpipe verify: is an archive what it should be, and can it be put right?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.pipeline.options import FOLDER, command_line, one_process_only, work_options
from hkdpipe.pipeline.progress import report
from hkdpipe.pipeline.stage_calls import working

if TYPE_CHECKING:
    from hkdpipe.stages.generation.check_archive import Depth
    from hkdpipe.stages.shared.reporting import Summary


@click.command("verify", short_help="Check an archive, and repair it.")
@click.argument("archive", type=FOLDER)
@click.option("--fast", is_flag=True, help="Names and sizes alone.")
@click.option("--deep", is_flag=True, help="Also read every state and compute some trajectories again.")
@click.option("--repair", is_flag=True, help="Make missing and damaged shards again, from the teacher.")
@click.option("--teacher", metavar="TEACHER", help="The archive's teacher, if it is elsewhere now.")
@work_options
def command(
    archive: Path,
    fast: bool,
    deep: bool,
    repair: bool,
    teacher: str | None,
    device: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check the archive ARCHIVE against its manifest: by default, the SHA-256 of every shard.

    \b
      hkdpipe verify runs/digits/trajectories
      hkdpipe verify runs/digits/trajectories --deep
      hkdpipe verify runs/digits/trajectories --repair

    Exit code 3 if something is wrong and was not repaired.
    """
    one_process_only("verify")
    if fast and deep:
        raise UsageError("--fast and --deep: give one of them")
    if not archive.is_dir():
        raise InputError(f"{archive}: no such archive")
    depth: Depth = "fast" if fast else "deep" if deep else "checksums"
    with working(device, quiet) as work:
        from hkdpipe.stages.generation.check_archive import verify

        def call() -> Summary:
            return verify(
                archive, depth, repair, teacher, device=work.device, reporter=work.reporter, stop=work.stop
            )

        summary = work.perform("verify", archive, None, call)
        damaged = summary.data["state"] == "damaged"
        if damaged:
            summary = replace(summary, next_commands=(command_line("verify", archive, "--repair"),))
        report(summary, quiet, as_json)
    if damaged:
        click.get_current_context().exit(3)
