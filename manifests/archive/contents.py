"""What an archive has on disk, without a look at the trajectories themselves.

Whatever the form: `plan.json` says what is to be, `records/NNNNNN.json` appears after its shard is
whole and on disk, `manifest.json` (the plan and all records) appears when all are, and is all that reading
needs beside the shards.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.forms import webdataset_form, zarr_form
from hkdpipe.manifests.ground.atomic_files import Bytes, read_json
from hkdpipe.manifests.ground.claims import living
from hkdpipe.manifests.ground.errors import InputError, Remedy
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.manifests.places.shard_files import OpenFile
from hkdpipe.manifests.plan.plan import Plan, ShardRecord

_RATE_SHARDS = 20


class Form(Protocol):
    def shard_file(self, k: int) -> str: ...
    def labels_file(self, plan: Plan, k: int) -> str: ...
    def metadata(self, plan: Plan) -> dict[str, bytes]: ...
    def encode_shard(
        self, plan: Plan, k: int, payloads: Sequence[Bytes]
    ) -> tuple[list[Bytes], list[Bytes]]: ...
    def spacing(self, plan: Plan) -> tuple[int, int]: ...
    def find_payloads(self, plan: Plan, record: ShardRecord, file: OpenFile) -> NDArray[np.int64]: ...


FORMS: dict[str, Form] = {"zarr": zarr_form, "webdataset": webdataset_form}


def metadata(plan: Plan) -> dict[str, bytes]:
    """What the archive's form needs beside shards and manifest, by the path relative to the archive."""
    return FORMS[plan.form].metadata(plan)


def wrong_metadata(root: Path, plan: Plan) -> dict[str, bytes]:
    """Those of `metadata` that are missing or changed on disk."""
    return {
        name: data
        for name, data in metadata(plan).items()
        if not (root / name).is_file() or (root / name).read_bytes() != data
    }


def planned(root: Path) -> Plan:
    """What the archive is to hold. InputError if nothing says so."""
    path = root / "plan.json"
    return Plan.from_json(read_json(path), path)


def manifest_values(plan: Plan, records: Iterable[ShardRecord]) -> dict[str, Any]:
    """What manifest.json says of an archive with these records, in the order of the shards."""
    values = {"plan": plan.to_json(), "shards": [record.to_json() for record in records]}
    return {**values, "sha256": digest(values)}


def read_manifest(root: Path) -> tuple[Plan, list[ShardRecord]]:
    """Plan and records of a finished archive. InputError if there is no manifest or it is damaged."""
    path = root / "manifest.json"
    if not path.is_file():
        what = f"{root}: no manifest.json: not an archive, or not finished; "
        raise InputError(what, Remedy("generate it again"), " to finish it")
    return parse_manifest(read_json(path), path)


def parse_manifest(values: Any, path: Path | str) -> tuple[Plan, list[ShardRecord]]:
    """Plan and records in a manifest that was read from `path`. InputError if it is damaged."""
    if not isinstance(values, dict) or not isinstance(values.get("shards"), list):
        raise InputError(f"{path}: not the manifest of an archive")
    if values.get("sha256") != digest({key: values.get(key) for key in ("plan", "shards")}):
        raise InputError(f"{path}: changed since it was written: its contents do not give its sha256")
    plan = Plan.from_json(values.get("plan"), path)
    shards = [ShardRecord.from_json(shard, path) for shard in values["shards"]]
    if len(shards) != plan.shards:
        raise InputError(f"{path}: {len(shards)} shards, but the plan has {plan.shards}")
    for k, shard in enumerate(shards):
        if not fits(plan, k, shard):
            raise InputError(f"{path}: shard {k} is not the plan's")
    return plan, shards


def missing_shards(root: Path, plan: Plan, among: Iterable[int] | None = None) -> list[int]:
    """The shards still to be written: those without a valid record or without files of the recorded sizes.
    `among`: only these are looked at. What has no record costs no look of its own."""
    recorded = {path.name for path in (root / "records").glob("*.json")}
    return [
        k
        for k in (range(plan.shards) if among is None else among)
        if record_path(root, k).name not in recorded or valid_record(root, plan, k) is None
    ]


def valid_record(root: Path, plan: Plan, k: int) -> ShardRecord | None:
    """The record of shard k; None unless it is the plan's and its files have the recorded sizes."""
    path = record_path(root, k)
    try:
        record = ShardRecord.from_json(read_json(path), path)
    except InputError:
        return None
    good = fits(plan, k, record) and _sizes_are_right(root, record)
    return record if good else None


def fits(plan: Plan, k: int, record: ShardRecord) -> bool:
    """Whether a record is one of shard k under the plan, and all its trajectories lie within its file."""
    return (
        record.index == k
        and record.plan == plan.identity()
        and record.file == FORMS[plan.form].shard_file(k)
        and record.labels.get("file", "") == FORMS[plan.form].labels_file(plan, k)
        and (record.start, record.stop) == plan.shard_range(k)
        and _lies_within(plan, record)
    )


def _lies_within(plan: Plan, record: ShardRecord) -> bool:
    """Where trajectories are compressed, only the file itself can say."""
    if plan.codec != "none" or record.offset is None or record.stride is None:
        return plan.codec != "none" and record.offset is record.stride is None
    last = record.offset + (record.stop - record.start - 1) * record.stride
    return record.stride >= plan.trajectory_bytes and last + plan.trajectory_bytes <= record.bytes


def find_payloads(plan: Plan, record: ShardRecord, file: OpenFile) -> NDArray[np.int64]:
    """Offset and length of each trajectory's payload in the open file of a shard, (n, 2). ValueError if they
    are compressed and the file does not say where they are."""
    if record.offset is not None and record.stride is not None:
        offsets = record.offset + np.arange(record.stop - record.start) * record.stride
        return np.stack([offsets, np.full_like(offsets, plan.trajectory_bytes)], axis=1)
    places = FORMS[plan.form].find_payloads(plan, record, file)
    if places.min() < 0 or places.max() > record.bytes:
        raise ValueError("no compressed trajectories")
    return places


def record_path(root: Path, k: int) -> Path:
    """Where the record of shard k lies."""
    return root / "records" / f"{k:06d}.json"


def shard_files(plan: Plan, k: int) -> list[str]:
    """The files of shard k, relative to the archive."""
    form = FORMS[plan.form]
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
        plan = planned(root)
        valid = (valid_record(root, plan, k) for k in range(plan.shards))
        records = [record for record in valid if record is not None]
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


def size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def _sizes_are_right(root: Path, record: ShardRecord) -> bool:
    return all(size_of(root / file) == size for file, size, _ in record.files)
