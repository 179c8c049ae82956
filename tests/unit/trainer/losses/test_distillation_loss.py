from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson, distillation_loss, mse_decay, time_weights
from hkdpipe.trainer.losses.perceptual import Distance, perceptual_distance
from hkdpipe.trainer.settings.training_settings import TrainingSettings


class Scaling(nn.Module):
    """A model that depends on the state, on its noise level and on its class."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        assert sigma.shape == (len(x),)
        made = self.gain * x / (1 + sigma[:, None, None, None])
        return made if labels is None else made + labels.argmax(dim=1)[:, None, None, None]


def worst_pixel(a: Tensor, b: Tensor) -> Tensor:
    """A stand-in for a perceptual distance: not a mean, so that mixing up images shows."""
    return (a - b.repeat_interleave(len(a) // len(b), dim=0)).abs().amax(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 1.0), (1 / 3, 0.1), (0.5, 10**-1.5), (2 / 3, 0.01), (1.0, 0.001)]
)
def test_weight_of_the_mse_falls_by_decades(progress: float, expected: float) -> None:
    assert mse_decay(progress, 3.0) == pytest.approx(expected, rel=1e-12)


def test_weight_of_the_mse_without_decades_stays() -> None:
    assert [mse_decay(progress, 0.0) for progress in (0.0, 0.4, 1.0)] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("numbers", "between", "expected"),
    [
        ([[0], [4], [1]], 1.0, [[1], [1], [1]]),
        ([[0], [4], [1]], 0.3, [[1], [0.3], [0.3]]),
        ([[0, 3], [0, 1]], 1.0, [[1, 1], [1, 1]]),
        ([[0, 9, 2, 2, 1]], 1.0, [[1, 0.25, 0.25, 0.25, 0.25]]),
        ([[0, 9, 2, 2, 1]], 4.0, [[1, 1, 1, 1, 1]]),
    ],
)
def test_time_weights(numbers: list[list[int]], between: float, expected: list[list[float]]) -> None:
    found = time_weights(torch.tensor(numbers), between)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("distance", [None, worst_pixel])
@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("classes", [None, [2, 0, 0, 1]])
@pytest.mark.parametrize("between", [1.0, 0.3])
def test_distillation_loss_is_the_sum_written_out(
    between: float, classes: list[int] | None, times: int, distance: Distance | None
) -> None:
    """The mean over trajectories of d(start) + the weighted mean of d(t) over the times in between."""
    training = TrainingSettings(perceptual_weight=2.5, mse_weight=0.7, mse_decades=3.0)
    model, progress = Scaling().double(), 0.3
    states = torch.randn(4, times, 1, 3, 2, dtype=torch.float64)
    labels = None if classes is None else torch.eye(3)[classes]
    numbers = torch.arange(times).expand(4, times)
    batch = Batch(states, numbers, torch.rand(4, times).double(), torch.randn(4, 1, 3, 2).double(), labels)
    totals = {"loss": 0.0, "mse": 0.0, "perceptual": 0.0}
    for trajectory in range(4):
        end = batch.ends[trajectory]
        for time in range(times):
            image = 0.8 * states[trajectory, time] / (1 + batch.sigmas[trajectory, time])
            image = image + (classes[trajectory] if classes else 0)
            share = 1 if time == 0 else between / (times - 1)
            squares = [value**2 for value in (image - end).flatten().tolist()]
            mse = sum(squares) / len(squares)
            perceptual = max(squares) ** 0.5 if distance else 0.0
            totals["mse"] += share * mse / 4
            totals["perceptual"] += share * perceptual / 4
            totals["loss"] += share * (0.7 * 10 ** (-3 * progress) * mse + 2.5 * perceptual) / 4
    if distance is None:
        del totals["perceptual"]
    terms = distillation_loss(model, batch, Lesson(training, distance, progress), between)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(totals, rel=1e-6)
    terms["loss"].backward()
    assert model.gain.grad is not None
    assert model.gain.grad.abs() > 0


@pytest.mark.parametrize("name", ["digits", "pseudo-huber"])
def test_an_end_stands_beside_every_state_of_its_trajectory(name: str) -> None:
    """Its features are computed once."""
    distance = perceptual_distance(name, "", 1, torch.device("cpu"))
    assert distance is not None
    images, ends = torch.rand(6, 1, 8, 8), torch.rand(2, 1, 8, 8)
    assert torch.equal(distance(images, ends), distance(images, ends.repeat_interleave(3, dim=0)))


def test_batch_moves_as_a_whole() -> None:
    numbers, positions = torch.zeros(1, 1, dtype=torch.int64), np.arange(1)
    batch = Batch(
        torch.zeros(1, 1, 1, 2, 2),
        numbers,
        torch.ones(1, 1),
        torch.zeros(1, 1, 2, 2),
        torch.eye(1),
        positions,
    )
    moved = batch.to(torch.device("meta"))
    assert moved.positions is positions
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert {value.device.type for value in tensors} == {"meta"}
    assert replace(batch, labels=None).to(torch.device("meta")).labels is None
