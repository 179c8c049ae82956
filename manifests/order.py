"""The order in which training reads an archive: a pure function of the seed and of the position.

Positions 0, 1, 2, … run across epochs; the global batch is a range of positions and each process takes its
slice of it. So workers, processes and resuming change nothing in the sequence of global batches.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.errors import UsageError
from hkdpipe.manifests.rng import permutation


def training_indices(seed: int, start: int, stop: int, first: int, count: int) -> NDArray[np.int64]:
    """Trajectory indices at the global positions start … stop-1, (stop - start,), each in first … count-1.

    Trajectories 0 … first-1 are held out, so a growing archive never moves a held-out one. Each epoch of
    count - first positions is a permutation of its own. UsageError if nothing is left to train on, ValueError
    for positions out of order.
    """
    n = count - first
    if first < 0 or n < 1:
        raise UsageError(
            f"training.validation: got {first}; accepted: from 0 to {count - 1}, as the archive holds {count}"
        )
    if not 0 <= start <= stop:
        raise ValueError(f"positions {start} … {stop}: not a range from 0 on")
    indices = np.empty(stop - start, dtype=np.int64)
    position = start
    while position < stop:
        epoch, offset = divmod(position, n)
        end = min(stop, (epoch + 1) * n)
        indices[position - start : end - start] = _epoch(seed, epoch, n)[offset : offset + end - position]
        position = end
    return indices + first


def rank_slice(start: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The positions, first and one past the last, that a process takes of the global batch at `start`.

    UsageError if the batch cannot be divided evenly.
    """
    if batch_size % world_size:
        raise UsageError(
            f"training.batch_size: got {batch_size}; accepted: a multiple of the {world_size} processes"
        )
    share = batch_size // world_size
    return start + rank * share, start + (rank + 1) * share


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    order = permutation(seed, "order", epoch, n)
    order.flags.writeable = False  # the cache hands out this very array
    return order
