"""The spread of a Frechet distance, by drawing its samples again."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.stages.evaluation.metrics.fd import bootstrap
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.trainer.metrics.frechet_distance import statistics

COUNT = 2000


def spread(features: NDArray[np.float32], target: Any, blocks: int, **settings: Any) -> float:
    context: Any = SimpleNamespace(
        settings=EvaluationSettings(samples=COUNT, **settings), check_stop=lambda: None
    )
    return bootstrap(context, lambda: iter(np.array_split(features, blocks)), target)


def test_spread_of_a_shifted_normal_distribution() -> None:
    """With a mean that is far away, |m1 - m2|^2 varies the most: as 2 |m1 - m2| sigma / sqrt(N)."""
    random = np.random.default_rng(0)
    features = random.normal(size=(COUNT, 3)).astype(np.float32)
    target = statistics([random.normal([0, 5, 0], size=(COUNT, 3))])
    shift = features.mean(axis=0) - target.mean
    expected = 2 * math.sqrt(shift @ np.cov(features.T) @ shift / COUNT)
    found = spread(features, target, 1, bootstrap=300, seed=1)
    assert found == pytest.approx(expected, rel=0.1)
    assert spread(features, target, 7, bootstrap=300, seed=1) == pytest.approx(found, rel=1e-9)
    assert spread(features, target, 1, bootstrap=300, seed=2) != found
