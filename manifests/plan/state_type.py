"""How the numbers of a state are stored: as float16, float32, or bfloat16, of which numpy sees the bits."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STATE_TYPES = ("float16", "float32", "bfloat16")
BFLOAT16_NAN = 0x7FC0


def stored_dtype(name: str) -> np.dtype[Any]:
    """numpy's type of the numbers in a file; uint16, the upper half of a float32, for bfloat16."""
    return np.dtype(np.uint16 if name == "bfloat16" else name)


def encode(values: NDArray[np.floating], name: str) -> NDArray[Any]:
    """Numbers as they are stored: rounded to float32, then to the type, as torch does it. Each time to the
    nearest, to even in a tie."""
    single = values.astype(np.float32)
    if name != "bfloat16":
        return single.astype(name)
    bits = single.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(single), BFLOAT16_NAN, rounded).astype(np.uint16)


def decode(stored: NDArray[Any], name: str) -> NDArray[Any]:
    """Stored numbers as numpy's own: float32 for bfloat16, else as they are."""
    if name != "bfloat16":
        return stored
    return (stored.astype(np.uint32) << 16).view(np.float32)


def finite(stored: NDArray[Any], name: str) -> NDArray[np.bool_]:
    """Which of the trajectories (N, …), as they are stored, are finite throughout, (N,)."""
    infinity = encode(np.array(np.inf), name)
    bits = np.dtype(f"u{infinity.itemsize}")
    magnitude = np.iinfo(bits).max >> 1
    # By the bits, one trajectory at a time: numpy has no fast comparison of half precision.
    return np.array([(row & magnitude).max() < infinity.view(bits) for row in stored.view(bits)])


def little_endian(stored: NDArray[Any]) -> memoryview:
    """The bytes of stored numbers in C order, as they stand in every file."""
    numbers = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    return numbers.reshape(-1).view(np.uint8).data
