"""The Zarr form: a Zarr v3 group whose sharded array `states` plain `zarr.open_group(root)["states"]` reads.
With a conditional teacher there is a second array, `labels`, one chunk for each shard.

One trajectory is a chunk, one pipeline shard a Zarr shard. Chunks are uncompressed, so a shard file is its
trajectories in C order, each followed by the 4 bytes of its CRC-32C, then the index of the chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.files import Bytes
from hkdpipe.manifests.plan import Plan
from hkdpipe.manifests.state_type import encode, little_endian

if TYPE_CHECKING:
    import zarr

_CRC_BYTES = 4
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


def encode_shard(plan: Plan, k: int, states: NDArray[Any]) -> tuple[list[Bytes], int, int, list[Bytes]]:
    """A shard's file in pieces, the offset of its first trajectory and the distance between two; the file of
    its labels, [] without.

    `states` is (n, *plan.states_shape) of `plan.stored_dtype`, n the length of shard k. The bytes depend on
    nothing else; those of the labels on the plan's seed and classes and k. They follow the specification of
    Zarr v3's sharding, put together here because zarr itself takes several times as long for the same bytes.
    """
    stride = plan.trajectory_bytes + _CRC_BYTES
    index = np.full((plan.shard_size, 2), _ABSENT, dtype="<u8")
    index[: len(states), 0] = np.arange(len(states)) * stride
    index[: len(states), 1] = stride
    pieces = [piece for trajectory in states for piece in _with_crc(trajectory)] + _with_crc(index)
    labels = plan.labels(range(*plan.shard_range(k)))
    if labels is None:
        return pieces, 0, stride, []
    numbers = np.full(plan.shard_size, _NO_LABEL, dtype="<i8")
    numbers[: len(labels)] = labels
    return pieces, 0, stride, _with_crc(numbers)


def _with_crc(numbers: NDArray[Any]) -> list[Bytes]:
    """Numbers as little-endian bytes in C order, and the CRC-32C that follows them."""
    import google_crc32c

    data = little_endian(numbers)
    crc = google_crc32c.value(np.frombuffer(data, dtype=np.uint8))
    return [data, crc.to_bytes(_CRC_BYTES, "little")]


def _create_group(entries: dict[str, Any], plan: Plan, count: int) -> zarr.Group:
    """Create the group and its arrays of `count` trajectories in `entries`, a store in memory."""
    import zarr
    from zarr.codecs import Crc32cCodec

    group = zarr.create_group(zarr.storage.MemoryStore(entries))
    group.create_array(
        "states",
        shape=(count, *plan.states_shape),
        dtype=plan.stored_dtype,
        chunks=(1, *plan.states_shape),
        shards=(plan.shard_size, *plan.states_shape),
        compressors=[Crc32cCodec()],
        fill_value=encode(np.array(np.nan), plan.dtype)[()],  # a missing shard must not look like data
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
