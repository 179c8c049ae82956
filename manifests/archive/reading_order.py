"""The order in which training reads an archive: a pure function of the seed and of the position.

Positions 0, 1, 2, … run across epochs; the global batch is a range of positions and each process takes its
slice of it. So workers, processes and resuming change nothing in the sequence of global batches.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.rng import permutation


@dataclass(frozen=True)
class Blocks:
    """How an epoch is cut for storage that dislikes random reads: shards in a random order, `shards` of them
    a block, and the trajectories of a block in a random order. A shard has `shard_size` trajectories."""

    shard_size: int
    shards: int


@dataclass(frozen=True)
class Block:
    """A stretch of the sequence: trajectories `indices` (n,) at the positions from `start` on, all of them in
    `shards`."""

    start: int
    shards: tuple[int, ...]
    indices: NDArray[np.int64]

    @property
    def stop(self) -> int:
        """One past its last position."""
        return self.start + len(self.indices)


def training_indices(
    seed: int, start: int, stop: int, first: int, count: int, blocks: Blocks | None = None
) -> NDArray[np.int64]:
    """Trajectory indices at the global positions start … stop-1, (stop - start,), each in first … count-1.

    Trajectories 0 … first-1 are held out, so a growing archive never moves a held-out one. Each epoch of
    count - first positions is a permutation of its own, one of all trajectories or one in `blocks`.
    ValueError if nothing is left to train on, and for positions out of order.
    """
    if first < 0 or count - first < 1:
        raise ValueError(f"{first} of {count} trajectories held out: none is left")
    if not 0 <= start <= stop:
        raise ValueError(f"positions {start} … {stop}: not a range from 0 on")
    indices = np.empty(stop - start, dtype=np.int64)
    position = start
    while position < stop:
        block = block_at(seed, position, first, count, blocks)
        end = min(stop, block.stop)
        indices[position - start : end - start] = block.indices[position - block.start : end - block.start]
        position = end
    return indices


def block_at(seed: int, position: int, first: int, count: int, blocks: Blocks | None) -> Block:
    """The block that holds a position: the whole epoch without `blocks`, which knows no shards. In blocks, it
    costs work and memory for a block and, once an epoch, for a number per shard."""
    epoch, offset = divmod(position, count - first)
    if blocks is None:
        return _epoch(seed, epoch, first, count)
    _, starts = _shards(seed, epoch, first, count, blocks)
    number = int(np.searchsorted(starts, offset, side="right")) - 1
    return _block(seed, epoch, number, first, count, blocks)


def rank_slice(start: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The positions, first and one past the last, that a process takes of the global batch at `start`.
    ValueError if the batch cannot be divided evenly."""
    if batch_size % world_size:
        raise ValueError(f"a batch of {batch_size} for {world_size} processes")
    share = batch_size // world_size
    return start + rank * share, start + (rank + 1) * share


@functools.lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, first: int, count: int) -> Block:
    n = count - first
    return _finished(epoch * n, (), first + permutation(seed, "order", epoch, n))


@functools.lru_cache(maxsize=2)
def _shards(
    seed: int, epoch: int, first: int, count: int, blocks: Blocks
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The shards in the order of an epoch, and the offset in the epoch at which each block starts."""
    lowest = first // blocks.shard_size
    shards = lowest + permutation(seed, "order-shards", epoch, -(-count // blocks.shard_size) - lowest)
    begin, end = _ranges(shards, first, count, blocks)
    lengths = np.add.reduceat(end - begin, np.arange(0, len(shards), blocks.shards))
    return shards, np.cumsum(lengths) - lengths


# Some more than one, as readers ahead of the training may already be in the next.
@functools.lru_cache(maxsize=4)
def _block(seed: int, epoch: int, number: int, first: int, count: int, blocks: Blocks) -> Block:
    order, starts = _shards(seed, epoch, first, count, blocks)
    shards = order[number * blocks.shards : (number + 1) * blocks.shards]
    begin, end = _ranges(shards, first, count, blocks)
    indices = np.concatenate([np.arange(low, high) for low, high in zip(begin, end, strict=True)])
    chosen = permutation(seed, "order-block", epoch * len(starts) + number, len(indices))
    return _finished(epoch * (count - first) + int(starts[number]), tuple(shards.tolist()), indices[chosen])


def _ranges(
    shards: NDArray[np.int64], first: int, count: int, blocks: Blocks
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First trajectory to train on of each shard, and one past its last."""
    begin = shards * blocks.shard_size
    return np.maximum(begin, first), np.minimum(begin + blocks.shard_size, count)


def _finished(start: int, shards: tuple[int, ...], indices: NDArray[np.int64]) -> Block:
    indices.flags.writeable = False  # the caches hand out this very array
    return Block(start, shards, indices)
