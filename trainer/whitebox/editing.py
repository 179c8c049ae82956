"""Editing with a one-step model: completing what is known of an image, and mixing the observables of two."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.trainer.images.colour import LUMINANCE
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.teachers.sampler import sigma_schedule

Keep = Callable[[Tensor], Tensor]
"""keep(images (N, C, H, W)) -> the same images with what is known of them put in its place."""


def keep_pixels(images: Tensor, painted: Tensor) -> Keep:
    """Known are the pixels of `images` (N, C, H, W) where `painted` (H, W), of truth values, is false."""
    return lambda made: torch.where(painted, made, images)


def keep_luminance(images: Tensor) -> Keep:
    """Known is the luminance of `images` (N, 3, H, W): the first coordinate in an orthogonal basis.

    The chroma are the two others, which need no basis of their own: they stay as they are where the first one
    is replaced.
    """
    weights = images.new_tensor(LUMINANCE)[:, None, None]

    def keep(made: Tensor) -> Tensor:
        missing = ((images - made) * weights).sum(dim=1, keepdim=True)
        return made + missing * weights / weights.square().sum()

    return keep


def editing_levels(model: HKD, steps: int, highest: float, lowest: float) -> list[float]:
    """Noise levels of the steps: the model's start, then from `highest` to `lowest`, evenly in Karras' time.
    Between its start and `highest`, noise drowns what is known."""
    if not model.sigma_min <= lowest <= highest <= model.sigma_max:
        got = f": got {lowest:g} and {highest:g}; accepted: noise levels from {model.sigma_min:g} to "
        raise WrongValue(
            Name("lowest"), " and ", Name("highest"), f"{got}{model.sigma_max:g}, the lower one first"
        )
    return [model.sigma_max, *sigma_schedule(steps - 1, lowest, highest, model.rho)[:-1].tolist()]


def middle_level(model: HKD) -> float:
    """The noise level at the midpoint of Karras' time."""
    return sigma_schedule(3, model.sigma_min, model.sigma_max, model.rho)[1].item()


@torch.inference_mode()
def complete(
    model: HKD,
    keep: Keep,
    noise: Callable[[int], Tensor],
    levels: Sequence[float],
    labels: Tensor | None = None,
) -> Tensor:
    """Images (N, C, H, W): what is known is kept, the rest made up (arXiv 2303.01469, algorithm 4).

    noise(k) is the unit noise (N, C, H, W) of step k. At each of the noise levels, which decrease, noise is
    added to what was found so far, at first to the known part alone, and one step leads to the end.
    """
    images = keep(torch.zeros(model.image_shape, dtype=model.dtype, device=model.device))
    for step, sigma in enumerate(levels):
        x = images + noise(step).to(images) * sigma
        images = keep(model.predict(x, x.new_full(x.shape[:1], sigma), labels))
    return images


@dataclass(frozen=True)
class Observed:
    """Observables of one image, each (1, C, H, W), and the noise level that they are at."""

    z: Sequence[Tensor]
    sigma: float

    def at(self, model: HKD, sigma: float) -> list[Tensor]:
        """Evolved to another noise level, forwards or backwards."""
        start, stop = (self.z[0].new_tensor([level]) for level in (self.sigma, sigma))
        return model.evolve(self.z, start, stop)


@torch.inference_mode()
def inject(
    model: HKD,
    original: Observed,
    reference: Observed,
    sigma: float,
    weights: Sequence[Tensor],
    ratios: Sequence[float],
    labels: Tensor | None = None,
) -> Tensor:
    """The image with the reference mixed into it at noise level `sigma`, by each ratio r: (R, C, H, W).

    z + r w (z_ref - z), both evolved to `sigma`, evolves on to the end and is decoded. `weights` w (C, H, W),
    one for each observable, say what is mixed. By linearity what is mixed in evolves by itself, so that ratio
    0 gives the bits of the model's own image.
    """
    there, here = reference.at(model, sigma), original.at(model, sigma)
    mixed = Observed([w * (other - own) for w, other, own in zip(weights, there, here, strict=True)], sigma)
    change = mixed.at(model, model.sigma_min)
    end = original.at(model, model.sigma_min)
    # One after the other, as another size of the batch would change the last bits.
    return torch.cat(
        [
            model.decode([own + ratio * new for own, new in zip(end, change, strict=True)], labels)
            for ratio in ratios
        ]
    )


def at_every_level(masks: Sequence[Tensor], painted: Tensor) -> list[Tensor]:
    """Masks (C, H, W) of observables times that of an image, `painted` (H, W) in [0, 1], averaged to them."""
    return [
        mask * F.adaptive_avg_pool2d(painted[None].to(mask), (mask.shape[1], mask.shape[2])) for mask in masks
    ]


def content_kept(edited: Tensor, original: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """What edited images (N, C, H, W) keep of the original (C, H, W): of low and of high frequencies, (N,).

    1 - |edited - original|^2 / |reference - original|^2, the squares summed over the spatial frequencies up
    to 1/8 of a cycle a pixel, and over those above: 1 is as the original, 0 as far from it as the reference.
    """

    def power(images: Tensor) -> Tensor:
        difference = torch.fft.fft2((images - original).double(), norm="ortho")
        return difference.abs().square().sum(dim=-3)

    height, width = original.shape[1:]
    rows, columns = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    low = (torch.hypot(rows[:, None], columns) <= 1 / 8).to(original.device)
    changed, distance = power(edited), power(reference)
    kept = [1 - changed[:, part].sum(dim=1) / distance[part].sum() for part in (low, ~low)]
    return kept[0], kept[1]
