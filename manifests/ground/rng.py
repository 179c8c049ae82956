"""Random numbers as a pure function of (seed, purpose, index), whatever is drawn before or beside them.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The key is (seed, first
8 bytes of SHA-256 of the purpose's name, little-endian); the 256-bit counter is index * 2**128 + block, and
block b gives the raw words 4b..4b+3.

Everything below uses only operations that IEEE 754 rounds exactly (no library logarithm or cosine, which
differ in the last bit between processors), so the values are the same bits on every machine.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.errors import UsageError

Indices = Sequence[int] | NDArray[np.integer]

_WORD = 2**64
_FEW = 16
"""Words of an index up to which those of all indices are made at once."""
_ROUNDS = 10
_FACTORS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_KEY_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LN2 = 0.6931471805599453
_HALF_PI = 1.5707963267948966
_SQRT_HALF = 0.7071067811865476
# Taylor coefficients, highest order first: the remainders are below 2**-57 on the reduced ranges.
_ATANH = [1.0 / (2 * k + 1) for k in range(11, 0, -1)]
_SIN = [(-1) ** k / math.factorial(2 * k + 1) for k in range(8, -1, -1)]
_COS = [(-1) ** k / math.factorial(2 * k) for k in range(9, -1, -1)]


def raw(seed: int, purpose: str, index: int, count: int) -> NDArray[np.uint64]:
    """The first `count` 64-bit words of one index, (count,). UsageError for a seed outside of 0 … 2**64 - 1,
    ValueError for such an index."""
    if not 0 <= index < _WORD:
        raise ValueError(f"index {index} is not in 0 … 2**64 - 1")
    key = _key(seed, purpose)
    # numpy adds one to the counter before it makes the first block.
    before = (index * 2**128 - 1) % 2**256
    counter = np.array([(before >> shift) % _WORD for shift in (0, 64, 128, 192)], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=counter)
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def uniform(seed: int, purpose: str, indices: Indices, count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), multiples of 2**-53, (N, count); value j is made of raw word j."""
    return _unit(_words(seed, purpose, indices, count))


def normal(seed: int, purpose: str, indices: Indices, count: int) -> NDArray[np.float64]:
    """Standard normal numbers by Box and Muller, (N, count), of magnitude at most 8.6.

    Raw words 2j and 2j + 1 give u = (word >> 11 + 1) * 2**-53 in (0, 1] and v = (word >> 11) * 2**-53 in
    [0, 1); values 2j and 2j + 1 are sqrt(-2 log u) times cos(2 pi v) and sin(2 pi v).
    """
    words = _words(seed, purpose, indices, count + count % 2)
    radius = np.sqrt(-2.0 * _log(_unit(words[:, 0::2]) + 2.0**-53))
    cosine, sine = _cos_sin(_unit(words[:, 1::2]))
    values = np.stack([radius * cosine, radius * sine], axis=2)
    return values.reshape(words.shape)[:, :count]


def unit_noise(seed: int, purpose: str, indices: Indices, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Normal numbers rounded to float16, (N, *shape): a noise that float16 and wider types hold exactly."""
    values = normal(seed, purpose, indices, math.prod(shape))
    return values.astype(np.float16).reshape(len(values), *shape)


def choice(seed: int, purpose: str, indices: Indices, values: Sequence[int]) -> NDArray[np.int64]:
    """One of `values` for each index, all with the same probability, (N,)."""
    draws = uniform(seed, purpose, indices, 1)[:, 0]
    return np.asarray(values, dtype=np.int64)[(draws * len(values)).astype(np.int64)]


def permutation(seed: int, purpose: str, index: int, n: int) -> NDArray[np.int64]:
    """A permutation of 0 … n-1, (n,): the order that sorts n raw words."""
    return np.argsort(raw(seed, purpose, index, n), kind="stable").astype(np.int64)


def _key(seed: int, purpose: str) -> NDArray[np.uint64]:
    if not 0 <= seed < _WORD:
        raise UsageError(f"seed: got {seed}; accepted: an integer from 0 to 2**64 - 1")
    code = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.array([seed, code], dtype=np.uint64)


def _words(seed: int, purpose: str, indices: Indices, count: int) -> NDArray[np.uint64]:
    """The first `count` words of every index, (N, count)."""
    numbers = np.asarray(indices)
    if 0 < count <= _FEW and numbers.dtype.kind in "iu" and not (numbers < 0).any():
        blocks = -(-count // 4)
        of_each = np.repeat(numbers.astype(np.uint64), blocks)
        block = np.tile(np.arange(blocks, dtype=np.uint64), len(numbers))
        return _philox(_key(seed, purpose), block, of_each).reshape(-1, 4 * blocks)[:, :count]
    words = np.empty((len(indices), count), dtype=np.uint64)
    for row, index in enumerate(indices):
        words[row] = raw(seed, purpose, int(index), count)
    return words


def _philox(
    key: NDArray[np.uint64], block: NDArray[np.uint64], index: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """The four words of each counter index * 2**128 + block, (N, 4). For few words of many indices, where
    numpy's generator would have to be made anew for each."""
    nothing = np.zeros_like(block)
    words = [block, nothing, index, nothing]
    for number in range(_ROUNDS):
        # In integers of Python's, since numpy warns of a scalar that overflows.
        keys = [(int(one) + number * step) % _WORD for one, step in zip(key, _KEY_STEPS, strict=True)]
        (high, low), (other_high, other_low) = (
            _product(factor, word) for factor, word in zip(_FACTORS, words[::2], strict=True)
        )
        first, third = other_high ^ words[1] ^ np.uint64(keys[0]), high ^ words[3] ^ np.uint64(keys[1])
        words = [first, other_low, third, low]
    return np.stack(words, axis=1)


def _product(factor: int, words: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The upper and the lower 64 bits of factor * words, by halves of 32."""
    half, mask = np.uint64(32), np.uint64(2**32 - 1)
    a, b = np.uint64(factor >> 32), np.uint64(factor % 2**32)
    c, d = words >> half, words & mask
    middle = a * d + (b * d >> half)
    other = b * c + (middle & mask)
    return a * c + (middle >> half) + (other >> half), words * np.uint64(factor)


def _unit(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _polynomial(coefficients: list[float], x: NDArray[np.float64]) -> NDArray[np.float64]:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def _log(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm: u = m * 2**e with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh((m - 1) / (m + 1))."""
    m, e = np.frexp(u)
    low = m < _SQRT_HALF
    m = np.where(low, 2.0 * m, m)
    e = np.where(low, e - 1, e)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    return e * _LN2 + (2.0 * s + 2.0 * s * (square * _polynomial(_ATANH, square)))


def _cos_sin(turns: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of an angle in turns, by its distance (exact) from the nearest quarter turn."""
    quarters = 4.0 * turns
    nearest = np.rint(quarters)
    x = (quarters - nearest) * _HALF_PI
    square = x * x
    cosine, sine = _polynomial(_COS, square), x * _polynomial(_SIN, square)
    quadrant = nearest.astype(np.int64) % 4
    odd = quadrant % 2 == 1
    cosine, sine = np.where(odd, sine, cosine), np.where(odd, cosine, sine)
    left = (quadrant == 1) | (quadrant == 2)
    return np.where(left, -cosine, cosine), np.where(quadrant >= 2, -sine, sine)
