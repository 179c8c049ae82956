"""hkdpipe verify: is an archive what it should be, and can it be put right?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.pipeline.options import FOLDER, command_line, work_options
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary

if TYPE_CHECKING:
    from hkdpipe.stages.generation.check_archive import Depth


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
    session: Session,
) -> None:
    """Check the archive ARCHIVE against its manifest: by default, the SHA-256 of every shard.

    \b
      hkdpipe verify runs/digits/trajectories
      hkdpipe verify runs/digits/trajectories --deep
      hkdpipe verify runs/digits/trajectories --repair

    Exit code 3 if something is wrong and was not repaired.
    """
    if fast and deep:
        raise UsageError("--fast and --deep: give one of them")
    if not archive.is_dir():
        raise InputError(f"{archive}: no such archive")
    depth: Depth = "fast" if fast else "deep" if deep else "checksums"

    def call(work: Work) -> Summary:
        from hkdpipe.stages.generation.check_archive import verify

        return verify(archive, depth, repair, teacher, **work.how)

    summary = session.perform("verify", archive, call)
    damaged = summary.data["state"] == "damaged"
    session.report(summary, *([command_line("verify", archive, "--repair")] if damaged else []))
    if damaged:
        click.get_current_context().exit(3)
