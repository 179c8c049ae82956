import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from hkdpipe.manifests.ground.rng import unit_noise
from hkdpipe.trainer.teachers import sampler
from hkdpipe.trainer.teachers.teacher import load_teacher

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
    sigmas = sampler.sigma_schedule(steps)
    with np.load(fixtures / "ddpmpp-grey-8px.npz") as published:
        np.testing.assert_allclose(sigmas, published[f"ts_heun{steps}"], rtol=1e-14)
    assert sigmas.dtype == torch.float64
    assert sigmas[0].item() == pytest.approx(80, rel=1e-14)
    assert sigmas[-2].item() == pytest.approx(0.002, rel=1e-12)
    assert sigmas[-1].item() == 0


@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80.0, 7.0), (0.01, 50.0, 3.0)])
def test_schedule_formula(low: float, high: float, rho: float) -> None:
    """The roots of the levels are equally spaced."""
    sigmas = sampler.sigma_schedule(40, low, high, rho)[:-1].numpy()
    roots = np.array([math.exp(math.log(sigma) / rho) for sigma in sigmas])
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 39, rtol=1e-9)
    np.testing.assert_allclose(sigmas[[0, -1]], [high, low], rtol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("euler", 1)])
def test_order_of_the_solvers_on_the_gaussian_solution(solver: str, order: int) -> None:
    noise = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    errors = []
    for intervals in (32, 64, 128):
        states, sigmas = sampler.sample_trajectory(gaussian_denoiser, noise, intervals + 1, solver=solver)
        exact = gaussian_solution(states[0], sigmas)
        errors.append((states[-2] - exact[-2]).norm().item())
    orders = [math.log2(one / other) for one, other in itertools.pairwise(errors)]
    assert all(abs(found - order) < 0.3 for found in orders), orders
    assert errors[-1] < 20.0**-order * gaussian_solution(noise * 80, sigmas)[-2].norm().item()


def test_euler_is_ddim(relative: Relative) -> None:
    """DDIM's update: the noise that the denoised image leaves, at the level of the next step."""
    noise = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    states, sigmas = sampler.sample_trajectory(gaussian_denoiser, noise, 6, solver="euler")
    x = noise * sigmas[0]
    for now, then in itertools.pairwise(sigmas.tolist()):
        denoised = gaussian_denoiser(x, now, None)
        x = denoised + then * (x - denoised) / now
    assert relative(states[-1], x) < 1e-12


def test_last_step_is_the_denoised_image(relative: Relative) -> None:
    """Euler's step from sigma_min to 0 lands on D(x; sigma_min)."""
    states, sigmas = sampler.sample_trajectory(gaussian_denoiser, torch.randn(2, 1, 2, 2), 5)
    assert relative(states[-1], gaussian_denoiser(states[-2], sigmas[-2].item(), None)) < 1e-12


def test_states_are_float64_and_start_at_the_scaled_noise() -> None:
    asked: list[torch.dtype] = []

    def single(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        asked.append(x.dtype)
        return gaussian_denoiser(x.float(), sigma, labels)

    noise = torch.randn(3, 1, 2, 2)
    states, sigmas = sampler.sample_trajectory(single, noise, 6, sigma_max=10.0)
    assert (states.dtype, sigmas.dtype, states.shape) == (torch.float64, torch.float64, (7, 3, 1, 2, 2))
    assert set(asked) == {torch.float64}
    assert torch.equal(states[0], noise.double() * sigmas[0])
    finer = sampler.sample_trajectory(gaussian_denoiser, noise, 6, sigma_max=10.0)[0]
    assert 0 < (states - finer).abs().max() < 1e-4


@pytest.mark.parametrize("steps", [2, 5, 18])
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_number_of_evaluations(solver: str, steps: int) -> None:
    calls: list[tuple[float, Tensor | None]] = []
    labels = torch.ones(1)

    def counting(x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        calls.append((sigma, labels))
        return x

    sampler.sample_trajectory(counting, torch.zeros(1, 1, 2, 2), steps, labels, solver=solver)
    expected = {"heun": 2 * steps - 1, "euler": steps}[solver]
    assert len(calls) == sampler.evaluations(steps, solver) == expected
    assert all(sigma > 0 and given is labels for sigma, given in calls)


def test_some_steps_can_be_kept() -> None:
    noise = torch.randn(2, 1, 2, 2)
    states, sigmas = sampler.sample_trajectory(gaussian_denoiser, noise, 6)
    some, levels = sampler.sample_trajectory(gaussian_denoiser, noise, 6, keep=[6, 0, 3])
    assert torch.equal(some, states[[0, 3, 6]])
    assert torch.equal(levels, sigmas[[0, 3, 6]])


def test_noise_levels_stay_in_the_range_of_the_network() -> None:
    class Limited:
        arch = SimpleNamespace(sigma_min=0.02, sigma_max=50.0)

        def __call__(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
            assert 0.02 * (1 - 1e-12) < sigma < 50 * (1 + 1e-12)
            return x / 2

    noise = torch.ones(1, 1, 1, 1)
    states, sigmas = sampler.sample_trajectory(Limited(), noise, 5)
    assert torch.equal(sigmas, sampler.sigma_schedule(5, 0.02, 50.0))
    assert states[0].item() == sigmas[0]
    assert sampler.network_range(Limited(), 0.5, 2.0) == (0.5, 2.0)
    sampler.sample_stochastic(Limited(), noise, lambda step: noise, sampler.Churn(0), 5)


def test_churn_raises_the_level_of_a_step() -> None:
    """By a share of it: the amount spread over the steps, at most sqrt(2) - 1, between s_min and s_max."""
    churn = sampler.Churn(3.0, s_min=0.1, s_max=10.0)
    assert churn.raised(2.0, steps=30) == pytest.approx(2.2)
    assert churn.raised(2.0, steps=5) == pytest.approx(2.0 * math.sqrt(2))
    assert [churn.raised(sigma, steps=30) for sigma in (0.09, 11.0)] == [0.09, 11.0]
    assert [churn.raised(sigma, steps=30) for sigma in (0.1, 10.0)] == pytest.approx([0.11, 11.0])


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_without_churn_stochastic_sampling_is_the_end_of_the_trajectory(solver: str) -> None:
    noise = torch.randn(2, 1, 2, 2)
    asked: list[int] = []

    def draw(step: int) -> Tensor:
        asked.append(step)
        return torch.ones_like(noise)

    images = sampler.sample_stochastic(gaussian_denoiser, noise, draw, sampler.Churn(0.0), 6, solver=solver)
    assert torch.equal(images, sampler.sample_trajectory(gaussian_denoiser, noise, 6, solver=solver)[0][-1])
    assert asked == list(range(6))


def test_churned_samples_keep_the_spread_of_the_data() -> None:
    """Each step adds as much noise as it then removes."""
    noise = torch.randn(20_000, 1, 1, 1, dtype=torch.float64)
    images = sampler.sample_stochastic(
        gaussian_denoiser, noise, lambda step: torch.randn_like(noise), sampler.Churn(40.0), steps=200
    )
    assert images.std().item() == pytest.approx(SPREAD, rel=0.03)
    assert abs(np.corrcoef(images.ravel(), noise.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("steps", [20, 40, 80])
def test_inversion_follows_the_gaussian_solution_backwards(steps: int) -> None:
    """From sigma_min on; the error falls with the square of the number of steps."""
    images = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    ends = torch.tensor([0.002, 80.0], dtype=torch.float64)
    expected = gaussian_solution(images, ends)[-1] / 80
    error = (sampler.invert(gaussian_denoiser, images, steps) / expected - 1).abs().max().item()
    assert error < 60 / steps**2
    finer = (sampler.invert(gaussian_denoiser, images, 2 * steps) / expected - 1).abs().max().item()
    assert 3 < error / finer < 6


def test_inversion_and_sampling_undo_each_other() -> None:
    noise = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    states, _ = sampler.sample_trajectory(gaussian_denoiser, noise, 100)
    torch.testing.assert_close(sampler.invert(gaussian_denoiser, states[-1], 100), noise, rtol=0.01, atol=0)


def test_inversion_of_a_digit_leads_back_to_it() -> None:
    """To other noise by a little: directions that the teacher contracts cannot be told from the image."""
    teacher = load_teacher("digits")
    noise = torch.from_numpy(unit_noise(3, "sampling", range(1), (1, 8, 8)))
    image = sampler.sample_trajectory(teacher, noise, 18, keep=[18])[0][0]
    found = sampler.invert(teacher, image, 18)
    again = sampler.sample_trajectory(teacher, found, 18, keep=[18])[0][0]
    assert np.corrcoef(found.flatten(), noise.flatten())[0, 1] > 0.9
    assert (again - image).square().mean().sqrt() < 0.03
    assert image.std() > 0.3
