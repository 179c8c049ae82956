"""The Koopman operator of HKD (arXiv 2510.12220, section 3.1).

Block diagonal with 2x2 blocks [[alpha, beta], [-beta, alpha]]: on each pair (real, imaginary) of channels the
evolution exp(A dt) scales by e^{alpha dt} and rotates by beta dt. The real parts are the first half of a
tensor's channels, the imaginary parts the second (the paper's adjacent pairs, permuted).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hkdpipe.trainer.numbers.precision import exact


class KoopmanOperator(nn.Module):
    """The generator A of one tensor (C, H, W): alpha and beta of C/2 pairs of channels.

    `sharing` says how they vary over the locations: 'location': freely; 'channel': not at all; 'low-rank': as
    sums of `rank` maps of the locations, which all pairs share.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        sharing: str = "location",
        rank: int = 1,
        alpha_bound: float = 0.0,
    ) -> None:
        """A starts at zero, so the evolution starts as exactly the identity. `channels` must be even.
        `alpha_bound` above 0 keeps |alpha| below it."""
        super().__init__()
        if channels % 2:
            raise ValueError(f"channels: {channels} cannot be paired")
        pairs = channels // 2
        self.alpha_bound = alpha_bound
        self.low_rank = sharing == "low-rank"
        if self.low_rank:
            maps = cosine_maps(min(rank, height * width), height, width)
            self.alpha_maps, self.beta_maps = nn.Parameter(maps), nn.Parameter(maps.clone())
            shape: tuple[int, ...] = (pairs, len(maps))
        else:
            shape = (pairs, height, width) if sharing == "location" else (pairs, 1, 1)
        self.alpha = nn.Parameter(torch.zeros(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def eigenvalues(self) -> tuple[Tensor, Tensor]:
        """alpha and beta of every pair, (C/2, H, W), or (C/2, 1, 1) where all locations share them."""
        alpha: Tensor = self.alpha
        beta: Tensor = self.beta
        if self.low_rank:
            alpha = torch.einsum("pr,rhw->phw", alpha, self.alpha_maps)
            beta = torch.einsum("pr,rhw->phw", beta, self.beta_maps)
        if self.alpha_bound:
            # Of slope 1 at 0: the bound does not change how fast alpha learns there.
            alpha = self.alpha_bound * torch.tanh(alpha / self.alpha_bound)
        return alpha, beta

    def forward(self, z: Tensor, dt: Tensor) -> Tensor:
        """exp(A dt) z for z (N, C, H, W) and dt (N,) or (1,)."""
        return evolved(z, *propagators([self], dt)[0])


class FixedPropagator(nn.Module):
    """exp(A dt) of an operator for one dt, as constants; stands in the operator's place."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, cosine: Tensor, sine: Tensor) -> None:
        """Its parts as `propagators` gives them for a dt (1,), the only one that this can be asked for."""
        super().__init__()
        self.register_buffer("cosine", cosine.detach().clone())
        self.register_buffer("sine", sine.detach().clone())


def propagators(operators: Sequence[KoopmanOperator], dt: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Real and negative imaginary part of exp((alpha - i beta) dt), dt (N,) or (1,): (N, C/2, H, W) each.

    In float32 or better, whatever the autocast and the precision of the parameters; of one or more operators
    at once, since each of them is small.
    """
    # Trajectories are stored at a few noise levels: where nothing else is in the way (a gradient, waiting for
    # a device, a graph of fixed shapes), each distinct dt has its exponentials and angles computed once.
    if dt.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        dt, rows = torch.unique(dt, return_inverse=True)
    else:
        rows = None
    with torch.autocast(dt.device.type, enabled=False):
        eigenvalues = [operator.eigenvalues() for operator in operators]
        shapes = [alpha.shape for alpha, _ in eigenvalues]
        flat = [torch.cat([part.flatten() for part in parts]) for parts in zip(*eigenvalues, strict=True)]
        alpha, beta = map(exact, flat)
        dt = dt.to(alpha.dtype)[:, None]
        scale, angle = torch.exp(alpha * dt), beta * dt
        cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
        if rows is not None:
            cosine, sine = cosine[rows], sine[rows]
    parts = [part.split([shape.numel() for shape in shapes], dim=1) for part in (cosine, sine)]
    return [
        (real.unflatten(1, shape), imaginary.unflatten(1, shape))
        for real, imaginary, shape in zip(*parts, shapes, strict=True)
    ]


def evolved(z: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """exp(A dt) z from a propagator's parts; computed in their type and returned in that of z."""
    exactly = z.to(cosine.dtype)
    if not torch.compiler.is_compiling():
        turned: Tensor = _Evolution.apply(exactly, cosine, sine)
        return turned.to(z.dtype)
    # A compiler finds the derivative and fuses the passes by itself.
    real, imaginary = exactly.chunk(2, dim=1)
    parts = [
        torch.addcmul(cosine * real, sine, imaginary),
        torch.addcmul(cosine * imaginary, sine, real, value=-1.0),
    ]
    return torch.cat(parts, dim=1).to(z.dtype)


class _Evolution(torch.autograd.Function):
    """Its derivative in z is the evolution with the rotation the other way round, so as cheap as it is; the
    one that autograd finds takes three times as many passes over tensors of z's size."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(z if cosine.requires_grad or sine.requires_grad else None, cosine, sine)
        ctx.shape = z.shape
        return _turned(z, cosine, sine, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        z, cosine, sine = ctx.saved_tensors
        in_z = in_cosine = in_sine = None
        if ctx.needs_input_grad[0]:
            in_z = _turned(gradient, cosine, sine, -1.0).sum_to_size(ctx.shape)
        if z is not None:
            one, other = gradient.chunk(2, dim=1)
            real, imaginary = z.chunk(2, dim=1)
            in_cosine = torch.addcmul(one * real, other, imaginary).sum_to_size(cosine.shape)
            in_sine = torch.addcmul(one * imaginary, other, real, value=-1.0).sum_to_size(sine.shape)
        return in_z, in_cosine, in_sine


def _turned(z: Tensor, cosine: Tensor, sine: Tensor, way: float) -> Tensor:
    """(cosine - way i sine) z, written where it belongs without a copy."""
    real, imaginary = z.chunk(2, dim=1)
    rows = max(len(z), len(cosine))
    turned = torch.empty_like(z) if rows == len(z) else z.new_empty((rows, *z.shape[1:]))
    one, other = turned.chunk(2, dim=1)
    torch.mul(cosine, real, out=one).addcmul_(sine, imaginary, value=way)
    torch.mul(cosine, imaginary, out=other).addcmul_(sine, real, value=-way)
    return turned


def cosine_maps(count: int, height: int, width: int) -> Tensor:
    """The `count` smoothest cosines cos(pi u (y + 1/2) / H) cos(pi v (x + 1/2) / W): (count, H, W). The first
    one is constant. They are orthogonal."""
    frequencies = sorted(itertools.product(range(height), range(width)), key=lambda uv: math.hypot(*uv))

    def wave(frequency: int, size: int) -> Tensor:
        return torch.cos(math.pi * frequency * (torch.arange(size) + 0.5) / size)

    return torch.stack([torch.outer(wave(u, height), wave(v, width)) for u, v in frequencies[:count]])


def evolution_time(
    sigma: Tensor, time: str, sigma_min: float, sigma_max: float, rho: float, sigma_data: float
) -> Tensor:
    """The time coordinate tau of the evolution at noise level sigma; the end of a trajectory has sigma_min's.

    'karras': sigma^(1/rho), 'log': ln sigma, both rescaled to 0 at sigma_min and 1 at sigma_max;
    'sigma-unit': sigma / sigma_max; 'angle': 2/pi arctan(sigma / sigma_data), 0 of an image and 1 of noise.
    """
    sigma = sigma.clamp(min=sigma_min)
    if time == "angle":
        return torch.atan(sigma / sigma_data) * (2 / math.pi)
    if time == "sigma-unit":
        return sigma / sigma_max
    if time == "log":
        return (sigma / sigma_min).log() / math.log(sigma_max / sigma_min)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (sigma ** (1 / rho) - low) / (high - low)
