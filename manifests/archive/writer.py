"""Writing an archive, shard by shard, by any number of processes.

Killing any process at any moment leaves whole shards or none. Two processes may write different shards of
one archive at once.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hkdpipe.manifests.archive import contents
from hkdpipe.manifests.forms.codecs import pack
from hkdpipe.manifests.forms.residual_encoding import storable
from hkdpipe.manifests.ground.atomic_files import (
    Bytes,
    make_folders,
    remove_temporaries,
    sync,
    write_atomic,
    write_json,
)
from hkdpipe.manifests.ground.errors import HkdpipeError, InputError, InUseError, Remedy, UsageError
from hkdpipe.manifests.ground.sections import flat
from hkdpipe.manifests.plan.plan import Plan, ShardRecord
from hkdpipe.manifests.plan.schema import LEFT_OUT


def begin(root: Path, plan: Plan) -> None:
    """Create the archive `root`, or go on with it: the plan must be the same but may have a larger count.

    One process at a time may begin. A manifest that the archive no longer lives up to is
    removed. UsageError, naming the first key that differs, for another plan; InputError for an archive of
    which only what readers need is left.
    """
    for name in ("plan.json", "manifest.json", *contents.metadata(plan)):
        remove_temporaries((root / name).parent, Path(name).name)
    path, manifest = root / "plan.json", root / "manifest.json"
    if manifest.exists() and not path.exists():
        # Somebody may have copied what readers need and no more: nothing of it is to be made again.
        repair = Remedy("a repair", {"archive": root})
        raise InputError(f"{root}: has a manifest but no plan.json; ", repair, " puts it back")
    previous = contents.planned(root) if path.exists() else None
    if previous is not None:
        _check_continues(root, previous, plan)
    make_folders(root / "records")
    if manifest.exists() and contents.missing_shards(root, plan):
        _unlink(manifest)
    # What is merely said of the teacher stays as it was first said.
    if previous is None or plan.count > previous.count:
        write_json(path, plan.to_json())
    write_metadata(root, plan)


def write_metadata(root: Path, plan: Plan) -> None:
    """Put in place, or right, what the archive's form needs beside shards and manifest."""
    for name, data in contents.wrong_metadata(root, plan).items():
        _write(root, name, [data])


def write_shard(
    root: Path,
    plan: Plan,
    k: int,
    states: NDArray[Any],
    fingerprint: dict[str, Any],
    owned: Callable[[], bool] = lambda: True,
) -> ShardRecord:
    """Write shard k: states (n, *plan.states_shape), n its length, of `plan.stored_dtype`; then its record.
    HkdpipeError if a state is not finite, ValueError for another shape or dtype, else as `write_payloads`."""
    start, stop = plan.shard_range(k)
    if states.shape != (stop - start, *plan.states_shape) or states.dtype != plan.stored_dtype:
        raise ValueError(
            f"shard {k} takes {plan.dtype} {(stop - start, *plan.states_shape)}, "
            f"not {states.dtype} {states.shape}"
        )
    if not (good := storable(plan, states)).all():
        quantised = "or 32 and more off its noise: take residual"
        what = quantised if plan.encoding == "quantised" else f"in {plan.dtype}"
        raise HkdpipeError(f"{root}: trajectory {start + int(good.argmin())} is not finite {what}")
    payloads = [pack(plan, trajectory) for trajectory in states]
    return write_payloads(root, plan, k, payloads, fingerprint, owned)


def write_payloads(
    root: Path,
    plan: Plan,
    k: int,
    payloads: Sequence[Bytes],
    fingerprint: dict[str, Any],
    owned: Callable[[], bool],
) -> ShardRecord:
    """Write shard k from the payloads of its trajectories, which another archive may hold; then its record.

    Only its owner writes a shard: InUseError where `owned` says, before anything is touched or before the
    record, that another process has taken it over since.
    """

    def check_owned() -> None:
        if not owned():
            raise InUseError(f"{root}: shard {k} was taken over by another process, and is left to it")

    form = contents.FORMS[plan.form]
    record_file = contents.record_path(root, k)
    pieces, labels = form.encode_shard(plan, k, payloads)
    check_owned()
    for path in (record_file, *(root / name for name in contents.shard_files(plan, k))):
        remove_temporaries(path.parent, path.name)
    # A record must never stand beside a file that it was not made from.
    _unlink(record_file)
    start, stop = plan.shard_range(k)
    offset, stride = form.spacing(plan) if plan.codec == "none" else (None, None)
    record = ShardRecord(
        index=k,
        **_write(root, form.shard_file(k), pieces),
        start=start,
        stop=stop,
        offset=offset,
        stride=stride,
        plan=plan.identity(),
        fingerprint=fingerprint,
        labels=_write(root, form.labels_file(plan, k), labels) if labels else {},
    )
    check_owned()
    write_json(record_file, record.to_json())
    return record


def finish(root: Path, plan: Plan) -> Path:
    """Write the manifest, which makes the archive readable, and return its path. InputError, naming the
    shard, if one is missing. One process at a time may finish."""
    records = []
    for k in range(plan.shards):
        record = contents.valid_record(root, plan, k)
        if record is None:
            file = contents.FORMS[plan.form].shard_file(k)
            raise InputError(f"{root}: shard {k} ({file}) is missing or incomplete")
        records.append(record)
    write_json(root / "manifest.json", contents.manifest_values(plan, records))
    return root / "manifest.json"


def _check_continues(root: Path, previous: Plan, plan: Plan) -> None:
    old, new = flat(previous.identity_values()), flat(plan.identity_values())
    for key in {**old, **new}:
        before, now = (values.get(key, LEFT_OUT.get(key)) for values in (old, new))
        if before != now:
            raise UsageError(f"{root}: {key}: this archive has {before!r}, now {now!r}")
    if plan.count < previous.count:
        raise UsageError(
            f"{root}: count: this archive has {previous.count}, now {plan.count}; it may only grow"
        )


def _write(root: Path, name: str, pieces: list[Bytes]) -> dict[str, Any]:
    """Write the file `name` of the archive; returns what its record says of it."""
    make_folders((root / name).parent)
    write_atomic(root / name, *pieces)
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(piece)
    return {"file": name, "bytes": sum(map(len, pieces)), "sha256": sha256.hexdigest()}


def _unlink(path: Path) -> None:
    if path.exists():
        path.unlink(missing_ok=True)
        sync(path.parent)
