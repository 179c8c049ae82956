"""The white box for notebooks: one call each, on a model in memory, giving tensors and a figure.

    from hkdpipe.stages.sampling.students import load_hkd, sampling_noise
    from hkdpipe.stages.whitebox.notebook import edit, inpaint, mask_bands, spectrum

    model = load_hkd(Path("runs/digits/export"), torch.device("cpu"))
    spectra, figure = spectrum(model)

Images are in [-1, 1], noise has unit variance, classes are one-hot, masks are names (`masks.MASKS`) or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hkdpipe.stages.settings.completion_settings import CompletionSettings
from hkdpipe.stages.shared.picture_grids import strip
from hkdpipe.stages.shared.reporting import Silent
from hkdpipe.stages.whitebox.completions import Task
from hkdpipe.stages.whitebox.edit import SIDE
from hkdpipe.stages.whitebox.masks import read_mask
from hkdpipe.stages.whitebox.plots import check_plots, picture_figure, spectrum_figure
from hkdpipe.stages.whitebox.subjects import Subjects
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.whitebox.bands import BANDS, THIRDS, Band, band_masks, masked
from hkdpipe.trainer.whitebox.editing import Observed, at_every_level, inject, keep_pixels, middle_level
from hkdpipe.trainer.whitebox.spectrum import LevelSpectrum, level_spectra, whole_evolution

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def spectrum(model: HKD) -> tuple[dict[int, LevelSpectrum], Figure]:
    """The eigenvalues of each level, by the height of its tensors."""
    check_plots()
    spectra = level_spectra(model)
    return spectra, spectrum_figure(spectra, whole_evolution(model))


@torch.inference_mode()
def mask_bands(
    model: HKD,
    noise: Tensor,
    bands: Sequence[Band] = THIRDS,
    level: int | None = None,
    labels: Tensor | None = None,
) -> tuple[dict[str, Tensor], Figure]:
    """Images (N, C, H, W) of the noise by the band that they are decoded from, and "whole" ones.

    With `level`, the height of its tensors, the others' are kept whole.
    """
    check_plots()
    sigma = noise.new_full(noise.shape[:1], model.sigma_max)
    z = model.observe(noise * model.sigma_max, sigma, labels)
    images = {"whole": model.decode(z, labels)}
    for band in bands:
        images[str(band)] = model.decode(masked(z, band_masks(model, band, level)), labels)
    return images, _figure(list(images.values()), list(images), [str(number) for number in range(len(noise))])


@torch.inference_mode()
def edit(
    model: HKD,
    noise: Tensor,
    reference: Tensor,
    ratios: Sequence[float] = (0.1, 0.2, 0.5, 0.8, 0.9),
    band: Band = BANDS["smallest"],
    mask: str = "lower-left",
    time: float | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Figure]:
    """The image of a noise (1, C, H, W) with a band of another's mixed into it, by ratio: (R, C, H, W).

    It is mixed in at noise level `time`; None: the midpoint of Karras' time.
    """
    check_plots()
    time = middle_level(model) if time is None else time
    start = noise.new_tensor([model.sigma_max])
    own, other = (
        Observed(model.encode(unit * model.sigma_max, start, labels), model.sigma_max)
        for unit in (noise, reference)
    )
    painted = read_mask(mask, *model.image_shape[1:]).to(model.device)
    weights = at_every_level(band_masks(model, band), painted)
    edited = inject(model, own, other, time, weights, ratios, labels)
    shown = torch.cat([model.sample(noise, labels), edited, model.sample(reference, labels)])
    columns = ["original", *(f"{ratio:.0%}" for ratio in ratios), "reference"]
    return edited, _figure([shown], [f"{band} of the reference, {mask}"], columns)


@torch.inference_mode()
def inpaint(
    model: HKD,
    images: Tensor,
    mask: str = "lower-half",
    settings: CompletionSettings | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Figure]:
    """Completions (count, N, C, H, W) of images (N, C, H, W) where the mask hides them."""
    check_plots()
    settings = settings or CompletionSettings()
    painted = (read_mask(mask, *model.image_shape[1:]) >= 0.5).to(model.device)
    numbers = [str(number) for number in range(len(images))]
    subjects = Subjects(numbers, images, labels)
    task = Task(model, subjects, lambda some: keep_pixels(some, painted), "inpainting")
    completed = task.completions(settings, Silent(), lambda: False).unbind(dim=1)
    rows = [images, keep_pixels(images, painted)(torch.zeros_like(images)), *completed]
    captions = ["given", "known", *(f"completion {number}" for number in range(settings.count))]
    return torch.stack(completed), _figure(rows, captions, numbers)


def _figure(rows: Sequence[Tensor], captions: Sequence[str], columns: Sequence[str]) -> Figure:
    return picture_figure(strip([row.float().cpu().numpy() for row in rows], captions, columns, SIDE))
