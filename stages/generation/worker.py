"""Several processes that generate one archive together."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Worker:
    """One of `count` workers, `index` from 0."""

    index: int = 0
    count: int = 1

    def order(self, shards: Sequence[int]) -> list[int]:
        """The worker's own shards first, then those of others, where each worker begins at another place."""
        own = [k for k in shards if k % self.count == self.index]
        others = [k for k in shards if k % self.count != self.index]
        start = len(others) * self.index // self.count
        return own + others[start:] + others[:start]


ALONE = Worker()
