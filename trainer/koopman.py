"""The Koopman operator of HKD (arXiv 2510.12220, section 3.1).

Block diagonal with 2x2 blocks [[alpha, beta], [-beta, alpha]]: on each pair (real, imaginary) of channels the
evolution exp(A dt) scales by e^{alpha dt} and rotates by beta dt. The real parts are the first half of a
tensor's channels, the imaginary parts the second (the paper's adjacent pairs, permuted).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class KoopmanOperator(nn.Module):
    """The generator A of one tensor (C, H, W): C/2 pairs at each location, or shared by all locations."""

    def __init__(self, channels: int, height: int, width: int, sharing: str = "location") -> None:
        """A starts at zero, so the evolution starts as exactly the identity. `channels` must be even."""
        super().__init__()
        if channels % 2:
            raise ValueError(f"channels: {channels} cannot be paired")
        shape = (channels // 2, height, width) if sharing == "location" else (channels // 2, 1, 1)
        self.alpha = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def propagator(self, dt: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of exp((alpha - i beta) dt), dt (N,): (N, C/2, H, W) each."""
        dt = dt[:, None, None, None]
        scale = torch.exp(self.alpha * dt)
        angle = self.beta * dt
        return scale * torch.cos(angle), scale * torch.sin(angle)

    def forward(self, z: Tensor, dt: Tensor) -> Tensor:
        """exp(A dt) z for z (N, C, H, W) and dt (N,) or (1,); in float32 or better whatever the autocast."""
        with torch.autocast(z.device.type, enabled=False):
            cosine, sine = self.propagator(dt.to(self.alpha.dtype))
            real, imaginary = z.to(self.alpha.dtype).chunk(2, dim=1)
            evolved = torch.cat([cosine * real + sine * imaginary, cosine * imaginary - sine * real], dim=1)
        return evolved.to(z.dtype)


def evolution_time(sigma: Tensor, time: str, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """The time coordinate tau of the evolution at noise level sigma; the end of a trajectory has sigma_min's.

    'karras': sigma^(1/rho), 'log': ln sigma, both rescaled to 0 at sigma_min and 1 at sigma_max;
    'sigma-unit': sigma / sigma_max.
    """
    sigma = sigma.clamp(min=sigma_min)
    if time == "sigma-unit":
        return sigma / sigma_max
    if time == "log":
        return (sigma / sigma_min).log() / math.log(sigma_max / sigma_min)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (sigma ** (1 / rho) - low) / (high - low)
