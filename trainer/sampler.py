"""EDM's noise schedule and its deterministic Heun sampler (arXiv 2206.00364, equation 5 and algorithm 1)."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[..., Tensor]
"""denoiser(x (N, C, H, W), sigma, labels) -> the denoised images, of x's shape."""


def sigma_schedule(
    steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """The noise levels t_0 = sigma_max .. t_{steps-1} = sigma_min, t_steps = 0: float64 (steps + 1,)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


@torch.inference_mode()
def sample_trajectory(
    teacher: Denoiser,
    noise: Tensor,
    steps: int = 18,
    labels: Tensor | None = None,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> tuple[Tensor, Tensor]:
    """Solve dx/dt = (x - D(x; t)) / t from sigma_max to 0 with Heun's method, Euler at the last step.

    `noise` (N, C, H, W) has unit variance. The state is kept in float64; the teacher computes in its own
    precision. Returns the states (steps + 1, N, C, H, W) in float64 and their noise levels (steps + 1,).
    """
    sigmas = sigma_schedule(steps, sigma_min, sigma_max, rho)
    levels = sigmas.tolist()
    x = noise.to(torch.float64) * levels[0]
    states = [x]
    for now, then in itertools.pairwise(levels):
        slope = (x - teacher(x, now, labels).to(torch.float64)) / now
        euler = x + (then - now) * slope
        if then > 0:
            slope_then = (euler - teacher(euler, then, labels).to(torch.float64)) / then
            x = x + (then - now) * (slope + slope_then) / 2
        else:
            x = euler
        states.append(x)
    return torch.stack(states), sigmas


def evaluations(steps: int) -> int:
    """Network evaluations (NFE) of one trajectory."""
    return 2 * steps - 1
