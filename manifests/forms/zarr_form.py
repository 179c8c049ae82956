"""The Zarr form: a Zarr v3 group whose sharded array `states` plain `zarr.open_group(root)["states"]` reads.
With a conditional teacher there is a second array, `labels`, one chunk for each shard.

One trajectory is a chunk, one pipeline shard a Zarr shard. A shard file is the payloads of its trajectories,
in C order and compressed where the plan has a codec, each followed by the 4 bytes of its CRC-32C, then the
index of the chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.forms.codecs import LEVELS
from hkdpipe.manifests.ground.atomic_files import Bytes
from hkdpipe.manifests.places.shard_files import OpenFile
from hkdpipe.manifests.plan.plan import Plan, ShardRecord
from hkdpipe.manifests.plan.state_type import encode, little_endian

if TYPE_CHECKING:
    import zarr

_CRC_BYTES = 4
_ENTRY_BYTES = 16  # of the index: where a chunk is, and its length
_ABSENT = 2**64 - 1  # offset and length of a chunk that a shard's index says is not there
_NO_LABEL = -1  # also behind the last trajectory of the last chunk


def shard_file(k: int) -> str:
    """Where shard k lies, relative to the archive."""
    return f"states/c/{k}/0/0/0/0"


def labels_file(plan: Plan, k: int) -> str:
    """Where the classes of shard k lie, relative to the archive; '' without classes."""
    return f"labels/c/{k}" if plan.classes else ""


def metadata(plan: Plan) -> dict[str, bytes]:
    """The metadata of the group and of its arrays, by the path of the file relative to the archive."""
    entries: dict[str, Any] = {}
    _create_group(entries, plan, plan.count)
    return {name: entries[name].to_bytes() for name in sorted(entries, key=len)}


def encode_shard(plan: Plan, k: int, payloads: Sequence[Bytes]) -> tuple[list[Bytes], list[Bytes]]:
    """A shard's file in pieces, and the file of its labels, [] without.

    `payloads` are those of the trajectories of shard k. The bytes depend on nothing else; those of the labels
    on the plan's seed and classes and k. They follow the specification of Zarr v3's sharding, put together
    here because zarr itself takes several times as long for the same bytes.
    """
    lengths = np.array([len(payload) + _CRC_BYTES for payload in payloads])
    index = np.full((plan.shard_size, 2), _ABSENT, dtype="<u8")
    index[: len(payloads), 0] = np.cumsum(lengths) - lengths
    index[: len(payloads), 1] = lengths
    pieces = [piece for payload in payloads for piece in _with_crc(payload)] + _with_crc(little_endian(index))
    labels = plan.labels(range(*plan.shard_range(k)))
    if labels is None:
        return pieces, []
    numbers = np.full(plan.shard_size, _NO_LABEL, dtype="<i8")
    numbers[: len(labels)] = labels
    return pieces, _with_crc(little_endian(numbers))


def spacing(plan: Plan) -> tuple[int, int]:
    """The offset of a shard's first trajectory, and the distance between two, where none is compressed."""
    return 0, plan.trajectory_bytes + _CRC_BYTES


def find_payloads(plan: Plan, record: ShardRecord, file: OpenFile) -> NDArray[np.int64]:
    """Offset and length of each trajectory's payload in a shard's file, (n, 2). ValueError if it has none."""
    size = plan.shard_size * _ENTRY_BYTES
    content = file.read(size, record.bytes - _CRC_BYTES - size)
    index = np.frombuffer(content, "<i8").reshape(plan.shard_size, 2)
    return index[: record.stop - record.start] - [0, _CRC_BYTES]


def _with_crc(data: Bytes) -> list[Bytes]:
    """Bytes, and the CRC-32C that follows them."""
    import google_crc32c

    crc = google_crc32c.value(np.frombuffer(data, dtype=np.uint8))
    return [data, crc.to_bytes(_CRC_BYTES, "little")]


def _create_group(entries: dict[str, Any], plan: Plan, count: int) -> zarr.Group:
    """Create the group and its arrays of `count` trajectories in `entries`, a store in memory."""
    import zarr
    from zarr.codecs import BloscCname, BloscCodec, Crc32cCodec

    compressors: list[Any] = [Crc32cCodec()]
    if plan.codec != "none":
        size, name, level = plan.stored_dtype.itemsize, BloscCname[plan.codec], LEVELS[plan.codec]
        compressors.insert(0, BloscCodec(typesize=size, cname=name, clevel=level, shuffle="bitshuffle"))
    group = zarr.create_group(zarr.storage.MemoryStore(entries))
    group.create_array(
        "states",
        shape=(count, *plan.states_shape),
        dtype=plan.stored_dtype,
        chunks=(1, *plan.states_shape),
        shards=(plan.shard_size, *plan.states_shape),
        compressors=compressors,
        # NaN, also of quantised residuals through their noise: a missing shard must not look like data.
        fill_value=encode(np.array(np.nan), plan.dtype).view(plan.stored_dtype)[()],
        config={"write_empty_chunks": True},
    )
    if plan.classes:
        group.create_array(
            "labels",
            shape=(count,),
            dtype="int64",
            chunks=(plan.shard_size,),
            compressors=[Crc32cCodec()],
            fill_value=_NO_LABEL,
        )
    return group
