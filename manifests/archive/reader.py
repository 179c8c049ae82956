"""A finished archive of trajectories, read at random."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.archive.contents import find_payloads, parse_manifest, read_manifest, size_of
from hkdpipe.manifests.forms.codecs import unpack
from hkdpipe.manifests.forms.residual_encoding import NOT_READ, decode_states
from hkdpipe.manifests.ground.atomic_files import parse_json
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.places.remote import RemoteFolder, is_url
from hkdpipe.manifests.places.shard_files import DAMAGED, MISSING, BadFile, LocalFolder, OpenFile
from hkdpipe.manifests.plan.plan import Plan, ShardRecord

Integers = Sequence[int] | NDArray[np.integer]


class DamagedShard(InputError):
    """A shard of an archive, number `shard`, is missing or has other bytes than the manifest says."""

    def __init__(self, message: str, shard: int) -> None:
        super().__init__(message)
        self.shard = shard


class _Shard(NamedTuple):
    """A shard that is open. `places` (n, 2): offset and length of each payload, where they are compressed."""

    file: OpenFile
    places: NDArray[np.int64]


class Archive:
    """A finished archive, open for reading; made by `open_archive`. Any thread may call its methods."""

    def __init__(self, folder: LocalFolder | RemoteFolder, plan: Plan, shards: list[ShardRecord]) -> None:
        self.plan = plan
        self.shards = tuple(shards)
        self.sigmas: NDArray[np.float64] = np.array(plan.sigmas, dtype=np.float64)
        self.shape = plan.shape
        self.identity = plan.identity()
        self.name = str(folder)
        self._folder = folder
        self._offsets = np.array([shard.offset or 0 for shard in shards], dtype=np.int64)
        self._strides = np.array([shard.stride or 0 for shard in shards], dtype=np.int64)
        self._files: OrderedDict[int, _Shard] | None = OrderedDict()
        self._files_lock = threading.Lock()
        self._shard_locks = [threading.Lock() for _ in shards]

    def __len__(self) -> int:
        return self.plan.count

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; reading is over."""
        with self._files_lock:
            self._files = None

    def read(self, indices: Integers, states: Integers | Sequence[Sequence[int]]) -> NDArray[Any]:
        """Some states of some trajectories, (B, k, C, H, W) in the archive's dtype; in float32 where that is
        bfloat16 or the encoding is residual.

        `indices` is (B,), in 0 … len-1; `states` is (k,), the same for all, or (B, k), in 0 … len(sigmas)-1.
        Only the bytes of these states are read, and of the noise in the residual encoding, but of compressed
        trajectories all; a shard is verified as a whole when first used.
        ValueError for numbers out of range or arrays of another shape, InputError for a damaged shard.
        """
        rows = _numbers("indices", indices, len(self))
        columns = _numbers("states", states, len(self.sigmas))
        if rows.ndim != 1 or columns.ndim not in (1, 2) or (columns.ndim == 2 and len(columns) != len(rows)):
            raise ValueError(f"indices {rows.shape} and states {columns.shape}: not (B,) and (k,) or (B, k)")
        columns = np.broadcast_to(columns, (len(rows), columns.shape[-1]))
        decoded = decode_states(self.plan, columns, partial(self._stored, rows))
        return decoded.reshape(*columns.shape, *self.shape)

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

    def _stored(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
        """What is stored of states (B, k), (B, k, C * H * W); any numbers where it is `NOT_READ`."""
        if self.plan.codec != "none":
            return self._unpacked(rows, columns)
        size = self.plan.state_bytes
        data = np.empty((*columns.shape, size), dtype=np.uint8)
        data[columns == NOT_READ] = 0
        target = data.reshape(-1).data
        # In the order in which they lie on disk, consecutive states of a trajectory in one piece.
        order = np.argsort(rows, kind="stable")
        run, place, count = _runs(columns[order])
        shards, within = np.divmod(rows[order][run], self.plan.shard_size)
        starts = self._offsets[shards] + within * self._strides[shards]
        offsets = starts + columns[order].reshape(-1)[place] * size
        places = (order[run] * columns.shape[1] + place % max(1, columns.shape[1])) * size
        opened = -1
        for k, offset, start, end in zip(
            shards.tolist(), offsets.tolist(), places.tolist(), (places + count * size).tolist(), strict=True
        ):
            if k != opened:
                file, opened = self._open(k).file, k
            if os.preadv(file.descriptor, (target[start:end],), offset) != end - start:
                self._fill(target[start:end], file, offset, self.shards[k])
        return data.view(self.plan.stored_dtype.newbyteorder("<"))

    def _unpacked(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[Any]:
        """As `_stored`, of compressed trajectories."""
        size = math.prod(self.shape)
        stored = np.empty((*columns.shape, size), self.plan.stored_dtype.newbyteorder("<"))
        shards, within = np.divmod(rows, self.plan.shard_size)
        for row in np.argsort(rows, kind="stable").tolist():
            shard = self.shards[shards[row]]
            file, places = self._open(shard.index)
            offset, length = places[within[row]].tolist()
            with _explained(self.name, shard):
                stored[row] = unpack(self.plan, file.read(length, offset)).reshape(-1, size)[columns[row]]
        return stored

    def _fill(self, target: memoryview, file: OpenFile, offset: int, shard: ShardRecord) -> None:
        """Read again, in pieces, where one call did not give all."""
        done = 0
        while done < len(target):
            count = os.preadv(file.descriptor, [target[done:]], offset + done)
            if count == 0:
                raise _damaged(self.name, shard, shard.file, "ends early")
            done += count

    def _open(self, k: int) -> _Shard:
        """Shard k, verified and open."""
        with self._files_lock:
            if self._files is None:
                raise ValueError(f"{self.name}: the archive is closed")
            if k in self._files:
                self._files.move_to_end(k)
                return self._files[k]
        with self._shard_locks[k]:
            # The states' file comes first; that of the labels is only verified.
            file, *_ = [self._verified(self.shards[k], *entry) for entry in self.shards[k].files]
        places = np.empty((0, 2), dtype=np.int64)
        if self.plan.codec != "none":
            with _explained(self.name, self.shards[k]):
                places = find_payloads(self.plan, self.shards[k], file)
        opened = _Shard(file, places)
        with self._files_lock:
            if self._files is not None:
                self._files[k] = opened
                if len(self._files) > self._folder.open_files:
                    self._files.popitem(last=False)
        return opened

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
        try:
            content = b"".join(remote.stream("manifest.json"))
        except BadFile:
            raise InputError(f"{remote}: no manifest.json there: no finished archive") from None
        name = f"{remote}/manifest.json"
        return Archive(remote, *parse_manifest(parse_json(content, name), name))
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
    return Archive(LocalFolder(root), plan, shards)


def read_payloads(root: Path, plan: Plan, record: ShardRecord, indices: range) -> list[bytes]:
    """The payloads of consecutive trajectories of one shard. The shard is not verified."""
    file = OpenFile(root / record.file)
    with _explained(str(root), record):
        places = find_payloads(plan, record, file)[indices.start - record.start :][: len(indices)]
    payloads = [file.read(length, offset) for offset, length in places.tolist()]
    if [len(payload) for payload in payloads] != places[:, 1].tolist():
        raise _damaged(root, record, record.file, "ends early")
    return payloads


def read_shard(root: Path, plan: Plan, record: ShardRecord, indices: range) -> NDArray[Any]:
    """All states of consecutive trajectories of one shard, (n, *plan.states_shape), as they are stored. The
    shard is not verified."""
    payloads = read_payloads(root, plan, record, indices)
    with _explained(str(root), record):
        return np.stack([unpack(plan, payload) for payload in payloads])


@contextlib.contextmanager
def _explained(folder: str, shard: ShardRecord) -> Iterator[None]:
    try:
        yield
    except ValueError:
        raise _damaged(folder, shard, shard.file, "does not hold the trajectories that it should") from None


def _runs(states: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Consecutive states of a row of `states` (B, k) are one run: its row, the place of its first among all
    B * k, and how many it has, each (runs,). What is `NOT_READ` is in none.
    """
    first = np.ones(states.shape, dtype=bool)
    first[:, 1:] = np.diff(states) != 1
    places = np.flatnonzero(first)
    counts = np.diff(places, append=states.size)
    read = states.reshape(-1)[places] != NOT_READ
    places, counts = places[read], counts[read]
    return places // max(1, states.shape[1]), places, counts


def _numbers(name: str, values: Any, end: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= end:
        raise ValueError(f"{name}: not all are integers in 0 … {end - 1}")
    return array.astype(np.int64)


def _damaged(folder: str | Path, shard: ShardRecord, file: str, what: str) -> DamagedShard:
    return DamagedShard(f"{folder}: shard {shard.index} ({file}) {what}", shard.index)
