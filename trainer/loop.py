"""The training loop, the same for teachers and for students.

Whatever is random in a step is a function of (seed, position in the sequence of samples), so that the
number of processes and interruptions change nothing but rounding, or nothing at all.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hkdpipe.manifests.errors import HkdpipeError, Interrupted, UsageError
from hkdpipe.manifests.order import rank_slice
from hkdpipe.trainer.checkpoint import (
    Model,
    TrainingState,
    newest_checkpoint,
    restore,
    save_checkpoint,
)
from hkdpipe.trainer.distributed import (
    World,
    any_process,
    average_over_processes,
    barrier,
    copy_from_first,
)

Batch = Any
ReadBatch = Callable[[int, int], Batch]
"""read_batch(start, stop): the samples at those positions of the endless sequence, ready for the loss."""
Loss = Callable[[nn.Module, Batch, float], Mapping[str, Tensor]]
"""loss(model, batch, progress): scalar terms, means over the batch; 'loss' is the one to descend."""

LOG_EVERY = 20  # steps: often enough to watch, rare enough that reading the values back costs nothing


@dataclass(frozen=True)
class LoopSettings:
    budget: int
    """Samples to see, over all processes."""
    batch_size: int
    """Samples in a step, over all processes."""
    schedule: str
    """'constant' or 'cosine' (to zero at the budget)."""
    ema: float
    """Decay per step, warmed up as min(ema, (1 + k) / (10 + k))."""
    gradient_clip: float
    checkpoint_every: int
    keep_checkpoints: int
    workers: int
    """Batches read ahead, each in a thread; 0: read in the loop's own."""
    warmup: int = 0
    """Samples over which the learning rate rises."""


@dataclass(frozen=True)
class Callbacks:
    """What the loop tells its caller; the last three only in the first process."""

    stop: Callable[[], bool]
    log: Callable[[int, dict[str, float]], None]
    """log(seen, values)"""
    saved: Callable[[TrainingState[Any], Path], None]
    warn: Callable[[str], None]
    check_owned: Callable[[], None] = lambda: None
    """Called before a checkpoint is put in place: raises where the folder is another process's now."""


def new_state(model: Model, optimizer: torch.optim.Optimizer) -> TrainingState[Model]:
    """The state before the first step; the average starts at the weights."""
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return TrainingState(model, ema, optimizer)


def resume(
    folder: Path, state: TrainingState[Any], identity: str, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint of the folder; returns its state.json, None at the start.

    Raises UsageError where it is one of a training with another identity.
    """
    found = newest_checkpoint(folder, warn)
    if found is None:
        return None
    if found[1].get("identity") != identity:
        raise UsageError(f"{found[0]}: of a training with other settings; choose another folder")
    restore(found[0], state, found[1])
    return found[1]


def fit(
    state: TrainingState[Any],
    read_batch: ReadBatch,
    loss: Loss,
    settings: LoopSettings,
    folder: Path,
    about: dict[str, Any],
    callbacks: Callbacks,
    world: World,
) -> None:
    """Train until the budget is seen, from where `state` stands; the last act is a checkpoint.

    Raises Interrupted after a checkpoint when asked to stop, HkdpipeError when the loss is not finite.
    """
    state.model.train()
    copy_from_first([*state.model.state_dict().values(), *state.ema.state_dict().values()], world)
    saved_at = state.seen if state.step else -1
    terms: Mapping[str, Tensor] = {}

    def save() -> None:
        nonlocal saved_at
        if saved_at != state.seen:
            if world.first:
                keep, check = settings.keep_checkpoints, callbacks.check_owned
                callbacks.saved(state, save_checkpoint(folder, state, about, keep, check))
            saved_at = state.seen
        barrier(world)

    for batch in prefetched(read_batch, state.seen, settings, world):
        if any(any_process([callbacks.stop()], world)):
            if terms:
                _finite(terms, state.seen, folder)
            save()
            raise Interrupted(
                f"stopped after {state.seen:,} of {settings.budget:,} samples; the same command goes on"
            )
        terms = step(state, batch, loss, settings, min(1.0, state.seen / settings.budget), world)
        due = state.seen // settings.checkpoint_every > max(saved_at, 0) // settings.checkpoint_every
        done = state.seen >= settings.budget
        if due or done or state.step % LOG_EVERY == 0:
            values = _finite(terms, state.seen, folder)
            if world.first:
                learning_rate = state.optimizer.param_groups[0]["lr"]
                callbacks.log(state.seen, {**values, "learning_rate": learning_rate})
        if due or done:
            save()


def step(
    state: TrainingState[Any],
    batch: Batch,
    loss: Loss,
    settings: LoopSettings,
    progress: float,
    world: World,
) -> Mapping[str, Tensor]:
    """One optimiser step on this process's part of a batch. Returns the terms of the loss of the whole."""
    risen = min(1.0, (state.seen + settings.batch_size) / settings.warmup) if settings.warmup else 1.0
    factor = learning_rate_factor(settings.schedule, progress) * risen
    for group in state.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    state.optimizer.zero_grad(set_to_none=True)
    terms = loss(state.model, batch, progress)
    terms["loss"].backward()
    terms = {name: value.detach().clone() for name, value in terms.items()}
    gradients = [value.grad for value in state.model.parameters() if value.grad is not None]
    average_over_processes([*gradients, *terms.values()], world)
    if settings.gradient_clip:
        nn.utils.clip_grad_norm_(state.model.parameters(), settings.gradient_clip)
    state.optimizer.step()
    update_average(state.ema, state.model, average_decay(settings.ema, state.step))
    state.step += 1
    state.seen += settings.batch_size
    return terms


def learning_rate_factor(schedule: str, progress: float) -> float:
    """'constant': 1; 'cosine': from 1 to 0 over the budget."""
    return 1.0 if schedule == "constant" else (1 + math.cos(math.pi * progress)) / 2


def average_decay(ema: float, step: int) -> float:
    """Decay of the average at a step (counted from 0): short at first, so that the start is forgotten."""
    return min(ema, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model for parameters, a copy for buffers."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for average, buffer in zip(ema.buffers(), model.buffers(), strict=True):
        average.copy_(buffer)


def prefetched(read_batch: ReadBatch, seen: int, settings: LoopSettings, world: World) -> Iterator[Batch]:
    """This process's part of every global batch up to the budget, in order, read ahead by the workers.

    What fails while it is read ahead is raised in its turn.
    """
    starts = range(seen, settings.budget, settings.batch_size)
    parts = (rank_slice(start, settings.batch_size, world.rank, world.size) for start in starts)
    if not settings.workers:
        yield from (read_batch(*part) for part in parts)
        return
    with ThreadPoolExecutor(settings.workers, thread_name_prefix="read") as readers:
        ahead: deque[Future[Batch]] = deque()
        for part in parts:
            ahead.append(readers.submit(read_batch, *part))
            if len(ahead) > settings.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _finite(terms: Mapping[str, Tensor], seen: int, folder: Path) -> dict[str, float]:
    """The values of the terms. Raises HkdpipeError if one is not finite."""
    stacked = torch.stack([value.float() for value in terms.values()])
    values = dict(zip(terms, stacked.tolist(), strict=True))
    if not all(map(math.isfinite, values.values())):
        raise HkdpipeError(
            f"the loss is not finite after {seen:,} samples; the last good checkpoint is kept in {folder}"
        )
    return values
