"""A finished archive of trajectories, read at random."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.contents import parse_manifest, read_manifest, size_of
from hkdpipe.manifests.errors import InputError
from hkdpipe.manifests.files import parse_json
from hkdpipe.manifests.plan import Plan, ShardRecord
from hkdpipe.manifests.remote import RemoteFolder, is_url
from hkdpipe.manifests.shard_files import DAMAGED, MISSING, BadFile, Folder, OpenFile
from hkdpipe.manifests.state_type import decode

Integers = Sequence[int] | NDArray[np.integer]


class DamagedShard(InputError):
    """A shard of an archive, number `shard`, is missing or has other bytes than the manifest says."""

    def __init__(self, message: str, shard: int) -> None:
        super().__init__(message)
        self.shard = shard


class Archive:
    """A finished archive, open for reading; made by `open_archive`. Any thread may call its methods."""

    def __init__(self, folder: Folder | RemoteFolder, plan: Plan, shards: list[ShardRecord]) -> None:
        self.plan = plan
        self.shards = tuple(shards)
        self.sigmas: NDArray[np.float64] = np.array(plan.sigmas, dtype=np.float64)
        self.shape = plan.shape
        self.identity = plan.identity()
        self.name = str(folder)
        self._folder = folder
        self._files: OrderedDict[int, OpenFile] | None = OrderedDict()
        self._files_lock = threading.Lock()
        self._shard_locks = [threading.Lock() for _ in shards]

    def __len__(self) -> int:
        return self.plan.count

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading is over."""
        with self._files_lock:
            self._files = None

    def read(self, indices: Integers, states: Integers | Sequence[Sequence[int]]) -> NDArray[Any]:
        """Some states of some trajectories, (B, k, C, H, W) in the archive's dtype; bfloat16 as float32.

        `indices` is (B,), in 0 … len-1; `states` is (k,), the same for all, or (B, k), in 0 … len(sigmas)-1.
        Only the bytes of these states are read, but a shard is verified as a whole when first used.
        ValueError for numbers out of range or arrays of another shape, InputError for a damaged shard.
        """
        rows = _numbers("indices", indices, len(self))
        columns = _numbers("states", states, len(self.sigmas))
        if rows.ndim != 1 or columns.ndim not in (1, 2) or (columns.ndim == 2 and len(columns) != len(rows)):
            raise ValueError(f"indices {rows.shape} and states {columns.shape}: not (B,) and (k,) or (B, k)")
        size = self.plan.state_bytes
        data = np.empty((len(rows), columns.shape[-1], size), dtype=np.uint8)
        shared = _runs(columns) if columns.ndim == 1 else None
        for b, index in enumerate(rows.tolist()):
            k = index // self.plan.shard_size
            shard = self.shards[k]
            file = self._open(k)
            base = shard.offset + (index - shard.start) * shard.stride
            for j, length, state in shared if shared is not None else _runs(columns[b]):
                self._fill(data[b, j : j + length].reshape(-1), file, base + state * size, shard)
        stored = data.view(self.plan.stored_dtype.newbyteorder("<"))
        return decode(stored, self.plan.dtype).reshape(*data.shape[:2], *self.shape)

    def verify_shard(self, k: int) -> None:
        """DamagedShard unless the files of shard k have the bytes of the manifest; they are read once."""
        self._open(k)

    def shard_bytes(self, k: int) -> bytes:
        """The whole file of shard k, verified, past any cache. DamagedShard if it is missing or damaged."""
        shard = self.shards[k]
        try:
            content = b"".join(self._folder.stream(shard.file))
        except BadFile as error:
            raise _damaged(self.name, shard, shard.file, str(error)) from None
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise _damaged(self.name, shard, shard.file, DAMAGED)
        return content

    def _fill(self, target: NDArray[np.uint8], file: OpenFile, offset: int, shard: ShardRecord) -> None:
        done = 0
        while done < len(target):
            count = os.preadv(file.descriptor, [target[done:].data], offset + done)
            if count == 0:
                raise _damaged(self.name, shard, shard.file, "ends early")
            done += count

    def _open(self, k: int) -> OpenFile:
        """The verified, open file of shard k."""
        with self._files_lock:
            if self._files is None:
                raise ValueError(f"{self.name}: the archive is closed")
            if k in self._files:
                self._files.move_to_end(k)
                return self._files[k]
        with self._shard_locks[k]:
            # The states' file comes first; that of the labels is only verified.
            file, *_ = [self._verified(self.shards[k], *entry) for entry in self.shards[k].files]
        with self._files_lock:
            if self._files is not None:
                self._files[k] = file
                if len(self._files) > self._folder.open_files:
                    self._files.popitem(last=False)
        return file

    def _verified(self, shard: ShardRecord, name: str, size: int, sha256: str) -> OpenFile:
        try:
            return self._folder.open(name, size, sha256)
        except BadFile as error:
            raise _damaged(self.name, shard, name, str(error)) from None


def open_archive(path: str | Path, check_sizes: bool = True) -> Archive:
    """Open a finished archive, in a folder or under a URL (a string with ://, such as s3://bucket/prefix).

    InputError if it is none or, in a folder and unless `check_sizes` is off, a shard's file is missing or of
    another size. The shards of a URL are fetched whole when first used, and looked at then.
    """
    if is_url(path):
        remote = RemoteFolder(str(path))
        return Archive(remote, *_manifest(remote))
    root = Path(path)
    plan, shards = read_manifest(root)
    for shard in shards if check_sizes else ():
        for file, recorded, _ in shard.files:
            size = size_of(root / file)
            if size is None:
                raise _damaged(root, shard, file, MISSING)
            if size != recorded:
                what = f"is damaged: it has {size} bytes, not the manifest's {recorded}"
                raise _damaged(root, shard, file, what)
    return Archive(Folder(root), plan, shards)


def _manifest(remote: RemoteFolder) -> tuple[Plan, list[ShardRecord]]:
    try:
        content = b"".join(remote.stream("manifest.json"))
    except BadFile:
        raise InputError(f"{remote}: no manifest.json there: no finished archive") from None
    path = f"{remote}/manifest.json"
    return parse_manifest(parse_json(content, path), path)


def read_shard(root: Path, plan: Plan, record: ShardRecord, indices: range) -> NDArray[Any]:
    """All states of consecutive trajectories of one shard, (n, *plan.states_shape), as they are stored.

    The shard is not verified.
    """
    frame = np.empty((len(indices), record.stride), dtype=np.uint8)
    start = record.offset + (indices.start - record.start) * record.stride
    # The last trajectory of a shard may be followed by fewer bytes than a stride.
    wanted = (len(indices) - 1) * record.stride + plan.trajectory_bytes
    with (root / record.file).open("rb") as file:
        file.seek(start)
        if file.readinto(frame.reshape(-1)[:wanted].data) != wanted:
            raise _damaged(root, record, record.file, "ends early")
    dtype = plan.stored_dtype.newbyteorder("<")
    states = np.ascontiguousarray(frame[:, : plan.trajectory_bytes]).view(dtype)
    return states.reshape(len(indices), *plan.states_shape)


def _runs(states: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Consecutive states are one read: (place of the first, how many, the first state) of each run, (k,)."""
    starts = [0, *(np.flatnonzero(np.diff(states) != 1) + 1).tolist(), len(states)]
    return [(i, j - i, int(states[i])) for i, j in itertools.pairwise(starts) if j > i]


def _numbers(name: str, values: Any, end: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= end:
        raise ValueError(f"{name}: not all are integers in 0 … {end - 1}")
    return array.astype(np.int64)


def _damaged(folder: str | Path, shard: ShardRecord, file: str, what: str) -> DamagedShard:
    return DamagedShard(f"{folder}: shard {shard.index} ({file}) {what}", shard.index)
