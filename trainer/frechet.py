"""The Frechet distance between feature distributions, in float64 and without a matrix square root."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Statistics:
    """Of features (N, d): their mean (d,) and covariance (d, d), over N - 1."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def statistics(features: NDArray[np.floating]) -> Statistics:
    """Mean and covariance of features (N, d), N >= 2."""
    features = features.astype(np.float64)
    return Statistics(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982; Heusel et al. 2017).

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
    symmetric and positive semidefinite: nothing complex and no NaN, whatever the ranks.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    product = np.linalg.eigvalsh(root @ other.covariance @ root)
    trace_of_root = np.sqrt(product.clip(min=0)).sum()
    shift = one.mean - other.mean
    trace = np.trace(one.covariance) + np.trace(other.covariance)
    return float(shift @ shift + trace - 2 * trace_of_root)
