"""Calling the stages from the command line: with a device, a reporter and an ear for signals."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkdpipe.manifests.ground.errors import HkdpipeError, first_line
from hkdpipe.pipeline.configuration.config import Config
from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.configuration.run_record import recorded
from hkdpipe.stages.generation.worker import ALONE, Worker

if TYPE_CHECKING:
    import torch

    from hkdpipe.stages.shared.reporting import Reporter, Summary
    from hkdpipe.trainer.loop.world import World


@dataclass(frozen=True)
class Work:
    """What every stage needs beside its settings."""

    device: torch.device
    world: World
    reporter: Reporter
    stop: Callable[[], bool]

    @property
    def how(self) -> dict[str, Any]:
        """As arguments, of what is done by one process."""
        return {"device": self.device, "reporter": self.reporter, "stop": self.stop}

    def perform(self, stage: str, folder: Path, run: RunDir | None, call: Callable[[], Summary]) -> Summary:
        """Do a stage that writes into `folder`, on record if it belongs to a run directory."""
        try:
            if run is not None and self.world.first:
                return recorded(run.record, stage, call, self.reporter.warn, run.check_owned)
            return call()
        except OSError as error:
            # A failing write does not say where; the user must know which disk is full.
            if error.filename is None:
                error.filename = str(folder)
            raise
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            raise HkdpipeError(
                f"{stage}: out of memory ({first_line(error)}); take a smaller batch_size"
            ) from None


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    import torch

    # What torch raises when a CPU's memory is exhausted has no class of its own.
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)


def work_on(device: str, reporter: Reporter, stop: Callable[[], bool]) -> Work:
    from hkdpipe.trainer.loop.distributed import choose_device
    from hkdpipe.trainer.loop.world import world_from_environment
    from hkdpipe.trainer.numbers.allocator import keep_freed_memory

    world = world_from_environment()
    chosen = choose_device(device, world)
    if chosen.type == "cpu":
        keep_freed_memory()
    return Work(chosen, world, reporter, stop)


def check_stages_fit(config: Config) -> None:
    from hkdpipe.stages.preflight import check_stages_fit

    check_stages_fit(config.teacher.source, config.training, config.evaluation)


def generate(
    config: Config,
    archive: Path,
    work: Work,
    run: RunDir | None = None,
    worker: Worker = ALONE,
    wait: bool = False,
) -> Summary:
    from hkdpipe.stages.generation.generate import generate

    def call() -> Summary:
        return generate(
            config.teacher.source,
            archive,
            config.generation,
            config.teacher.licence,
            worker=worker,
            wait=wait,
            **work.how,
        )

    return work.perform("generation", archive, run, call)


def train(config: Config, archive: Path | str, out: Path, work: Work, run: RunDir | None = None) -> Summary:
    from hkdpipe.stages.training.train import train

    def call() -> Summary:
        return train(
            config.teacher.source,
            archive,
            out,
            config.training,
            config.options,
            world=work.world,
            **work.how,
            evaluation=config.evaluation,
        )

    return work.perform("training", out, run, call)


def evaluate(
    config: Config,
    archive: Path | str,
    checkpoint: Path,
    out: Path,
    export: Path,
    work: Work,
    run: RunDir | None = None,
) -> Summary:
    from hkdpipe.stages.evaluation.evaluate import evaluate

    def call() -> Summary:
        return evaluate(
            config.teacher.source,
            archive,
            checkpoint,
            out,
            export,
            config.evaluation,
            world=work.world,
            **work.how,
            sampling=sampling_command("THIS_FOLDER"),
        )

    return work.perform("evaluation", out, run, call)


def sampling_command(model: str) -> str:
    """A command to suggest once there is a model."""
    return f"hkdpipe sample --model {shlex.quote(model)} --count 64 --out samples"
