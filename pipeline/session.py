"""One command's way through its work: on which device, how it speaks, and its last words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline.progress import first_process, make_reporter, report
from hkdpipe.pipeline.signals import stop_requests
from hkdpipe.pipeline.stage_calls import Work, work_on
from hkdpipe.trainer.loop.world import world_from_environment

if TYPE_CHECKING:
    from hkdpipe.stages.shared.reporting import Summary


@dataclass(frozen=True)
class Session:
    """What --device, --quiet and --json say."""

    device: str
    quiet: bool
    as_json: bool

    @contextmanager
    def working(self) -> Iterator[Work]:
        with stop_requests(self.quiet or not first_process()) as stop:
            yield work_on(self.device, make_reporter(self.quiet), stop)

    def perform(self, command: str, folder: Path, call: Callable[[Work], Summary]) -> Summary:
        """Do what is not one of the distributed stages, and writes into `folder`."""
        one_process_only(command)
        with self.working() as work:
            return work.perform(command, folder, None, lambda: call(work))

    def report(self, summary: Summary, *following: str) -> None:
        """The last words, with what to type next."""
        report(replace(summary, next_commands=following), self.quiet, self.as_json)


def one_process_only(command: str) -> None:
    """Refuse to be started several times by torchrun or srun: each process would do the same work."""
    size = world_from_environment().size
    if size != 1:
        raise UsageError(
            f"{command}: started as one of {size} processes; accepted: one process, as only "
            "the three stages are distributed: torchrun --no-python --nproc-per-node 2 hkdpipe train"
        )
