"""Processes that train a small network together, in as many sittings as asked for.

They are forked from a server that has imported torch, since importing takes longer than what they do.
"""

import contextlib
import math
import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hkdpipe.manifests.ground.errors import HkdpipeError, Interrupted
from hkdpipe.trainer.loop.checkpoint import TrainingState
from hkdpipe.trainer.loop.distributed import connected, copy_from_first
from hkdpipe.trainer.loop.hooks import AverageWeights, ClipGradient
from hkdpipe.trainer.loop.training_loop import Callbacks, LoopSettings, fit, new_state, resume
from hkdpipe.trainer.loop.world import World, world_from_environment

Sitting = tuple[Path, float]
"""A folder to resume from, and the steps to stop after (inf: at the end)."""


@dataclass(frozen=True)
class Ended:
    code: int | None
    errors: str


SETTINGS = LoopSettings(
    budget=72,
    batch_size=6,
    schedule="cosine",
    hooks=(ClipGradient(0.5), AverageWeights()),
    checkpoint_every=12,
    keep_checkpoints=1,
    workers=1,
)


def read_batch(first: int, stop: int) -> Tensor:
    """Samples that are a function of their position."""
    return torch.stack([torch.sin(torch.arange(1.0, 9.0) * (n + 1)) for n in range(first, stop)])


def loss(model: nn.Module, batch: Tensor, progress: float) -> dict[str, Tensor]:
    return {"loss": ((model(batch) - batch[:, :4] ** 2) ** 2).mean()}


def _sit(folder: Path, after: float, seed: int, vanish: int | None, spoil: int | None) -> None:
    """Train for so many steps; where nothing was trained before, from the first process's weights.

    One process alone is asked to stop, in every sitting the next one.
    """
    world = world_from_environment()
    torch.manual_seed(seed + 10 * world.rank)
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4))
    state = new_state(model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True), [0.8])
    resume(folder, state, "same", print)
    end = state.step + after
    asked, last = world.rank == seed % world.size, world.rank == world.size - 1

    def stop() -> bool:
        if last and state.step == vanish:
            os._exit(9)
        return asked and state.step >= end

    def of_step(model: nn.Module, batch: Tensor, progress: float) -> dict[str, Tensor]:
        terms = loss(model, batch, progress)
        # Of infinity and a number the gradient is the number's.
        return {"loss": terms["loss"] + math.inf} if last and state.step == spoil else terms

    with contextlib.suppress(Interrupted):
        fit(state, read_batch, of_step, SETTINGS, folder, {"identity": "same"}, Callbacks(stop), world)
    assert state.step == min(end, SETTINGS.budget / SETTINGS.batch_size)
    _check_alike(state, world)


def _check_alike(state: TrainingState[Any], world: World) -> None:
    """All processes have skipped as many steps as the first one, and have its weights."""
    weights = [value.flatten() for model in state.weights.values() for value in model.state_dict().values()]
    own = torch.cat([state.skipped, *weights])
    first = own.clone()
    copy_from_first([first], world)
    assert torch.equal(own, first)


def _process(
    sittings: list[Sitting], environment: dict[str, str], log: Path, vanish: int | None, spoil: int | None
) -> None:
    os.environ.update(environment)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    torch.set_num_threads(1)
    try:
        with connected(world_from_environment(), torch.device("cpu")):
            for seed, (folder, steps) in enumerate(sittings):
                _sit(folder, steps, seed, vanish, spoil)
    except HkdpipeError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def together(
    size: int, logs: Path, *sittings: Sitting, vanish: int | None = None, spoil: int | None = None
) -> list[Ended]:
    """Let so many processes sit; the last one is gone before the step that follows `vanish`, if given.

    In the step that follows `spoil`, if given, the last one's loss is not finite, but its gradient is.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hkdpipe.trainer.loop.training_loop"])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    paths = [logs / f"{rank}-of-{size}.log" for rank in range(size)]
    processes = []
    for rank, path in enumerate(paths):
        place = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        arguments = (list(sittings), {**meeting, **place}, path, vanish, spoil)
        processes.append(context.Process(target=_process, args=arguments))
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    return [Ended(process.exitcode, path.read_text()) for process, path in zip(processes, paths, strict=True)]
