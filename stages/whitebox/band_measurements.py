"""What the bands of a student do to its images, measured over many of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.whitebox import cumulative_effect as effects
from hkdpipe.trainer.whitebox.bands import Band, band_masks, band_members, masked

PART = 32  # images at a time
LOW = 1 / 8
"""Cycles a pixel up to which a frequency counts as low: a quarter of the highest."""


@dataclass(frozen=True)
class Generated:
    """Some images, and the observables that they come from."""

    labels: Tensor | None
    start: list[Tensor]
    """E(x, sigma_max)."""
    end: list[Tensor]
    """The same, evolved."""
    images: Tensor


def generated(model: HKD, noise: Tensor, labels: Tensor | None) -> Iterator[Generated]:
    """From unit noise (N, C, H, W) and one-hot labels, PART images at a time."""
    start, end = (noise.new_tensor([sigma]) for sigma in (model.sigma_max, model.sigma_min))
    for first in range(0, len(noise), PART):
        own = None if labels is None else labels[first : first + PART]
        x = noise[first : first + PART] * model.sigma_max
        z = model.encode(x, start.expand(len(x)), own)
        evolved = model.evolve(z, start, end)
        yield Generated(own, z, evolved, model.decode(evolved, own))


@dataclass(frozen=True)
class BandEffect:
    """Means over the images measured."""

    band: Band
    level: int | None
    """The only one divided into bands; None: all."""
    share: float
    """Of |z|^2 at the end, within what is divided into bands."""
    alone: float
    """Mean squared error of the images of the band alone, to the whole ones."""
    without: float
    """The same, of the images without the band."""
    power: Tensor
    """(frequencies,): of what an image loses without the band, by spatial frequency."""
    frequency: float
    """The mean of that power, in cycles an image."""
    low: float
    """The share of that power at low frequencies."""


def low_share(power: Tensor, size: int) -> float:
    """Of the power (frequencies,) of images of size x size, that at low frequencies."""
    return float(power[: int(size * LOW) + 1].sum() / power.sum())


@torch.no_grad()
def band_effect(model: HKD, parts: Sequence[Generated], band: Band, level: int | None) -> BandEffect:
    """The effect of one band at the end of the evolution."""
    members = band_members(model, band, level)
    alone, others = (band_masks(model, band, level, without) for without in (False, True))
    kept = divided = error = 0.0
    power = []
    for part in parts:
        for number, inside in members.items():
            energy = part.end[number].double().square().sum(dim=0)
            kept += float(energy[inside].sum())
            divided += float(energy.sum())
        error += float(
            effects.squares(model.decode(masked(part.end, alone), part.labels) - part.images).sum()
        )
        rest = model.decode(masked(part.end, others), part.labels)
        power.append(effects.radial_power(part.images - rest))
    images = torch.cat([part.images for part in parts])
    mean_power = torch.cat(power).mean(dim=0).cpu()
    return BandEffect(
        band=band,
        level=level,
        share=kept / divided,
        alone=error / images.numel(),
        without=float(mean_power.sum()) / images[0].numel(),
        power=mean_power,
        frequency=effects.mean_frequency(mean_power),
        low=low_share(mean_power, images.shape[-1]),
    )


def cumulative_shares(
    model: HKD, parts: Sequence[Generated], bands: Sequence[Band], sigmas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The cumulative effect (bands, times) of each band, as |change|^2 an image, and as a share of the bands'
    sum, which is 0 where no band has an effect."""
    members = [band_members(model, band) for band in bands]
    found = [effects.cumulative_effect(model, part.start, members, sigmas, part.labels) for part in parts]
    effect = torch.cat(found).mean(dim=0).cpu()
    total = effect.sum(dim=0)
    return effect, torch.where(total > 0, effect / total, torch.zeros_like(effect))
