"""An archive of trajectories: written shard by shard by any number of processes, read at random.

On disk, whatever the form: `plan.json` says what is to be, `records/NNNNNN.json` appears after its shard is
whole and on disk, `manifest.json` (the plan and all records) appears when all are, and is all that reading
needs beside the shards. Killing any process at any moment leaves whole shards or none. Two processes may
write different shards of one archive at once.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests import webdataset_form, zarr_form
from hkdpipe.manifests.claims import living
from hkdpipe.manifests.errors import HkdpipeError, InputError, InUseError, UsageError
from hkdpipe.manifests.files import (
    make_folders,
    read_json,
    remove_temporaries,
    sync,
    write_atomic,
    write_json,
)
from hkdpipe.manifests.plan import Plan, ShardRecord
from hkdpipe.manifests.settings import digest
from hkdpipe.manifests.state_type import decode

_OPEN_FILES = 256
_RATE_SHARDS = 20
_HASH_BYTES = 1 << 20
Integers = Sequence[int] | NDArray[np.integer]


class _Form(Protocol):
    def shard_file(self, k: int) -> str: ...
    def labels_file(self, plan: Plan, k: int) -> str: ...
    def metadata(self, plan: Plan) -> dict[str, bytes]: ...
    def encode_shard(
        self, plan: Plan, k: int, states: NDArray[Any]
    ) -> tuple[memoryview, int, int, memoryview | None]: ...


_FORMS: dict[str, _Form] = {"zarr": zarr_form, "webdataset": webdataset_form}


# Writing


def begin(root: Path, plan: Plan) -> None:
    """Create the archive `root`, or go on with it: the plan must be the same but may have a larger count.

    One process at a time may begin. A manifest that the archive no longer lives up to is
    removed. UsageError, naming the first key that differs, for another plan.
    """
    for name in ("plan.json", "manifest.json", *metadata(plan)):
        remove_temporaries((root / name).parent, Path(name).name)
    path = root / "plan.json"
    previous = Plan.from_json(read_json(path), path) if path.exists() else None
    if previous is not None:
        _check_continues(root, previous, plan)
    make_folders(root / "records")
    manifest = root / "manifest.json"
    if manifest.exists() and missing_shards(root, plan):
        _unlink(manifest)
    # What is merely said of the teacher stays as it was first said.
    if previous is None or plan.count > previous.count:
        write_json(path, plan.to_json())
    for name, data in metadata(plan).items():
        if not (root / name).is_file() or (root / name).read_bytes() != data:
            make_folders((root / name).parent)
            write_atomic(root / name, data)


def metadata(plan: Plan) -> dict[str, bytes]:
    """What the archive's form needs beside shards and manifest, by the path relative to the archive."""
    return _FORMS[plan.form].metadata(plan)


def planned(root: Path) -> Plan:
    """What the archive is to hold. InputError if nothing says so."""
    return Plan.from_json(read_json(root / "plan.json"), root / "plan.json")


def missing_shards(root: Path, plan: Plan) -> list[int]:
    """The shards still to be written: those without a valid record or without files of the recorded sizes."""
    return [k for k in range(plan.shards) if valid_record(root, plan, k) is None]


def write_shard(
    root: Path,
    plan: Plan,
    k: int,
    states: NDArray[Any],
    fingerprint: dict[str, Any],
    owned: Callable[[], bool] = lambda: True,
) -> ShardRecord:
    """Write shard k: states (n, *plan.states_shape), n its length, of `plan.stored_dtype`; then its record.

    Only its owner writes a shard: InUseError where `owned` says before the record that another process has
    taken it over since. HkdpipeError if a state is not finite, ValueError for another shape or dtype.
    """
    start, stop = plan.shard_range(k)
    if states.shape != (stop - start, *plan.states_shape) or states.dtype != plan.stored_dtype:
        raise ValueError(
            f"shard {k} takes {plan.dtype} {(stop - start, *plan.states_shape)}, "
            f"not {states.dtype} {states.shape}"
        )
    for i, trajectory in enumerate(states):
        if not np.isfinite(decode(trajectory, plan.dtype)).all():
            raise HkdpipeError(f"{root}: trajectory {start + i} is not finite in {plan.dtype}")
    form = _FORMS[plan.form]
    record_file = record_path(root, k)
    for path in (record_file, *(root / name for name in shard_files(plan, k))):
        remove_temporaries(path.parent, path.name)
    # A record must never stand beside a file that it was not made from.
    _unlink(record_file)
    data, offset, stride, labels = form.encode_shard(plan, k, states)
    file = form.shard_file(k)
    _write(root / file, data)
    stored_labels = {}
    if labels is not None:
        place = form.labels_file(plan, k)
        _write(root / place, labels)
        stored_labels = {"file": place, "bytes": len(labels), "sha256": hashlib.sha256(labels).hexdigest()}
    record = ShardRecord(
        index=k,
        file=file,
        start=start,
        stop=stop,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        offset=offset,
        stride=stride,
        plan=plan.identity(),
        fingerprint=fingerprint,
        labels=stored_labels,
    )
    if not owned():
        raise InUseError(f"{root}: shard {k} was taken over by another process, and is left to it")
    write_json(record_file, record.to_json())
    return record


def finish(root: Path, plan: Plan) -> Path:
    """Write the manifest, which makes the archive readable, and return its path.

    InputError, naming the shard, if one is missing. One process at a time may finish.
    """
    records = []
    for k in range(plan.shards):
        record = valid_record(root, plan, k)
        if record is None:
            raise InputError(
                f"{root}: shard {k} ({_FORMS[plan.form].shard_file(k)}) is missing or incomplete"
            )
        records.append(record.to_json())
    values = {"plan": plan.to_json(), "shards": records}
    write_json(root / "manifest.json", {**values, "sha256": digest(values)})
    return root / "manifest.json"


def shard_files(plan: Plan, k: int) -> list[str]:
    """The files of shard k, relative to the archive."""
    form = _FORMS[plan.form]
    return [name for name in (form.shard_file(k), form.labels_file(plan, k)) if name]


def describe(root: Path) -> dict[str, Any]:
    """How far an archive is, without reading a shard.

    `state` is "absent", "partial" or "complete"; the rest are numbers: `shards_done` of `shards`,
    `trajectories` (in the shards done) of `count`, `bytes` of the shards done, and of one in the making the
    `shards_claimed` now and `per_second`, trajectories a second of all workers together over the last shards
    (0 where it cannot be told). InputError for a damaged plan or manifest.
    """
    records: list[ShardRecord] = []
    plan: Plan | None = None
    complete = False
    if (root / "manifest.json").exists():
        plan, records = read_manifest(root)
        records = [record for record in records if _sizes_are_right(root, record)]
        complete = len(records) == plan.shards
    elif (root / "plan.json").exists():
        plan = Plan.from_json(read_json(root / "plan.json"), root / "plan.json")
        found = (valid_record(root, plan, k) for k in range(plan.shards))
        records = [record for record in found if record is not None]
    making = plan is not None and not complete
    return {
        "state": "complete" if complete else "partial" if plan else "absent",
        "shards_done": len(records),
        "shards": plan.shards if plan else 0,
        "trajectories": sum(record.stop - record.start for record in records),
        "count": plan.count if plan else 0,
        "bytes": sum(size for record in records for _, size, _ in record.files),
        "shards_claimed": living(root) if making else 0,
        "per_second": _per_second(root, records) if making else 0.0,
    }


def _per_second(root: Path, records: list[ShardRecord]) -> float:
    """From the times at which the newest records were written."""
    times = sorted((record_path(root, record.index).stat().st_mtime, record.index) for record in records)
    newest = times[-_RATE_SHARDS:]
    by_index = {record.index: record.stop - record.start for record in records}
    if len(newest) < 2 or newest[-1][0] <= newest[0][0]:
        return 0.0
    return sum(by_index[index] for _, index in newest[1:]) / (newest[-1][0] - newest[0][0])


# Reading


class Archive:
    """A finished archive, open for reading; made by `open_archive`. Any thread may call its methods."""

    def __init__(self, root: Path, plan: Plan, shards: list[ShardRecord]) -> None:
        self.plan = plan
        self.shards = tuple(shards)
        self.sigmas: NDArray[np.float64] = np.array(plan.sigmas, dtype=np.float64)
        self.shape = plan.shape
        self.identity = plan.identity()
        self._root = root
        self._files: OrderedDict[int, _OpenFile] | None = OrderedDict()
        self._files_lock = threading.Lock()
        # What was verified, so that a file put in its place since is verified again.
        self._verified: dict[int, tuple[int, ...]] = {}
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

    def _fill(self, target: NDArray[np.uint8], file: _OpenFile, offset: int, shard: ShardRecord) -> None:
        done = 0
        while done < len(target):
            count = os.preadv(file.descriptor, [target[done:].data], offset + done)
            if count == 0:
                raise _damaged(self._root, shard, shard.file, "ends early")
            done += count

    def _open(self, k: int) -> _OpenFile:
        """The verified, open file of shard k."""
        with self._files_lock:
            if self._files is None:
                raise ValueError(f"{self._root}: the archive is closed")
            if k in self._files:
                self._files.move_to_end(k)
                return self._files[k]
        with self._shard_locks[k]:
            shard = self.shards[k]
            try:
                file = _OpenFile(self._root / shard.file)
            except FileNotFoundError:
                raise _damaged(self._root, shard, shard.file, "is missing") from None
            stamp = file.stamp()
            if self._verified.get(k) != stamp:
                self._verify(shard, file)
                self._verified[k] = stamp
        with self._files_lock:
            if self._files is not None:
                self._files[k] = file
                if len(self._files) > _OPEN_FILES:
                    self._files.popitem(last=False)
        return file

    def _verify(self, shard: ShardRecord, states: _OpenFile) -> None:
        """InputError unless the shard's files have the bytes of the manifest."""
        for name, _, sha256 in shard.files:
            try:
                file = states if name == shard.file else _OpenFile(self._root / name)
            except FileNotFoundError:
                raise _damaged(self._root, shard, name, "is missing") from None
            if file.sha256() != sha256:
                raise _damaged(self._root, shard, name, "is damaged: its SHA-256 is not the manifest's")


def open_archive(path: str | Path) -> Archive:
    """Open a finished archive. InputError if it is none or a shard's file is missing or of another size."""
    root = Path(path)
    plan, shards = read_manifest(root)
    for shard in shards:
        for file, recorded, _ in shard.files:
            size = _size(root / file)
            if size is None:
                raise _damaged(root, shard, file, "is missing")
            if size != recorded:
                what = f"is damaged: it has {size} bytes, not the manifest's {recorded}"
                raise _damaged(root, shard, file, what)
    return Archive(root, plan, shards)


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


class _OpenFile:
    """A file open for reading, closed when nobody refers to it any more: so never under a reading thread."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def stamp(self) -> tuple[int, ...]:
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def sha256(self) -> str:
        digest = hashlib.sha256()
        offset = 0
        while block := os.pread(self.descriptor, _HASH_BYTES, offset):
            digest.update(block)
            offset += len(block)
        return digest.hexdigest()


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


def read_manifest(root: Path) -> tuple[Plan, list[ShardRecord]]:
    """Plan and records of a finished archive. InputError if there is no manifest or it is damaged."""
    path = root / "manifest.json"
    if not path.is_file():
        raise InputError(
            f"{root}: no manifest.json: not an archive, or not finished; "
            "run hkdpipe generate-trajectories again to finish it"
        )
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("shards"), list):
        raise InputError(f"{path}: not the manifest of an archive")
    if values.get("sha256") != digest({key: values.get(key) for key in ("plan", "shards")}):
        raise InputError(f"{path}: changed since it was written: its contents do not give its sha256")
    plan = Plan.from_json(values.get("plan"), path)
    shards = [ShardRecord.from_json(shard, path) for shard in values["shards"]]
    if len(shards) != plan.shards:
        raise InputError(f"{path}: {len(shards)} shards, but the plan has {plan.shards}")
    identity = plan.identity()
    for k, shard in enumerate(shards):
        if not fits(plan, identity, k, shard):
            raise InputError(f"{path}: shard {k} is not the plan's")
    return plan, shards


def fits(plan: Plan, identity: str, k: int, record: ShardRecord) -> bool:
    """Whether a record is one of shard k under the plan, and all its trajectories lie within its file."""
    last = record.offset + (record.stop - record.start - 1) * record.stride
    return (
        record.index == k
        and record.plan == identity
        and record.file == _FORMS[plan.form].shard_file(k)
        and record.labels.get("file", "") == _FORMS[plan.form].labels_file(plan, k)
        and (record.start, record.stop) == plan.shard_range(k)
        and record.stride >= plan.trajectory_bytes
        and last + plan.trajectory_bytes <= record.bytes
    )


def record_path(root: Path, k: int) -> Path:
    """Where the record of shard k lies."""
    return root / "records" / f"{k:06d}.json"


def valid_record(root: Path, plan: Plan, k: int) -> ShardRecord | None:
    """The record of shard k; None unless it is the plan's and its files have the recorded sizes."""
    path = record_path(root, k)
    try:
        record = ShardRecord.from_json(read_json(path), path)
    except InputError:
        return None
    good = fits(plan, plan.identity(), k, record) and _sizes_are_right(root, record)
    return record if good else None


def _check_continues(root: Path, previous: Plan, plan: Plan) -> None:
    old, new = _flat(previous.identity_values()), _flat(plan.identity_values())
    for key in {**old, **new}:
        if old.get(key) != new.get(key):
            raise UsageError(f"{root}: {key}: this archive has {old.get(key)!r}, now {new.get(key)!r}")
    if plan.count < previous.count:
        raise UsageError(
            f"{root}: count: this archive has {previous.count}, now {plan.count}; it may only grow"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested table as one of dotted keys, in the order they stand."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sizes_are_right(root: Path, record: ShardRecord) -> bool:
    return all(_size(root / file) == size for file, size, _ in record.files)


def _write(path: Path, data: memoryview) -> None:
    make_folders(path.parent)
    write_atomic(path, data)


def _unlink(path: Path) -> None:
    if path.exists():
        path.unlink(missing_ok=True)
        sync(path.parent)


def _damaged(root: Path, shard: ShardRecord, file: str, what: str) -> InputError:
    return InputError(f"{root}: shard {shard.index} ({file}) {what}")
