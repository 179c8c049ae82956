"""EDM's noise schedule and its samplers (arXiv 2206.00364, equation 5, algorithms 1 and 2)."""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Denoiser = Callable[..., Tensor]
"""denoiser(x (N, C, H, W), sigma, labels) -> the denoised images, of x's shape."""


@dataclass(frozen=True)
class Churn:
    """The noise that EDM's stochastic sampler adds before a step: S_churn, S_min, S_max, S_noise."""

    amount: float
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def raised(self, sigma: float, steps: int) -> float:
        """The noise level to which a state at `sigma` is raised before its step."""
        if not self.s_min <= sigma <= self.s_max:
            return sigma
        return sigma + min(self.amount / steps, math.sqrt(2) - 1) * sigma


def sigma_schedule(
    steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """The noise levels t_0 = sigma_max .. t_{steps-1} = sigma_min, t_steps = 0: float64 (steps + 1,)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def network_range(teacher: Denoiser, sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """The range within the one that the teacher's network was made for, as EDM's sampler limits it. A
    denoiser without an architecture (`arch`) has no limits."""
    arch = getattr(teacher, "arch", None)
    if arch is None:
        return sigma_min, sigma_max
    return max(sigma_min, arch.sigma_min), min(sigma_max, arch.sigma_max)


def noise_levels(
    teacher: Denoiser, steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """`sigma_schedule` within the teacher's range, each level the nearest that its network knows.

    Only iDDPM networks know a table of levels instead of any (`round_sigma`). The samplers' `schedule` is
    sigma_min, sigma_max and rho here.
    """
    levels = sigma_schedule(steps, *network_range(teacher, sigma_min, sigma_max), rho)
    return torch.cat([_rounded(teacher, levels[:-1]), levels[-1:]])


@torch.inference_mode()
def sample_trajectory(
    teacher: Denoiser,
    noise: Tensor,
    steps: int = 18,
    labels: Tensor | None = None,
    *,
    solver: str = "heun",
    keep: Collection[int] | None = None,
    **schedule: float,
) -> tuple[Tensor, Tensor]:
    """Solve dx/dt = (x - D(x; t)) / t from sigma_max to 0, both limited to the teacher's range.

    `solver` is "heun" (second order, Euler's at the last step) or "euler", which with EDM's sigma(t) = t and
    s(t) = 1 is DDIM. `noise` (N, C, H, W) has unit variance. The state is kept in float64; the teacher
    computes in its own precision. Returns the states (k, N, C, H, W) in float64 and their noise levels (k,):
    after the numbers of steps in `keep`, by default all steps + 1 of them.
    """
    sigmas = noise_levels(teacher, steps, **schedule)
    levels = sigmas.tolist()
    kept = sorted(range(steps + 1) if keep is None else set(keep))
    x = noise.to(torch.float64) * levels[0]
    states = {0: x}
    for step, (now, then) in enumerate(itertools.pairwise(levels), 1):
        x = _step(teacher, x, now, then, labels, solver)
        if step in kept:
            states[step] = x
    return torch.stack([states[step] for step in kept]), sigmas[kept]


@torch.inference_mode()
def sample_stochastic(
    teacher: Denoiser,
    noise: Tensor,
    draw: Callable[[int], Tensor],
    churn: Churn,
    steps: int = 18,
    labels: Tensor | None = None,
    *,
    solver: str = "heun",
    **schedule: float,
) -> Tensor:
    """Images (N, C, H, W) in float64 of EDM's algorithm 2: noise is added before each step within the churn.

    draw(0), draw(1), .. draw(steps - 1) give that noise, of unit variance and of the shape of `noise`; each
    is called once, in this order, whether or not its step adds any. The rest is as in `sample_trajectory`.
    """
    levels = noise_levels(teacher, steps, **schedule).tolist()
    x = noise.to(torch.float64) * levels[0]
    for step, (now, then) in enumerate(itertools.pairwise(levels)):
        raised = _rounded(teacher, torch.tensor(churn.raised(now, steps), dtype=torch.float64)).item()
        x = x + math.sqrt(raised**2 - now**2) * churn.s_noise * draw(step).to(x)
        x = _step(teacher, x, raised, then, labels, solver)
    return x


@torch.inference_mode()
def invert(
    teacher: Denoiser, images: Tensor, steps: int = 18, labels: Tensor | None = None, **schedule: float
) -> Tensor:
    """The unit noise (N, C, H, W), in float64, whose trajectory leads to these images.

    Heun's method along the noise levels of `sample_trajectory` in the other direction, from sigma_min, where
    an image counts as its own state, to sigma_max: 2 (steps - 1) evaluations.
    """
    levels = noise_levels(teacher, steps, **schedule)[:-1].flip(0).tolist()
    x = images.to(torch.float64)
    for now, then in itertools.pairwise(levels):
        x = _step(teacher, x, now, then, labels, "heun")
    return x / levels[-1]


def _rounded(teacher: Denoiser, sigma: Tensor) -> Tensor:
    rounding = getattr(teacher, "round_sigma", None)
    return sigma if rounding is None else rounding(sigma)


def _step(
    teacher: Denoiser, x: Tensor, now: float, then: float, labels: Tensor | None, solver: str
) -> Tensor:
    slope = (x - teacher(x, now, labels).to(torch.float64)) / now
    euler = x + (then - now) * slope
    if solver == "euler" or then == 0:
        return euler
    slope_then = (euler - teacher(euler, then, labels).to(torch.float64)) / then
    return x + (then - now) * (slope + slope_then) / 2


def evaluations(steps: int, solver: str = "heun") -> int:
    """Network evaluations (NFE) of one trajectory."""
    return steps if solver == "euler" else 2 * steps - 1


def edm_generators(seed: int, indices: Iterable[int], device: torch.device) -> list[torch.Generator]:
    """A generator for each image, as EDM's own scripts seed them; on a GPU, that GPU's."""
    return [torch.Generator(device).manual_seed((seed + index) % 2**32) for index in indices]


def following_noise(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """What the generators draw next: unit noise (N, *shape), an image from each."""
    drawn = [torch.randn(shape, generator=one, device=one.device, dtype=dtype) for one in generators]
    return torch.stack(drawn)
