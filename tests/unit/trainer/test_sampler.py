from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hkdpipe.trainer.sampler import evaluations, sample_trajectory, sigma_schedule

Relative = Callable[[Tensor, Tensor], float]
SPREAD = 0.5


def gaussian_denoiser(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    """The ideal one for data N(0, SPREAD^2)."""
    return x * SPREAD**2 / (SPREAD**2 + sigma**2)


def gaussian_solution(start: Tensor, sigmas: Tensor) -> Tensor:
    """The states of the probability-flow ODE for such data: x scales with the spread of data plus noise."""
    spreads = (SPREAD**2 + sigmas**2).sqrt()
    return start * (spreads / spreads[0])[:, None, None, None, None]


@pytest.mark.parametrize("steps", [5, 18])
def test_schedule_of_edm(steps: int, fixtures: Path) -> None:
    sigmas = sigma_schedule(steps)
    with np.load(fixtures / "ddpmpp-grey-8px.npz") as published:
        np.testing.assert_allclose(sigmas, published[f"ts_heun{steps}"], rtol=1e-14)
    assert sigmas.dtype == torch.float64
    assert sigmas[0].item() == pytest.approx(80, rel=1e-14)
    assert sigmas[-2].item() == pytest.approx(0.002, rel=1e-12)
    assert sigmas[-1].item() == 0


@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80.0, 7.0), (0.01, 50.0, 3.0)])
def test_schedule_formula(low: float, high: float, rho: float) -> None:
    """The roots of the levels are equally spaced."""
    sigmas = sigma_schedule(40, low, high, rho)[:-1].numpy()
    roots = np.array([math.exp(math.log(sigma) / rho) for sigma in sigmas])
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 39, rtol=1e-9)
    np.testing.assert_allclose(sigmas[[0, -1]], [high, low], rtol=1e-12)


def test_heun_is_of_second_order_on_the_gaussian_solution() -> None:
    noise = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    errors = []
    for intervals in (32, 64, 128):
        states, sigmas = sample_trajectory(gaussian_denoiser, noise, intervals + 1)
        exact = gaussian_solution(states[0], sigmas)
        errors.append((states[-2] - exact[-2]).norm().item())
    orders = [math.log2(one / other) for one, other in itertools.pairwise(errors)]
    assert all(1.7 < order < 2.3 for order in orders), orders
    assert errors[-1] < 1e-3 * gaussian_solution(noise * 80, sigmas)[-2].norm().item()


def test_last_step_is_the_denoised_image(relative: Relative) -> None:
    """Euler's step from sigma_min to 0 lands on D(x; sigma_min)."""
    states, sigmas = sample_trajectory(gaussian_denoiser, torch.randn(2, 1, 2, 2), 5)
    assert relative(states[-1], gaussian_denoiser(states[-2], sigmas[-2].item(), None)) < 1e-12


def test_states_are_float64_and_start_at_the_scaled_noise() -> None:
    asked: list[torch.dtype] = []

    def single(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        asked.append(x.dtype)
        return gaussian_denoiser(x.float(), sigma, labels)

    noise = torch.randn(3, 1, 2, 2)
    states, sigmas = sample_trajectory(single, noise, 6, sigma_max=10.0)
    assert (states.dtype, sigmas.dtype, states.shape) == (torch.float64, torch.float64, (7, 3, 1, 2, 2))
    assert set(asked) == {torch.float64}
    assert torch.equal(states[0], noise.double() * sigmas[0])
    finer = sample_trajectory(gaussian_denoiser, noise, 6, sigma_max=10.0)[0]
    assert 0 < (states - finer).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_number_of_evaluations_is_twice_the_steps_less_one(steps: int) -> None:
    calls: list[tuple[float, Tensor | None]] = []
    labels = torch.ones(1)

    def counting(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        calls.append((sigma, labels))
        return x

    sample_trajectory(counting, torch.zeros(1, 1, 2, 2), steps, labels)
    assert len(calls) == evaluations(steps) == 2 * steps - 1
    assert all(sigma > 0 and given is labels for sigma, given in calls)
