"""The sequence of global batches, through the functions that training reads with, from memory."""

import dataclasses
import functools
import itertools
import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive.reading_order import Blocks, training_indices
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.loop.training_loop import LoopSettings, prefetched
from hkdpipe.trainer.loop.world import World

# Three epochs of 64 trajectories: batches of 24 lie across them, and across blocks.
SEED, FIRST, COUNT, EPOCHS = 3, 6, 70, 3
SETTINGS = LoopSettings(
    budget=EPOCHS * (COUNT - FIRST),
    batch_size=24,
    schedule="constant",
    checkpoint_every=24,
    keep_checkpoints=1,
    workers=0,
)
BATCHES = SETTINGS.budget // SETTINGS.batch_size
WORLD_SIZES = (1, 2, 3, 4, 8)
ORDERS = {"full": None, "blocks": Blocks(shard_size=8, shards=3)}


def batches(
    order: str, workers: int, world_size: int, seen: int, count: int | None = None
) -> list[NDArray[np.int64]]:
    """The global batches from `seen` on, `count` of them or all, put together from the processes' parts."""

    def read_batch(start: int, stop: int) -> NDArray[np.int64]:
        time.sleep(start % 5 * 1e-4)  # so that workers finish in another order than they began
        return training_indices(SEED, start, stop, FIRST, COUNT, ORDERS[order])

    settings = dataclasses.replace(SETTINGS, workers=workers)
    parts = []
    for rank in range(world_size):
        reading = prefetched(read_batch, seen, settings, World(rank, world_size))
        parts.append([batch for [(_, batch)] in itertools.islice(reading, count)])
        reading.close()  # type: ignore[attr-defined]
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


@functools.cache
def remainder(order: str, workers: int, world_size: int, interrupted: int) -> list[list[int]]:
    """The global batches after so many, to the end: they are the same for all that were interrupted there."""
    if interrupted == BATCHES:
        return []
    return [
        batch.tolist() for batch in batches(order, workers, world_size, interrupted * SETTINGS.batch_size)
    ]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("order", ORDERS)
def test_interrupted_at_any_batch_and_resumed_with_another_world_size(
    order: str, world_size: int, workers: int
) -> None:
    """The order itself is compared, not what was read: nothing is sorted."""
    sequence = training_indices(SEED, 0, SETTINGS.budget, FIRST, COUNT, ORDERS[order])
    expected = sequence.reshape(BATCHES, SETTINGS.batch_size).tolist()
    for interrupted in range(BATCHES + 1):
        before = batches(order, workers, world_size, 0, interrupted) if interrupted else []
        for other in WORLD_SIZES:
            after = remainder(order, workers, other, interrupted)
            assert [batch.tolist() for batch in before] + after == expected


def test_three_epochs_drop_and_double_nothing() -> None:
    for order in ORDERS:
        read = np.concatenate(batches(order, 3, 4, 0))
        assert np.bincount(read, minlength=COUNT).tolist() == [0] * FIRST + [EPOCHS] * (COUNT - FIRST)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_cannot_be_read_is_raised_at_its_batch(workers: int) -> None:
    def read_batch(start: int, stop: int) -> int:
        if start == 72:
            raise InputError("a shard is damaged")
        return start

    reading = prefetched(read_batch, 0, dataclasses.replace(SETTINGS, workers=workers), World())
    assert [next(reading) for _ in range(3)] == [[(1.0, 0)], [(1.0, 24)], [(1.0, 48)]]
    with pytest.raises(InputError, match="a shard is damaged"):
        next(reading)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_read_so_many_batches_ahead_and_stop_when_asked(workers: int) -> None:
    begun: list[int] = []
    threads: set[str] = set()

    def read_batch(start: int, stop: int) -> int:
        begun.append(start)
        threads.add(threading.current_thread().name)
        return start

    reading = prefetched(read_batch, 0, dataclasses.replace(SETTINGS, workers=workers), World())
    for _ in range(3):
        next(reading)
    deadline = time.monotonic() + 60
    while len(begun) < 3 + workers and time.monotonic() < deadline:
        time.sleep(0.001)
    reading.close()  # type: ignore[attr-defined]
    assert sorted(begun) == [24 * batch for batch in range(3 + workers)]
    own = {threading.current_thread().name}
    assert (threads == own) == (workers == 0)
    assert not threads & {thread.name for thread in threading.enumerate()} - own
