from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.ground.rng import unit_noise
from hkdpipe.stages.sampling import sample as sampling
from hkdpipe.stages.settings.teacher_sampling import TeacherSampling
from hkdpipe.stages.shared.picture_grids import to_uint8
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.trainer.teachers.sampler import Churn, sample_stochastic, sample_trajectory

SHAPE = (1, 4, 5)  # torch draws fewer than 16 numbers alike in single and double precision
COUNT = 5
SEED = 7
Samples = Callable[..., NDArray[np.uint8]]


class Mixer:
    """A teacher without a network; pixels depend on each other, so that mixing them up shows."""

    arch = SimpleNamespace(label_dim=0, sigma_min=0.0, sigma_max=np.inf)
    image_shape = SHAPE

    def __call__(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        return (x + x.flip(-1)) / (2 + 4 * sigma**2)


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """The images of a file of samples, (N, C, H, W)."""
    monkeypatch.setattr(sampling, "load_teacher", lambda source, device: Mixer())

    def make(batch_size: int = 256, **options: Any) -> NDArray[np.uint8]:
        monkeypatch.setattr(sampling, "BATCH_SIZE", batch_size)
        work: Any = {"device": torch.device("cpu"), "reporter": Silent(), "stop": lambda: False}
        sampling.sample_teacher("mixer", tmp_path, COUNT, SEED, TeacherSampling(**options), **work)
        with np.load(tmp_path / "samples.npz") as file:
            images: NDArray[np.uint8] = file["images"].transpose(0, 3, 1, 2)
        return images

    return make


def noise(purpose: str) -> Tensor:
    return torch.from_numpy(unit_noise(SEED, purpose, range(COUNT), SHAPE))


def test_the_noise_is_that_of_a_students_samples(samples: Samples) -> None:
    states, _ = sample_trajectory(Mixer(), noise("sampling"), 6, solver="euler")
    assert np.array_equal(samples(steps=6, solver="euler"), to_uint8(states[-1].numpy()))


def test_churn_adds_noise_of_its_own_at_each_step(samples: Samples) -> None:
    expected = sample_stochastic(
        Mixer(),
        noise("sampling"),
        lambda step: noise(f"sampling-churn-{step}"),
        Churn(3.0, 0.05, 50.0, 1.1),
        6,
    )
    images = samples(steps=6, churn=3.0, s_min=0.05, s_max=50.0, s_noise=1.1)
    assert np.array_equal(images, to_uint8(expected.numpy()))
    assert np.array_equal(
        samples(steps=6, churn=3.0, s_min=0.05, s_max=50.0, s_noise=1.1, batch_size=2), images
    )
    assert not np.array_equal(samples(steps=6), images)


def test_edm_seeds_are_torchs_generators(samples: Samples) -> None:
    """The start in single precision, then the noise of each step in double, from one generator an image."""
    generators = [torch.Generator().manual_seed(SEED + index) for index in range(COUNT)]
    start = torch.stack([torch.randn(SHAPE, generator=one) for one in generators])
    later = [
        torch.stack([torch.randn(SHAPE, generator=one, dtype=torch.float64) for one in generators])
        for _ in range(6)
    ]
    expected = sample_stochastic(Mixer(), start, later.__getitem__, Churn(3.0), 6)
    images = samples(steps=6, churn=3.0, edm_seeds=True, batch_size=2)
    assert np.array_equal(images, to_uint8(expected.numpy()))
