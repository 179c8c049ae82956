from __future__ import annotations

import numpy as np
import pytest

from hkdpipe.manifests.errors import UsageError
from hkdpipe.manifests.order import rank_slice, training_indices

SEED, FIRST, COUNT, BATCH = 11, 5, 42, 24


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    n = COUNT - FIRST
    epochs = training_indices(SEED, 0, 4 * n, FIRST, COUNT).reshape(4, n)
    assert epochs.dtype == np.int64
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(FIRST, COUNT))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4
    assert training_indices(SEED + 1, 0, n, FIRST, COUNT).tolist() != epochs[0].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_processes_together_read_the_global_sequence_from_any_batch_on(world_size: int) -> None:
    batches = 12
    sequence = training_indices(SEED, 0, batches * BATCH, FIRST, COUNT)
    for resumed_at in range(batches):
        seen = [
            training_indices(SEED, *rank_slice(batch * BATCH, BATCH, rank, world_size), FIRST, COUNT)
            for batch in range(resumed_at, batches)
            for rank in range(world_size)
        ]
        assert np.concatenate(seen).tolist() == sequence[resumed_at * BATCH :].tolist()


def test_any_range_is_a_slice_of_the_sequence() -> None:
    sequence = training_indices(SEED, 0, 100, FIRST, COUNT)
    for start in range(0, 100, 7):
        for stop in range(start, 100, 11):
            part = training_indices(SEED, start, stop, FIRST, COUNT)
            assert part.tolist() == sequence[start:stop].tolist()
    part[:] = 0  # what is handed out is the caller's
    assert training_indices(SEED, 0, 100, FIRST, COUNT).tolist() == sequence.tolist()


def test_refusals() -> None:
    with pytest.raises(
        UsageError, match=r"training\.batch_size: got 24; accepted: a multiple of the 5 processes"
    ):
        rank_slice(0, 24, 0, 5)
    with pytest.raises(UsageError, match=r"training\.validation: got 42; accepted: from 0 to 41"):
        training_indices(SEED, 0, 1, 42, 42)
    with pytest.raises(ValueError, match="not a range"):
        training_indices(SEED, 3, 2, FIRST, COUNT)
