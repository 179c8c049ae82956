import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.errors import UsageError

M = 2**64
GOLDEN_NORMAL_0 = [
    "-0x1.4f854fc195f63p-1",
    "0x1.32a6d3ecb6da1p-1",
    "0x1.11ed3c7fc610bp-1",
    "-0x1.176f4d461c2dbp+1",
    "0x1.674915301c459p-2",
]
GOLDEN_NORMAL_1 = ["-0x1.72f9ea6cf6575p-2", "0x1.489370af64099p+0"]
GOLDEN_NOISE = "3eb9cb3848385ec0073dc7b9d52f58b9"
GOLDEN_LABELS = [7, 0, 3, 3, 4, 5, 4, 7]
GOLDEN_PERMUTATION = [1, 7, 2, 4, 3, 6, 0, 5]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 after the paper's definition, in whole numbers: a second implementation."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2E7470EE14C6C93 * c[0], M)
        high1, low1 = divmod(0xCA5A826395121157 * c[2], M)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B97F4A7C15) % M, (k[1] + 0xBB67AE8584CAA73B) % M]
    return c


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        ([M - 1] * 4, [M - 1] * 2, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
        (
            words("243f6a8885a308d3 13198a2e03707344 a4093822299f31d0 082efa98ec4e6c89"),
            words("452821e638d01377 be5466cf34e90c6c"),
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_known_answers_of_random123(counter: list[int], key: list[int], expected: str) -> None:
    assert philox(counter, key) == words(expected)


@pytest.mark.parametrize("seed", [0, 1, M - 1])
@pytest.mark.parametrize("index", [0, 1, 2**40 + 3, M - 1])
def test_raw_is_philox_of_seed_purpose_and_index(seed: int, index: int) -> None:
    code = int.from_bytes(hashlib.sha256(b"noise").digest()[:8], "little")
    expected = [word for block in range(3) for word in philox([block, 0, index, 0], [seed, code])]
    for count in (0, 1, 4, 11):
        result = rng.raw(seed, "noise", index, count)
        assert result.dtype == np.uint64
        assert result.tolist() == expected[:count]


def test_ranges_are_checked() -> None:
    for seed in (-1, M):
        with pytest.raises(UsageError, match="seed"):
            rng.raw(seed, "noise", 0, 1)
    for index in (-1, M):
        with pytest.raises(ValueError, match="index"):
            rng.raw(0, "noise", index, 1)


def test_golden_values() -> None:
    """These numbers are in every archive: they may never change."""
    assert [float(x).hex() for x in rng.normal(0, "noise", [0], 5)[0]] == GOLDEN_NORMAL_0
    assert [float(x).hex() for x in rng.normal(M - 1, "noise", [123456789], 2)[0]] == GOLDEN_NORMAL_1
    noise = rng.unit_noise(0, "noise", [0, 1], (1, 2, 2))
    assert (noise.dtype, noise.shape) == (np.float16, (2, 1, 2, 2))
    assert noise.astype("<f2").tobytes().hex() == GOLDEN_NOISE
    assert rng.permutation(3, "order", 1, 8).tolist() == GOLDEN_PERMUTATION
    assert rng.choice(3, "labels", range(8), range(10)).tolist() == GOLDEN_LABELS


def test_uniform_is_the_upper_53_bits() -> None:
    values = rng.uniform(5, "u", [9], 6)[0]
    for value, word in zip(values, rng.raw(5, "u", 9, 6), strict=True):
        assert Fraction(float(value)) == Fraction(int(word) >> 11, 2**53)


def test_normal_is_box_muller_of_its_words() -> None:
    values = rng.normal(5, "n", [3], 20_000)[0]
    raw = rng.raw(5, "n", 3, 20_000)
    u = ((raw[0::2] >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    v = (raw[1::2] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2 * np.log(u))
    expected = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], axis=1).ravel()
    np.testing.assert_allclose(values, expected, rtol=0, atol=4e-15)


def test_logarithm_and_circle_at_the_edges() -> None:
    u = np.array([2.0**-53, 2.0**-52, 0.5, 0.7071067811865475, 0.7071067811865477, 1 - 2.0**-53, 1.0])
    np.testing.assert_allclose(rng._log(u), [math.log(x) for x in u], rtol=3e-16, atol=0)
    v = np.arange(0, 1, 1 / 64)
    cosine, sine = rng._cos_sin(v)
    np.testing.assert_allclose(cosine, np.cos(2 * np.pi * v), atol=4e-16)
    np.testing.assert_allclose(sine, np.sin(2 * np.pi * v), atol=4e-16)
    assert rng._cos_sin(np.array([0.0, 0.25, 0.5, 0.75]))[0].tolist() == [1, 0, -1, 0]
    assert np.abs(cosine**2 + sine**2 - 1).max() < 4e-16


def test_logarithm_is_finite_for_every_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (0, M - 1):
        monkeypatch.setattr(rng, "_words", lambda *_, w=word: np.full((1, 2), w, dtype=np.uint64))
        assert np.isfinite(rng.normal(0, "n", [0], 2)).all()


def test_distribution_and_independence() -> None:
    values = rng.normal(1, "n", range(400), 501)
    n = values.size
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(rng.uniform(1, "u", range(100), 500).ravel(), "uniform").pvalue > 1e-3
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs((values**power).mean() - moment) < 4 * math.sqrt(spread / n)
    neighbours = [(values[:, :-1], values[:, 1:]), (values[:-1], values[1:])]
    neighbours += [
        (values, rng.normal(2, "n", range(400), 501)),
        (values, rng.normal(1, "m", range(400), 501)),
    ]
    for a, b in neighbours:
        assert abs((a * b).mean()) < 4 / math.sqrt(a.size)
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 4 * 2 / math.sqrt(a.size)


@pytest.mark.parametrize("values", [(4,), (0, 7, 3), range(1000)])
def test_choice_takes_a_value_by_the_first_word(values: range | tuple[int, ...]) -> None:
    indices = [0, 5, 2**40]
    expected = [values[(int(rng.raw(3, "labels", i, 1)[0]) >> 11) * len(values) >> 53] for i in indices]
    chosen = rng.choice(3, "labels", indices, values)
    assert (chosen.dtype, chosen.tolist()) == (np.int64, expected)


def test_choice_is_uniform_and_never_beyond_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.bincount(rng.choice(0, "labels", range(20_000), range(10)), minlength=10)
    assert stats.chisquare(counts).pvalue > 1e-3
    monkeypatch.setattr(rng, "_words", lambda *_: np.full((1, 1), M - 1, dtype=np.uint64))
    for n in (1, 3, 10, 1000):
        assert rng.choice(0, "labels", [0], range(n)).tolist() == [n - 1]


@pytest.mark.parametrize("count", [1, 2, 7, 192])
def test_values_do_not_depend_on_the_batch(count: int) -> None:
    indices = np.array([5, 0, 99, 12, 7])
    together = rng.normal(4, "n", indices, count)
    for row, index in zip(together, indices.tolist(), strict=True):
        assert row.tobytes() == rng.normal(4, "n", [index], count)[0].tobytes()
        assert row[:1].tobytes() == rng.normal(4, "n", [index], 1)[0].tobytes()
    assert rng.normal(4, "n", [], count).shape == (0, count)


def test_permutation() -> None:
    order = rng.permutation(1, "order", 0, 1000)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != rng.permutation(1, "order", 1, 1000).tolist()


@pytest.mark.parametrize("count", [1, 2, 4, 5, 16, 17])
def test_words_of_many_indices_are_those_of_each(count: int) -> None:
    """A few are made for all at once, by arithmetic of our own; numpy's generator says which."""
    indices = np.array([0, 1, 2, 3, 12345, 2**32 - 1, 2**32, 2**63, 2**64 - 1], dtype=np.uint64)
    for seed in (0, 2**64 - 1):
        expected = np.stack([rng.raw(seed, "times", int(index), count) for index in indices])
        found = rng.uniform(seed, "times", indices, count)
        assert np.array_equal(found, (expected >> np.uint64(11)) * 2.0**-53)
