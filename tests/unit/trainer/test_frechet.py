from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from hkdpipe.trainer.frechet import Statistics, frechet_distance, statistics

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
    # Rounding leaves eigenvalues of about 1e-15, of which the roots are taken.
    assert frechet_distance(one, other) == pytest.approx(21, abs=1e-5)
    assert frechet_distance(one, scaled) == pytest.approx(14, abs=1e-5)


def test_frechet_distance_from_few_samples_is_finite_and_real() -> None:
    random = np.random.default_rng(0)
    few, many = statistics(random.normal(size=(5, 64))), statistics(random.normal(size=(500, 64)))
    assert 0 < frechet_distance(few, many) < 1e3


@pytest.mark.parametrize("rank", [3, 20])
def test_frechet_distance_is_symmetric_and_zero_for_equals(rank: int) -> None:
    one, other = gaussian(1, 20, rank), gaussian(2, 20, rank)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-6)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6 * np.trace(one.covariance))


@pytest.mark.parametrize("size", [1, 4])
def test_statistics_by_their_definition(size: int) -> None:
    features = np.random.default_rng(0).normal(3, 2, size=(9, size)).astype(np.float32)
    found = statistics(features)
    rows = features.astype(np.float64)
    mean = sum(rows) / 9
    covariance = sum(np.outer(row - mean, row - mean) for row in rows) / 8
    assert found.covariance.shape == (size, size)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-9)


def test_statistics_of_single_precision_features_far_from_zero() -> None:
    """In float32 the sums would lose the variance altogether."""
    features = (np.arange(4000) % 2 + 4096).astype(np.float32)[:, None]
    assert statistics(features).covariance.item() == pytest.approx(0.25 * 4000 / 3999, rel=1e-12)
