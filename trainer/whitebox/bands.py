"""Spectral bands: the pairs of channels whose alpha lies between two quantiles of their level."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import Name, UsageError, WrongValue
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import KoopmanSettings
from hkdpipe.trainer.whitebox.spectrum import pair_eigenvalues


@dataclass(frozen=True)
class Band:
    """The quantiles of alpha from `low` to `high`, in [0, 1]. UsageError where nothing lies between."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise UsageError(
                f"band: got {self.low:g}:{self.high:g}; accepted: quantiles from 0 to 1, the lower one first"
            )

    def __str__(self) -> str:
        names = [name for name, band in BANDS.items() if band == self]
        return names[0] if names else f"{self.low:g}:{self.high:g}"


BANDS = {
    "smallest": Band(0, 1 / 3),
    "middle": Band(1 / 3, 2 / 3),
    "largest": Band(2 / 3, 1),
    "all": Band(0, 1),
}
"""By the real parts that they hold: those of the smallest, and so on."""
THIRDS = (BANDS["smallest"], BANDS["middle"], BANDS["largest"])


def parse_band(text: str) -> Band:
    """A band by its name, or by its quantiles as in '0.2:0.5'. UsageError for anything else."""
    if text in BANDS:
        return BANDS[text]
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise UsageError(
            f"band: got '{text}'; accepted: {', '.join(BANDS)}, or two quantiles as in 0.2:0.5"
        ) from None
    return Band(low, high)


def operator_levels(model: HKD) -> list[int]:
    """The heights of the tensors that have an operator, finest first. UsageError where there is none."""
    levels = sorted({model.shapes[number][1] for number in pair_eigenvalues(model)}, reverse=True)
    if not levels:
        hierarchy = Name("hierarchy", KoopmanSettings)
        raise WrongValue("model: it has no operator (", hierarchy, " = 'none'), so nothing to take bands of")
    return levels


def band_members(model: HKD, band: Band, level: int | None = None) -> dict[int, Tensor]:
    """Whether a pair's alpha lies in the band: (C, H, W) by the number of the observable, as in HKD.shapes.

    A quantile is a rank among all pairs at all locations of a level's tensors; of equal ones the earlier
    (by tensor, channel, row, column) has the lower rank, so that bands without a common quantile have no
    common pair, and bands that tile [0, 1] have every pair once. Both channels of a pair are members, or
    neither. Observables without an operator are not among them, as no band can divide what has no alpha;
    with `level`, the height of its tensors, neither are those of other levels. UsageError for a level
    without an operator, and for a band so narrow that it has no pair of a level.
    """
    levels = operator_levels(model)
    if level is not None and level not in levels:
        raise UsageError(f"level: got {level}; accepted: {', '.join(map(str, levels))}")
    alphas = {number: alpha for number, (alpha, _) in pair_eigenvalues(model).items()}
    members = {}
    for height in levels if level is None else [level]:
        numbers = [number for number in alphas if model.shapes[number][1] == height]
        order = torch.cat([alphas[number].flatten() for number in numbers]).argsort(stable=True)
        first, last = round(band.low * len(order)), round(band.high * len(order))
        if first == last:
            raise UsageError(
                f"band: got {band}; accepted at level {height}: at least {1 / len(order):.2g} wide"
            )
        inside = torch.zeros(len(order), dtype=torch.bool, device=model.device)
        inside[order[first:last]] = True
        for number, part in zip(numbers, inside.split([alphas[n].numel() for n in numbers]), strict=True):
            members[number] = part.view_as(alphas[number]).repeat(2, 1, 1)
    return members


def band_masks(model: HKD, band: Band, level: int | None = None, without: bool = False) -> list[Tensor]:
    """1 where an observable is kept, else 0, (C, H, W) as in HKD.shapes: the band alone, or all `without` it.

    What `band_members` leaves out (other levels, observables without an operator) is kept whole either way.
    """
    members = band_members(model, band, level)
    masks = []
    for number, shape in enumerate(model.shapes):
        kept = torch.ones(shape, dtype=torch.bool, device=model.device)
        if number in members:
            kept = members[number] ^ without
        masks.append(kept.to(model.dtype))
    return masks


def masked(z: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
    """Observables (N, C, H, W) with what lies outside of the masks set to 0."""
    return [tensor * mask for tensor, mask in zip(z, masks, strict=True)]
