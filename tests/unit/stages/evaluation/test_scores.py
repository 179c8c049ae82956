import numpy as np
import pytest

from hkdpipe.stages.evaluation.metrics.inception_score import inception_score
from hkdpipe.stages.evaluation.metrics.kid import kernel_distance
from hkdpipe.stages.evaluation.metrics.precision_recall import precision_recall

RANDOM = np.random.default_rng(0)
MADE = RANDOM.normal(0.5, 1, size=(40, 6)).astype(np.float32)
REAL = RANDOM.normal(0, 1, size=(40, 6)).astype(np.float32)


def test_kernel_distance_by_its_definition() -> None:
    """With as many images as a subset holds, every subset is all of them, and the spread is zero."""

    def mean(one: np.ndarray, other: np.ndarray, same: bool) -> float:
        values = [
            (float(x.astype(float) @ y.astype(float)) / 6 + 1) ** 3
            for i, x in enumerate(one)
            for j, y in enumerate(other)
            if not (same and i == j)
        ]
        return float(np.mean(values))

    expected = mean(MADE, MADE, True) + mean(REAL, REAL, True) - 2 * mean(MADE, REAL, False)
    found = kernel_distance(MADE, REAL)
    assert found["kid"] == pytest.approx(expected, rel=1e-4)
    assert found["kid_std"] == pytest.approx(0, abs=1e-6)
    assert found["kid_subset_size"] == 40


def test_kernel_distance_of_equal_distributions_is_around_zero() -> None:
    one, other = RANDOM.normal(size=(2, 1500, 6)).astype(np.float32)
    found = kernel_distance(one, other)
    assert found["kid_subset_size"] == 1000
    assert abs(found["kid"]) < 0.1 * abs(kernel_distance(one + 0.5, other)["kid"])


def test_inception_score_of_certain_and_of_clueless_classifiers() -> None:
    """The number of classes where each image is surely one of them, all alike; 1 where nothing is known."""
    certain = np.tile(40 * np.eye(5, dtype=np.float32), (400, 1))
    assert inception_score(certain)["inception_score"] == pytest.approx(5, rel=0.03)
    assert inception_score(np.zeros((50, 5), np.float32))["inception_score"] == pytest.approx(1)


def test_inception_score_by_its_definition() -> None:
    """Ten parts of one image each say nothing: p(class) is p(class | image); of two images by hand."""
    assert inception_score(MADE[:10])["inception_score"] == pytest.approx(1)
    assert inception_score(MADE[:3])["inception_score"] == pytest.approx(1)
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8]], np.float32))
    pairs = np.tile(logits, (10, 1))
    mean = np.array([0.55, 0.45])
    both = np.exp(np.mean([np.sum(p * np.log(p / mean)) for p in np.exp(logits)]))
    # Each part holds two of the same, which score 1, or one of each.
    score = inception_score(pairs)["inception_score"]
    shares = (score - 1) / (both - 1) * 10
    assert 0 < shares < 10
    assert shares == pytest.approx(round(shares), abs=1e-4)


def test_precision_and_recall_by_their_definition() -> None:
    def within(points: np.ndarray, manifold: np.ndarray) -> float:
        """Share of the points that lie in the ball of a manifold's point to its third neighbour."""
        found = []
        radii = [np.sort(np.linalg.norm(manifold - centre, axis=1))[3] for centre in manifold]
        for point in points:
            distances = np.linalg.norm(manifold - point, axis=1)
            found.append(bool((distances <= np.array(radii)).any()))
        return float(np.mean(found))

    made = MADE * 1.5
    expected = {"precision": within(made, REAL), "recall": within(REAL, made)}
    assert 0 < expected["precision"] < 1
    assert expected["precision"] != expected["recall"]
    assert precision_recall(made, REAL) == pytest.approx(expected)
