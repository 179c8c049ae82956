"""The Zarr form: a Zarr v3 group whose sharded array `states` plain `zarr.open_group(root)["states"]` reads.
With a conditional teacher there is a second array, `labels`, one chunk for each shard.

One trajectory is a chunk, one pipeline shard a Zarr shard. Chunks are uncompressed, so a shard file is its
trajectories in C order, each followed by the 4 bytes of its CRC-32C, then the index of the chunks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.plan import Plan
from hkdpipe.manifests.state_type import encode

if TYPE_CHECKING:
    import zarr

_CRC_BYTES = 4
_ABSENT = 2**64 - 1  # offset and length of a chunk that a shard's index says is not there


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


def encode_shard(plan: Plan, k: int, states: NDArray[Any]) -> tuple[memoryview, int, int, memoryview | None]:
    """A shard's file, the offset of its first trajectory and the distance between two; its labels' file.

    `states` is (n, *plan.states_shape) of `plan.stored_dtype`, n the length of shard k. The bytes depend on
    nothing else; those of the labels on the plan's seed and classes and k.
    """
    entries: dict[str, Any] = {}
    # The files do not say which shard they are: encode it as the only one of arrays of its own.
    group: Any = _create_group(entries, plan, len(states))
    group["states"][:] = states
    data = entries[shard_file(0)].as_numpy_array().view(np.uint8)
    stride = plan.trajectory_bytes + _CRC_BYTES
    index_bytes = 16 * plan.shard_size
    index = data[-index_bytes - _CRC_BYTES : -_CRC_BYTES].view("<u8").reshape(plan.shard_size, 2)
    expected = np.full_like(index, _ABSENT)
    expected[: len(states), 0] = np.arange(len(states)) * stride
    expected[: len(states), 1] = stride
    if len(data) != len(states) * stride + index_bytes + _CRC_BYTES or not np.array_equal(index, expected):
        raise RuntimeError(f"this version of zarr lays out shard {k} differently from what hkdpipe reads")
    if not plan.classes:
        return memoryview(data), 0, stride, None
    group["labels"][:] = plan.labels(range(*plan.shard_range(k)))
    labels = entries[labels_file(plan, 0)].as_numpy_array().view(np.uint8)
    return memoryview(data), 0, stride, memoryview(labels)


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
            fill_value=-1,  # also behind the last trajectory of the last chunk
        )
    return group
