"""What a spectral band does to the images: over the time of the evolution, and by their spatial frequency."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hkdpipe.trainer.methods.hkd.hkd import HKD


@torch.no_grad()
def cumulative_effect(
    model: HKD,
    z: Sequence[Tensor],
    bands: Sequence[Mapping[int, Tensor]],
    sigmas: Sequence[float],
    labels: Tensor | None = None,
) -> Tensor:
    """|D(z, the band evolved to sigma) - D(z, the band left at the start)|^2 by image: (N, bands, times).

    `z` are observables at the start, sigma_max; all but the band is evolved to the end in both. A band is
    given by its members, as by `bands.band_members`. The paper's cumulative effect, of which it gives no
    formula, is here the share of a band in the sum over the bands.
    """
    start, end = (z[0].new_tensor([sigma]) for sigma in (model.sigma_max, model.sigma_min))
    reached = model.evolve(z, start, end)

    def decoded(members: Mapping[int, Tensor], state: Sequence[Tensor]) -> Tensor:
        """The images where the band is in that state and the rest is at the end."""
        mixed = [
            torch.where(members[number], state[number], tensor) if number in members else tensor
            for number, tensor in enumerate(reached)
        ]
        return model.decode(mixed, labels)

    left = [decoded(members, z) for members in bands]
    effects = []
    for sigma in sigmas:
        state = model.evolve(z, start, z[0].new_tensor([sigma]))
        changes = [decoded(members, state) - images for members, images in zip(bands, left, strict=True)]
        effects.append(torch.stack([squares(change) for change in changes], dim=1))
    return torch.stack(effects, dim=2)


def squares(images: Tensor) -> Tensor:
    """|x|^2 of each image (N, C, H, W), in double precision."""
    return images.double().square().sum(dim=(1, 2, 3))


def radial_power(images: Tensor) -> Tensor:
    """The power of square images (N, C, H, H) by spatial frequency: (N, frequencies), in double precision.

    Entry k is of k cycles an image, |FFT|^2 summed over the channels and over the ring of frequencies that
    are nearest to k; normalised so that all of them together are |x|^2.
    """
    size = images.shape[-1]
    cycles = torch.fft.fftfreq(size, 1 / size, device=images.device)
    ring = torch.hypot(cycles[:, None], cycles[None, :]).round().long().flatten()
    power = torch.fft.fft2(images.double(), norm="ortho").abs().square().sum(dim=1).flatten(1)
    by_frequency = torch.zeros(len(images), int(ring.max()) + 1, dtype=torch.float64, device=images.device)
    return by_frequency.index_add_(1, ring, power)


def mean_frequency(power: Tensor) -> float:
    """The mean over power (frequencies,), in cycles an image."""
    frequencies = torch.arange(len(power), dtype=power.dtype, device=power.device)
    return float((frequencies * power).sum() / power.sum())
