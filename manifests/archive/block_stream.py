"""Trajectories in the order of blocks, from tar shards that are streamed whole and kept nowhere."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.archive.reader import Archive, Integers
from hkdpipe.manifests.archive.reading_order import Block, Blocks, block_at
from hkdpipe.manifests.forms.codecs import unpack
from hkdpipe.manifests.forms.residual_encoding import decode_states
from hkdpipe.manifests.forms.webdataset_form import member
from hkdpipe.manifests.ground.errors import InputError


class BlockStream:
    """An archive of the form "webdataset", read as `training_indices(seed, …, first, count, blocks)` says.

    Reading goes forwards; whoever goes back waits for a block again. At most two blocks are in memory, the
    one that is read and its neighbour, and the shard on its way. Any thread may read.
    """

    def __init__(self, archive: Archive, seed: int, first: int, blocks: Blocks) -> None:
        self._archive = archive
        self._block_at = partial(block_at, seed, first=first, count=len(archive), blocks=blocks)
        self._lock = threading.Lock()
        self._blocks: dict[int, Future[NDArray[Any]]] = {}
        self._closed = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="stream")

    def close(self) -> None:
        """Reading is over: waits for the shard on its way, and for no other."""
        self._closed = True
        self._loader.shutdown(cancel_futures=True)

    def read(self, start: int, stop: int, states: Integers) -> NDArray[Any]:
        """Some states of the trajectories at positions start … stop-1, (B, k, C, H, W), as `Archive.read`.
        `states` is (B, k). DamagedShard for a shard that is missing or damaged."""
        return decode_states(self._archive.plan, np.asarray(states), partial(self._stored, start, stop))

    def _stored(self, start: int, stop: int, columns: NDArray[np.int64]) -> NDArray[Any]:
        """What is stored of states (B, k), anything where that is `NOT_READ`; (B, k, C, H, W)."""
        stored = np.empty((*columns.shape, *self._archive.shape), self._archive.plan.stored_dtype)
        position = start
        while position < stop:
            block = self._block_at(position)
            end = min(stop, block.stop)
            part = slice(position - start, end - start)
            rows = np.arange(position - block.start, end - block.start)[:, None]
            stored[part] = self._states(block, end).result()[rows, columns[part]]
            position = end
        return stored

    def _states(self, block: Block, end: int) -> Future[NDArray[Any]]:
        """All states of a block; beyond its middle the next takes the place of the one before."""
        with self._lock:
            self._begin(block)
            if 2 * end > block.start + block.stop:
                following = self._block_at(block.stop)
                self._begin(following)
                # One that is dropped may still be on its way: whoever waits for it has a hold of it.
                for start in set(self._blocks) - {block.start, following.start}:
                    del self._blocks[start]
            return self._blocks[block.start]

    def _begin(self, block: Block) -> None:
        if block.start not in self._blocks:
            self._blocks[block.start] = self._loader.submit(self._load, block)

    def _load(self, block: Block) -> NDArray[Any]:
        """States of the block's trajectories in the order of its positions, (n, *plan.states_shape)."""
        from webdataset import DataPipeline
        from webdataset import decode as decoded
        from webdataset.tariterators import group_by_keys, tar_file_expander

        plan = self._archive.plan
        stored = np.empty((len(block.indices), *plan.states_shape), plan.stored_dtype)
        places = {index: place for place, index in enumerate(block.indices.tolist())}
        name = member(plan).removeprefix(".")
        members = partial(tar_file_expander, select_files=lambda path: path.endswith(name))
        for sample in DataPipeline(partial(self._shards, block), members, group_by_keys, decoded()):
            place = places.pop(int(sample["__key__"]), None)
            if place is not None:  # else it is held out
                stored[place] = sample[name] if plan.codec == "none" else unpack(plan, sample[name])
        if places:
            raise InputError(f"{self._archive.name}: trajectory {min(places)} is not in its shard")
        return stored

    def _shards(self, block: Block) -> Iterator[dict[str, Any]]:
        """The block's tars as webdataset takes them; nothing of one is looked at before it is verified."""
        for k in block.shards:
            if self._closed:
                raise ValueError(f"{self._archive.name}: the stream is closed")
            yield {"url": self._archive.shards[k].file, "stream": io.BytesIO(self._archive.shard_bytes(k))}
