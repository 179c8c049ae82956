"""The training loop, the same for teachers and for students.

Whatever is random in a step is a function of (seed, position in the sequence of samples), so that the
number of processes and interruptions change nothing but rounding, or nothing at all.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hkdpipe.manifests.archive.reading_order import rank_slice
from hkdpipe.manifests.ground.errors import HkdpipeError, Interrupted, Remedy, UsageError, first_line
from hkdpipe.trainer.loop import checkpoint
from hkdpipe.trainer.loop.background import Background
from hkdpipe.trainer.loop.checkpoint import Model, TrainingState
from hkdpipe.trainer.loop.distributed import any_process, average_over_processes, barrier, copy_from_first
from hkdpipe.trainer.loop.hooks import AverageWeights, Hook
from hkdpipe.trainer.loop.loss_scale import LossScale
from hkdpipe.trainer.loop.world import World

Batch = Any
ReadBatch = Callable[[int, int], Batch]
"""read_batch(start, stop): the samples at those positions of the endless sequence, ready for the loss."""
Piece = tuple[float, Batch]
"""Some of a process's part of a batch, and what share of the part it is."""
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
    checkpoint_every: int
    keep_checkpoints: int
    workers: int
    """Batches read ahead, each in a thread; 0: read in the loop's own."""
    warmup: int = 0
    """Samples over which the learning rate rises."""
    micro_batch: int = 0
    """Samples that a process takes at once; 0: its whole part of a batch."""
    autocast: torch.dtype | None = None
    """Of the networks' arithmetic, if it is not that of the weights."""
    compile: bool = False
    """Whether torch.compile makes the model's forward and backward faster."""
    checkpoint_minutes: float = 0.0
    """Minutes between checkpoints; 0: by the samples alone."""
    max_skipped: int = 50
    """So many steps skipped in a row end the training."""
    hooks: tuple[Hook, ...] = (AverageWeights(),)
    """Called in every step, in this order."""


@dataclass(frozen=True)
class Callbacks:
    """What the loop tells and asks its caller; all but the first only in the first process."""

    stop: Callable[[], bool]
    log: Callable[[int, dict[str, float]], None] = lambda seen, values: None
    """log(seen, values)"""
    score: Callable[[TrainingState[Any]], float | None] = lambda state: None
    """How good the state is that a checkpoint is made of, the lower the better; None: not measured. It is
    not asked before the first step, nor when a request to stop leaves little time."""
    check_owned: Callable[[], None] = lambda: None
    """Called before a checkpoint is put in place: raises where the folder is another process's now."""


def new_state(
    model: Model, optimizer: torch.optim.Optimizer, ema: Sequence[float], scaled: bool = False
) -> TrainingState[Model]:
    """The state before the first step, with a fused optimiser; the averages start at the weights.

    `ema` are their decays per step, warmed up as min(ema, (1 + k) / (10 + k)). With `scaled` there is a loss
    scale, as half precision needs it.
    """
    averages = {decay: copy.deepcopy(model).eval().requires_grad_(False) for decay in ema}
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    device = next(model.parameters()).device
    skipped = torch.zeros(2, dtype=torch.int64, device=device)
    scale = LossScale(device) if scaled else None
    return TrainingState(model, averages, optimizer, skipped, loss_scale=scale)


def resume(
    folder: Path, state: TrainingState[Any], identity: str, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """Restore the newest whole checkpoint of the folder; returns its state.json, None at the start.
    UsageError where it is one of a training with another identity."""
    found = checkpoint.newest_checkpoint(folder, warn)
    if found is None:
        return None
    if found[1].get("identity") != identity:
        same = found[1].get("version") == checkpoint.STATE_VERSION
        older = "" if same else ", or begun by an older version"
        raise UsageError(f"{found[0]}: of a training with other settings{older}; choose another folder")
    checkpoint.restore(found[0], state, found[1])
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
    """Train until the budget is seen, from where `state` stands; there are checkpoints of start and end.

    Raises Interrupted after a checkpoint when asked to stop, HkdpipeError when too many steps in a row have
    no finite gradient.
    """
    state.model.train()
    first_step = torch.tensor(state.step)
    copy_from_first([first_step], world)
    if state.step != first_step:
        raise HkdpipeError(
            f"{folder}: this process goes on from step {state.step}, the first from {first_step}"
        )
    for model in state.weights.values():
        copy_from_first(list(model.state_dict().values()), world)
    if settings.compile:
        state.model.compile()
    saved_at, saved_when = -1, time.monotonic()
    with Background() as writer:

        def check_steps() -> None:
            """No checkpoint is made of steps that end the training: none could go on from it."""
            in_a_row = int(state.skipped[1])
            if in_a_row >= settings.max_skipped:
                writer.wait()
                raise HkdpipeError(
                    f"loss or gradient were not finite in the last {in_a_row} steps, up to {state.seen:,} "
                    f"samples; the last good checkpoint is {checkpoint.checkpoints(folder)[-1]}"
                )

        def save(scored: bool = True) -> None:
            nonlocal saved_at, saved_when
            if world.first and saved_at != state.seen:
                writer.wait()
                score = callbacks.score(state) if scored and state.step else None
                good = score is not None and math.isfinite(score)
                told = {**about, "score": score} if good else about
                taken, keep = checkpoint.snapshot(state), settings.keep_checkpoints
                writer.start(checkpoint.save_checkpoint, folder, taken, told, keep, callbacks.check_owned)
            saved_at, saved_when = state.seen, time.monotonic()

        if state.step:
            saved_at = state.seen
        else:
            save()
            writer.wait()
        terms: Mapping[str, Tensor] = {}
        for pieces in prefetched(read_batch, state.seen, settings, world):
            minutes = (time.monotonic() - saved_when) / 60
            late = world.first and 0 < settings.checkpoint_minutes <= minutes
            stop, late = any_process([callbacks.stop(), late], world)
            if stop or late:
                check_steps()
                save(scored=not stop)
            if stop:
                writer.wait()
                barrier(world)
                raise Interrupted(
                    f"stopped after {state.seen:,} of {settings.budget:,} samples; the same command goes on"
                )
            progress = min(1.0, state.seen / settings.budget)
            with _one_line_if_compiling_fails(settings.compile):
                terms = step(state, pieces, loss, settings, progress, world)
            due = state.seen // settings.checkpoint_every > saved_at // settings.checkpoint_every
            done = state.seen >= settings.budget
            if due or done or state.step % LOG_EVERY == 0:
                check_steps()
                if world.first:
                    callbacks.log(state.seen, _values(terms, state))
            if due or done:
                save()
            writer.check()
        writer.wait()
        barrier(world)


def step(
    state: TrainingState[Any],
    pieces: Sequence[Piece],
    loss: Loss,
    settings: LoopSettings,
    progress: float,
    world: World,
) -> Mapping[str, Tensor]:
    """One step on this process's part of a batch. Returns the terms of the loss of the whole batch.

    Where the loss or the gradient is not finite, weights and optimiser stay as they are. All processes see
    the same averages, so they need not agree on it; and the optimiser is told on the device, without a wait.
    """
    risen = min(1.0, (state.seen + settings.batch_size) / settings.warmup) if settings.warmup else 1.0
    factor = learning_rate_factor(settings.schedule, progress) * risen
    for group in state.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    state.optimizer.zero_grad(set_to_none=True)
    scale = 1.0 if state.loss_scale is None else state.loss_scale.value
    device = state.skipped.device.type
    terms: dict[str, Tensor] = {}
    for share, batch in pieces:
        with torch.autocast(device, settings.autocast, enabled=settings.autocast is not None):
            of_piece = loss(state.model, batch, progress)
        (of_piece["loss"] * share * scale).backward()
        for name, value in of_piece.items():
            terms[name] = share * value.detach() + terms.get(name, 0.0)
    parameters = [value for value in state.model.parameters() if value.grad is not None]
    gradients = [value.grad for value in parameters if value.grad is not None]
    average_over_processes([*gradients, *terms.values()], world)
    if state.loss_scale is not None:
        torch._foreach_div_(gradients, state.loss_scale.value)
    norm = nn.utils.get_total_norm(gradients)
    for hook in settings.hooks:
        hook.before_step(parameters, norm)
    spoilt = ~(norm + terms["loss"]).isfinite()
    state.optimizer.found_inf = spoilt.float()  # type: ignore[attr-defined]
    state.optimizer.step()
    skipped, in_a_row = state.skipped
    # So many that they end the training are not forgotten before they are looked at.
    goes_on = spoilt | (in_a_row >= settings.max_skipped)
    state.skipped = torch.stack([skipped + spoilt, (in_a_row + 1) * goes_on])
    if state.loss_scale is not None:
        state.loss_scale.update(spoilt)
    for hook in settings.hooks:
        hook.after_step(state)
    state.step += 1
    state.seen += settings.batch_size
    return terms


@contextmanager
def _one_line_if_compiling_fails(compiled: bool) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not compiled:
            raise
        from torch._dynamo.exc import TorchDynamoException
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        if not isinstance(error, TorchDynamoException):
            raise
        raise HkdpipeError(
            f"torch.compile failed ({first_line(error)}); a process that was killed while compiling may have "
            f"left a broken file in {cache_dir()}: delete that folder, or ",
            Remedy("no compilation"),
        ) from None


def learning_rate_factor(schedule: str, progress: float) -> float:
    """'constant': 1; 'cosine': from 1 to 0 over the budget."""
    return 1.0 if schedule == "constant" else (1 + math.cos(math.pi * progress)) / 2


def prefetched(
    read_batch: ReadBatch, seen: int, settings: LoopSettings, world: World
) -> Iterator[list[Piece]]:
    """This process's part of every global batch up to the budget, in order, read ahead by the workers. What
    fails while it is read ahead is raised in its turn."""

    def read(start: int) -> list[Piece]:
        first, stop = rank_slice(start, settings.batch_size, world.rank, world.size)
        size = settings.micro_batch or stop - first
        edges = [(edge, min(edge + size, stop)) for edge in range(first, stop, size)]
        return [((end - edge) / (stop - first), read_batch(edge, end)) for edge, end in edges]

    starts = range(seen, settings.budget, settings.batch_size)
    if not settings.workers:
        yield from map(read, starts)
        return
    with ThreadPoolExecutor(settings.workers, thread_name_prefix="read") as readers:
        ahead: deque[Future[list[Piece]]] = deque()
        for start in starts:
            ahead.append(readers.submit(read, start))
            if len(ahead) > settings.workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _values(terms: Mapping[str, Tensor], state: TrainingState[Any]) -> dict[str, float]:
    """What is logged of a step, read from the device at once."""
    read = [value.double() for value in (*terms.values(), state.skipped[0])]
    *values, skipped = torch.stack(read).tolist()
    rate = state.optimizer.param_groups[0]["lr"]
    return {**dict(zip(terms, values, strict=True)), "skipped": skipped, "learning_rate": rate}
