import tracemalloc

import numpy as np
import pytest

from hkdpipe.manifests.archive.reading_order import Blocks, block_at, rank_slice, training_indices
from hkdpipe.manifests.ground.rng import permutation

SEED, FIRST, COUNT, BATCH = 11, 5, 42, 24
# Shards of 4: the first is held out, of the second three are trained on, the last has two; ten in all.
BLOCKS = Blocks(shard_size=4, shards=3)
ORDERS = pytest.mark.parametrize("blocks", [None, BLOCKS], ids=["full", "blocks"])


@ORDERS
def test_every_epoch_is_a_permutation_of_its_own(blocks: Blocks | None) -> None:
    n = COUNT - FIRST
    epochs = training_indices(SEED, 0, 4 * n, FIRST, COUNT, blocks).reshape(4, n)
    assert epochs.dtype == np.int64
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(FIRST, COUNT))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert training_indices(SEED + 1, 0, n, FIRST, COUNT, blocks).tolist() != epochs[0].tolist()


def test_blocks_hold_the_trajectories_of_shards_in_a_random_order() -> None:
    """By the definition, an epoch at a time."""
    n, position = COUNT - FIRST, 0
    for epoch in range(3):
        shards = [1 + k for k in permutation(SEED, "order-shards", epoch, 10).tolist()]
        for number in range(4):
            group = shards[3 * number : 3 * number + 3]
            inside = [i for k in group for i in range(4 * k, 4 * k + 4) if FIRST <= i < COUNT]
            chosen = permutation(SEED, "order-block", 4 * epoch + number, len(inside))
            block = block_at(SEED, position, FIRST, COUNT, BLOCKS)
            assert block.start == position
            assert list(block.shards) == group
            assert block.indices.tolist() == [inside[i] for i in chosen]
            for inner in range(block.start, block.stop):
                assert block_at(SEED, inner, FIRST, COUNT, BLOCKS).start == block.start
            position = block.stop
        assert position == (epoch + 1) * n


def test_a_block_of_a_large_archive_costs_no_permutation_of_all() -> None:
    """A billion trajectories: numbers for all of them would need gigabytes."""
    tracemalloc.start()
    indices = training_indices(SEED, 10**9 + 10**8, 10**9 + 10**8 + 256, 256, 10**9, Blocks(2048, 4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(indices)) == 256
    assert len(np.unique(indices // 2048)) <= 8
    assert peak < 100e6  # a few numbers for each of half a million shards


@ORDERS
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_processes_read_the_global_sequence_from_any_batch_on(world_size: int, blocks: Blocks | None) -> None:
    batches = 12
    sequence = training_indices(SEED, 0, batches * BATCH, FIRST, COUNT, blocks)
    for resumed_at in range(batches):
        seen = [
            training_indices(SEED, *rank_slice(batch * BATCH, BATCH, rank, world_size), FIRST, COUNT, blocks)
            for batch in range(resumed_at, batches)
            for rank in range(world_size)
        ]
        assert np.concatenate(seen).tolist() == sequence[resumed_at * BATCH :].tolist()


@ORDERS
def test_any_range_is_a_slice_of_the_sequence(blocks: Blocks | None) -> None:
    sequence = training_indices(SEED, 0, 100, FIRST, COUNT, blocks)
    for start in range(0, 100, 7):
        for stop in range(start, 100, 11):
            part = training_indices(SEED, start, stop, FIRST, COUNT, blocks)
            assert part.tolist() == sequence[start:stop].tolist()
    part[:] = 0  # what is handed out is the caller's
    assert training_indices(SEED, 0, 100, FIRST, COUNT, blocks).tolist() == sequence.tolist()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="a batch of 24 for 5 processes"):
        rank_slice(0, 24, 0, 5)
    with pytest.raises(ValueError, match=r"42 of 42 .* held out"):
        training_indices(SEED, 0, 1, 42, 42)
    with pytest.raises(ValueError, match="not a range"):
        training_indices(SEED, 3, 2, FIRST, COUNT)
