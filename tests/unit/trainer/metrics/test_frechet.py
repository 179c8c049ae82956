from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.metrics.frechet_distance import (
    Statistics,
    frechet_distance,
    quick_frechet_distance,
    read_statistics,
    statistics,
)

Array = NDArray[np.float64]


def rotation(size: int) -> Array:
    return np.asarray(np.linalg.qr(np.random.default_rng(size).normal(size=(size, size)))[0])


def gaussian(seed: int, size: int, rank: int) -> Statistics:
    random = np.random.default_rng(seed)
    root = random.normal(size=(size, rank))
    return Statistics(random.normal(size=size), root @ root.T)


@pytest.mark.parametrize("basis", [np.eye(4), rotation(4)], ids=["diagonal", "commuting"])
def test_frechet_distance_of_commuting_gaussians_in_closed_form(basis: Array) -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 over the standard deviations along the common axes."""
    one, other = np.array([1.0, 2.0, 0.5, 0.0]), np.array([3.0, 0.1, 0.5, 2.0])
    shift = np.array([1.0, -2.0, 0.0, 0.5])
    found = frechet_distance(
        Statistics(shift, basis @ np.diag(one**2) @ basis.T),
        Statistics(np.zeros(4), basis @ np.diag(other**2) @ basis.T),
    )
    assert found == pytest.approx(5.25 + 4 + 3.61 + 0 + 4, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 7, 64])
def test_frechet_distance_agrees_with_the_matrix_square_root(size: int, seed: int) -> None:
    one, other = gaussian(seed, size, 2 * size), gaussian(seed + 10, size, 2 * size)
    root = np.atleast_2d(sqrtm(one.covariance @ other.covariance))
    expected = np.sum((one.mean - other.mean) ** 2) + np.trace(
        one.covariance + other.covariance - 2 * root.real
    )
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_rank_deficient_gaussians() -> None:
    """On orthogonal subspaces the root vanishes; within one subspace only it counts."""
    basis = rotation(8)
    low, high = basis[:, :3], basis[:, 3:5]
    one = Statistics(np.zeros(8), low @ np.diag([1.0, 4.0, 9.0]) @ low.T)
    other = Statistics(np.zeros(8), high @ np.diag([2.0, 5.0]) @ high.T)
    scaled = Statistics(np.zeros(8), 4 * one.covariance)
    assert frechet_distance(one, other) == pytest.approx(21, rel=1e-12)
    assert frechet_distance(one, scaled) == pytest.approx(14, rel=1e-12)


def test_frechet_distance_to_a_point() -> None:
    """A single image repeated has no covariance at all."""
    one, point = gaussian(1, 5, 5), Statistics(np.ones(5), np.zeros((5, 5)))
    expected = np.sum((one.mean - 1) ** 2) + np.trace(one.covariance)
    assert frechet_distance(one, point) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rank", [2048, 300])
def test_frechet_distance_in_2048_dimensions_in_closed_form(rank: int) -> None:
    """Along common axes; a rank below the dimensions is what fewer images than features give."""
    size, random = 2048, np.random.default_rng(rank)
    # A reflection is a basis that costs nothing to make.
    axis = random.normal(size=size)
    basis = np.eye(size) - 2 * np.outer(axis, axis) / (axis @ axis)
    one, other = (random.lognormal(sigma=2, size=size) * (np.arange(size) < rank) for _ in range(2))
    shift = random.normal(size=size) / 100
    found = frechet_distance(
        Statistics(shift, basis * one**2 @ basis), Statistics(np.zeros(size), basis * other**2 @ basis)
    )
    assert found == pytest.approx(shift @ shift + np.sum((one - other) ** 2), rel=1e-9)


def test_frechet_distance_from_few_samples_by_the_nuclear_norm() -> None:
    """tr (C1 C2)^(1/2) is the nuclear norm of the product of the samples, fewer here than dimensions."""
    random = np.random.default_rng(0)
    one, other = random.normal(size=(20, 256)), random.normal(0.3, 2, size=(30, 256))
    parts = [values - values.mean(axis=0) for values in (one, other)]
    traces = [np.sum(part**2) / (len(part) - 1) for part in parts]
    root = np.linalg.norm(parts[0] @ parts[1].T, "nuc") / np.sqrt(19 * 29)
    shift = one.mean(axis=0) - other.mean(axis=0)
    expected = shift @ shift + sum(traces) - 2 * root
    assert frechet_distance(statistics([one]), statistics([other])) == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_from_few_samples_is_finite_and_real() -> None:
    random = np.random.default_rng(0)
    few, many = statistics([random.normal(size=(5, 64))]), statistics([random.normal(size=(500, 64))])
    assert 0 < frechet_distance(few, many) < 1e3


@pytest.mark.parametrize("rank", [3, 20])
def test_frechet_distance_is_symmetric_and_zero_for_equals(rank: int) -> None:
    one, other = gaussian(1, 20, rank), gaussian(2, 20, rank)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-10)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12 * np.trace(one.covariance))


@pytest.mark.parametrize("size", [1, 4])
def test_statistics_by_their_definition(size: int) -> None:
    features = np.random.default_rng(0).normal(3, 2, size=(9, size)).astype(np.float32)
    found = statistics([features])
    rows = features.astype(np.float64)
    mean = sum(rows) / 9
    covariance = sum(np.outer(row - mean, row - mean) for row in rows) / 8
    assert found.covariance.shape == (size, size)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)


def test_statistics_of_single_precision_features_far_from_zero() -> None:
    """In float32 the sums would lose the variance altogether."""
    features = (np.arange(4000) % 2 + 4096).astype(np.float32)[:, None]
    assert statistics([features]).covariance.item() == pytest.approx(0.25 * 4000 / 3999, rel=1e-12)


@pytest.mark.parametrize("sizes", [[7, 1, 392], [400], [1] * 400, [200, 200]], ids=str)
def test_statistics_do_not_depend_on_how_features_come(sizes: list[int]) -> None:
    """Neither on the batches nor on which process computed them."""
    features = np.random.default_rng(0).normal(5, 1, size=(400, 8)).astype(np.float32)
    found = statistics(np.split(features, np.cumsum(sizes)[:-1]))
    np.testing.assert_allclose(found.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(
        found.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12, atol=1e-12
    )


def test_statistics_of_one_feature_are_refused() -> None:
    with pytest.raises(ValueError, match="two features, not 1"):
        statistics([np.zeros((1, 3))])


def test_statistics_files_are_those_of_edm(tmp_path: Path) -> None:
    """They have mu and sigma in float64 and nothing else."""
    values = gaussian(0, 6, 9)
    np.savez(tmp_path / "theirs.npz", mu=values.mean, sigma=values.covariance)
    found = read_statistics(tmp_path / "theirs.npz")
    assert np.array_equal(found.mean, values.mean)
    assert np.array_equal(found.covariance, values.covariance)


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"mu": np.zeros(3)}, "no array named 'sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, r"accepted: finite floating-point \(d,\) and"),
        ({"mu": np.zeros(3, int), "sigma": np.zeros((3, 3))}, "mu int64"),
        ({"mu": np.full(3, np.nan), "sigma": np.zeros((3, 3))}, "finite"),
    ],
    ids=["no sigma", "not square", "integers", "NaN"],
)
def test_other_statistics_files_are_refused(tmp_path: Path, arrays: dict[str, Array], what: str) -> None:
    np.savez(tmp_path / "some.npz", **arrays)
    with pytest.raises(InputError, match=what):
        read_statistics(tmp_path / "some.npz")


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    for name, content in (("text.npz", b"hello"), ("pickle.npz", b"\x80\x04N."), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="not a readable"):
            read_statistics(tmp_path / name)
    with pytest.raises(InputError, match="not a readable"):
        read_statistics(tmp_path / "missing.npz")


@pytest.mark.parametrize(("count", "other_count"), [(2000, 300), (300, 2000), (300, 100), (100, 300)])
def test_the_quick_distance_is_the_exact_one(count: int, other_count: int) -> None:
    """Also of features drawn with replacement, whose covariance lacks rank, with variances of many sizes."""
    generator = np.random.default_rng(0)
    scales = np.geomspace(1, 1e-4, 256)
    one, other = (generator.normal(size=(size, 256)) * scales for size in (count, other_count))
    drawn = statistics([one[generator.integers(0, count, count)]])
    target = statistics([other])
    assert quick_frechet_distance(drawn, target) == pytest.approx(frechet_distance(drawn, target), rel=1e-6)
