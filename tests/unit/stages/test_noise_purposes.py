"""The three uses of noise never meet: no student is scored on noise that it was trained on."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.plan import Plan
from hkdpipe.manifests.rng import unit_noise
from hkdpipe.stages import sample as sampling
from hkdpipe.stages.evaluate import _Context
from hkdpipe.stages.generate import sample_shard
from hkdpipe.stages.reporting import Silent
from hkdpipe.stages.settings import EvaluationSettings
from hkdpipe.trainer.methods.hkd import HKD
from hkdpipe.trainer.teacher import Teacher

Noise = NDArray[np.float64]
CPU = torch.device("cpu")
SHAPE = (1, 2, 2)
SEED = 7


class Recorder:
    """A student that keeps the noise it is given."""

    image_shape = SHAPE

    def __init__(self) -> None:
        self.given: list[Tensor] = []

    def sample(self, noise: Tensor) -> Tensor:
        self.given.append(noise)
        return noise


def denoiser(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    """Pixels depend on each other, so that mixing them up shows."""
    return (x + x.flip(-1)) / (2 + sigma**2)


def archive_noise(plan: Plan) -> Noise:
    """The noise that the start of every trajectory shows."""
    single = dataclasses.replace(plan, dtype="float32")
    pieces = [
        piece for k in range(plan.shards) for piece in sample_shard(cast(Teacher, denoiser), single, k, CPU)
    ]
    return np.asarray(np.concatenate(pieces)[:, 0] / plan.sigmas[0], dtype=np.float64)


def evaluation_noise(count: int) -> Noise:
    context = _Context(
        teacher=cast(Teacher, None),
        student=cast(HKD, Recorder()),
        archive=cast(Any, None),
        validation=0,
        settings=EvaluationSettings(seed=SEED),
        out=Path(),
        device=CPU,
        reporter=Silent(),
        stop=lambda: False,
    )
    whole = context.noise(0, count)
    assert torch.equal(torch.cat([context.noise(0, 5), context.noise(5, count)]), whole)
    return whole.double().numpy()


def sampling_noise(count: int, out: Path, monkeypatch: pytest.MonkeyPatch) -> Noise:
    recorder = Recorder()
    monkeypatch.setattr(HKD, "from_pretrained", lambda *arguments: recorder)
    monkeypatch.setattr(sampling, "BATCH_SIZE", 5)
    sampling.sample(Path(), out, count, SEED, device=CPU, reporter=Silent(), stop=lambda: False)
    assert [len(noise) for noise in recorder.given] == [5, 5, 2]
    return torch.cat(recorder.given).double().numpy()


def test_archive_evaluation_and_sampling_draw_different_noise_from_one_seed(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = {
        "archive": archive_noise(plan),
        "evaluation": evaluation_noise(12),
        "sampling": sampling_noise(12, tmp_path, monkeypatch),
    }
    for purpose, noise in drawn.items():
        expected = unit_noise(SEED, purpose, range(12), SHAPE)
        np.testing.assert_allclose(noise, expected, rtol=1e-6, err_msg=purpose)
    for one, other in itertools.combinations(drawn.values(), 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.5
        assert (one != other).all()


def test_a_trajectory_depends_on_its_number_alone(plan: Plan) -> None:
    """Not on the shard it is in, nor on the trajectories that share its batch."""

    def trajectories(**changes: Any) -> NDArray[Any]:
        changed = dataclasses.replace(plan, **changes)
        shards = (sample_shard(cast(Teacher, denoiser), changed, k, CPU) for k in range(changed.shards))
        return np.concatenate([piece for shard in shards for piece in shard])

    expected = trajectories()
    assert expected.shape == (12, *plan.states_shape)
    assert expected.dtype == np.float16
    for changes in ({"count": 11}, {"shard_size": 3}, {"count": 20}):
        found = trajectories(**changes)
        common = min(len(found), 12)
        assert np.array_equal(found[:common], expected[:common])
    assert not np.array_equal(trajectories(seed=8), expected)
