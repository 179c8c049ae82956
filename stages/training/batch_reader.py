"""What training reads at a position of its endless sequence."""

import itertools
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.archive.block_stream import BlockStream
from hkdpipe.manifests.archive.reader import Archive, DamagedShard
from hkdpipe.manifests.archive.reading_order import Blocks, training_indices
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.ground.rng import uniform
from hkdpipe.stages.training.real_images import RealImages
from hkdpipe.trainer.settings.training_settings import TrainingSettings


class Reader:
    """An archive in the order of a training, without its damaged shards if they are to be skipped; for any
    thread."""

    def __init__(
        self,
        archive: Archive,
        training: TrainingSettings,
        warn: Callable[[str], None],
        real: RealImages | None = None,
    ) -> None:
        self.archive, self.training, self.real, self._warn = archive, training, real, warn
        blocks = Blocks(archive.plan.shard_size, training.block_shards)
        self._blocks = blocks if training.order == "blocks" else None
        first = training.validation
        self._stream = BlockStream(archive, training.seed, first, blocks) if training.streaming else None
        self._lock = threading.Lock()
        self._damaged: set[int] = set()
        self._replaced: dict[int, int] = {}

    def close(self) -> None:
        """Reading is over; the archive stays open."""
        if self._stream is not None:
            self._stream.close()

    def read(
        self, start: int, stop: int, states: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """The trajectories at positions start … stop-1, (B,), and their `states` (B, k): (B, k, C, H, W).

        InputError for a damaged shard, unless it is to be skipped: then every trajectory of it is replaced
        by another one, the same whoever reads it, and nothing else changes.
        """
        indices = self._indices(start, stop)
        if self._stream is not None:
            return indices, self._stream.read(start, stop, states)
        while True:
            chosen = self._without_damaged(start, indices)
            try:
                return chosen, self.archive.read(chosen, states)
            except DamagedShard as error:
                self._note(error)

    def undamaged(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some trajectories that can be read. InputError where damage is not to be skipped."""
        for k in np.unique(self._shards(indices)).tolist():
            try:
                self.archive.verify_shard(k)
            except DamagedShard as error:
                self._note(error)
        return indices[~np.isin(self._shards(indices), list(self._damaged))]

    def replaced(self, seen: int) -> int:
        """How many trajectories, of those read at positions below `seen`, were replaced."""
        return sum(count for start, count in list(self._replaced.items()) if start < seen)

    def _indices(self, start: int, stop: int) -> NDArray[np.int64]:
        first, count = self.training.validation, len(self.archive)
        return training_indices(self.training.seed, start, stop, first, count, self._blocks)

    def _shards(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices // self.archive.plan.shard_size

    def _note(self, error: DamagedShard) -> None:
        """Remember a damaged shard, and say so once, if it may be skipped."""
        if self.training.on_damage == "stop":
            raise error
        with self._lock:
            known = error.shard in self._damaged
            self._damaged.add(error.shard)
        if not known:
            self._warn(f"{error}; its trajectories are replaced by others")

    def _without_damaged(self, start: int, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        damaged = set(self._damaged)
        if not damaged:
            return indices
        chosen = indices.copy()
        rows = np.flatnonzero(np.isin(self._shards(indices), list(damaged)))
        for row in rows.tolist():
            chosen[row] = self._replacement(start + row, damaged)
        self._replaced[start] = len(rows)
        return chosen

    def _replacement(self, position: int, damaged: set[int]) -> int:
        """A trajectory of another shard: the one at a later position, which is drawn from ever further ahead,
        so that in blocks it is near, and read soon or just read anyway."""
        size, first, count = self.archive.plan.shard_size, self.training.validation, len(self.archive)
        if damaged.issuperset(range(first // size, -(-count // size))):
            raise InputError(f"{self.archive.name}: every shard to train on is missing or damaged")
        drawn = (self._drawn(position, attempt) for attempt in itertools.count())
        return next(index for index in drawn if index // size not in damaged)

    def _drawn(self, position: int, attempt: int) -> int:
        # The next two epochs' worth of positions hold a whole epoch, so every trajectory.
        furthest = 2 * (len(self.archive) - self.training.validation)
        reach = min(furthest, self.archive.plan.shard_size << attempt)
        draw = uniform(self.training.seed, f"replacement-{attempt}", [position], 1)[0, 0]
        later = position + 1 + int(draw * reach)
        return int(self._indices(later, later + 1)[0])
