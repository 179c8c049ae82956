"""Frequency-aware edits: a spectral band of a reference mixed into an image, by several ratios."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hkdpipe.manifests.ground.atomic_files import make_folders
from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.stages.sampling.students import load_hkd
from hkdpipe.stages.shared.picture_grids import save_arrays, save_png, strip
from hkdpipe.stages.shared.reporting import Reporter, Summary, heed
from hkdpipe.stages.shared.tables import write_table
from hkdpipe.stages.whitebox.masks import read_mask
from hkdpipe.stages.whitebox.subjects import Subjects, read_subjects
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.teachers.sampler import invert
from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher
from hkdpipe.trainer.whitebox.bands import BANDS, Band, band_masks
from hkdpipe.trainer.whitebox.editing import Observed, at_every_level, content_kept, inject, middle_level

SIDE = 72  # pixels an image is enlarged to, at least
INVERSION_STEPS = 40
FORMS = ("{}", "{:.0%}", "{:.3f}", "{:.3f}", "{:.0%}", "{:.0%}")
"""Of a row: band, ratio, change inside and outside of the mask, low and high frequencies kept."""


@dataclass(frozen=True)
class Edit:
    """What is mixed into an image."""

    ratios: Sequence[float]
    band: Band
    mask: str
    time: float | None
    """The noise level at which it is mixed in; None: the midpoint of Karras' time."""
    all_bands: bool
    """Whether all bands are mixed in, too, for comparison."""


def edit(
    model: Path,
    image: str,
    reference: str,
    out: Path,
    wanted: Edit,
    *,
    teacher: str | None = None,
    class_number: int | None = None,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Mix a band of the reference's observables into the image's; write `out`/edit.png, .csv and .npz.

    Both are read by `read_subjects`. A sample's observables are those of its noise; a picture's those of its
    noise by the teacher's ODE, if a teacher is given, else E(picture, sigma_min), evolved backwards.
    The .npz holds `images`, uint8 (rows of the .csv, H, W, C).
    """
    student = load_hkd(model, device)
    time = middle_level(student) if wanted.time is None else wanted.time
    if not student.sigma_min <= time <= student.sigma_max:
        accepted = f"noise levels of the trajectory, from {student.sigma_min:g} to {student.sigma_max:g}"
        raise WrongValue(Name("time"), f": got {time:g}; accepted: {accepted}")
    painted = read_mask(wanted.mask, *student.image_shape[1:]).to(device)
    inverter = None if teacher is None else _fitting(teacher, student, device)
    given = [
        _one(read_subjects(source, name, student, model, class_number), name, source)
        for source, name in ((image, Name("image")), (reference, Name("reference")))
    ]
    bands = {str(wanted.band): wanted.band}
    if wanted.all_bands:
        bands[str(BANDS["all"])] = BANDS["all"]
    with reporter.phase("editing", 2 + len(bands), "parts") as advance, torch.inference_mode():
        seen = []
        for one in given:
            heed(stop)
            seen.append(_observed(student, one, inverter))
            advance(len(seen))
        original, other = seen
        ends = [student.decode(one.at(student, student.sigma_min), given[0].labels) for one in seen]
        if torch.equal(*ends):
            raise WrongValue(Name("reference"), f": got {reference}, the image itself; accepted: another")
        edited = {}
        for name, band in bands.items():
            heed(stop)
            weights = at_every_level(band_masks(student, band), painted)
            edited[name] = inject(student, original, other, time, weights, wanted.ratios, given[0].labels)
            advance(2 + len(edited))
    rows: list[dict[str, Any]] = [
        {"band": name, "ratio": ratio, **change}
        for name, images in edited.items()
        for ratio, change in zip(wanted.ratios, _changes(images, ends, painted), strict=True)
    ]
    make_folders(out)
    files = tuple(out / f"edit.{suffix}" for suffix in ("png", "csv", "npz"))
    strips = [torch.cat([ends[0], images, ends[1]]).cpu().numpy() for images in edited.values()]
    columns = ["original", *(f"{ratio:.0%}" for ratio in wanted.ratios), "reference"]
    save_png(files[0], strip(strips, [f"band: {name}" for name in edited], columns, SIDE))
    write_table(files[1], rows)
    save_arrays(files[2], torch.cat(list(edited.values())).cpu().numpy())
    reconstructed = {
        option: (end - one.images).square().mean().sqrt().item()
        for option, one, end in zip(("image", "reference"), given, ends, strict=True)
        if one.noise is None
    }
    return Summary(
        title=f"edit of {image} by {reference} at sigma {time:.3g}, mask {wanted.mask}",
        header=("band", "ratio", "change inside", "outside", "low frequencies kept", "high kept"),
        rows=tuple(
            tuple(form.format(cell) for form, cell in zip(FORMS, row.values(), strict=True)) for row in rows
        ),
        files=files,
        data={
            "picture": str(files[0]),
            "images": str(files[2]),
            "time": time,
            "edits": rows,
            "reconstruction_error": reconstructed,
        },
    )


def _one(subjects: Subjects, name: Name, source: str) -> Subjects:
    if len(subjects.images) > 1:
        held = f"holds {len(subjects.images)} pictures; accepted: one, as {source}:0"
        raise WrongValue(name, f" {source}: {held}")
    return subjects


def _fitting(teacher: str, student: HKD, device: torch.device) -> Teacher:
    loaded = load_teacher(teacher, device)
    kinds = ((of.image_shape, of.arch.label_dim) for of in (loaded, student))
    theirs, own = (f"{'x'.join(map(str, shape))} and {classes}" for shape, classes in kinds)
    if theirs != own:
        accepted = f"of images {theirs} classes; accepted: {own}, as the model's"
        raise WrongValue(Name("teacher"), f" {teacher}: {accepted}")
    return loaded


def _observed(student: HKD, one: Subjects, teacher: Teacher | None) -> Observed:
    noise = one.noise
    if noise is None and teacher is not None:
        noise = invert(teacher, one.images, INVERSION_STEPS, one.labels, sigma_max=student.sigma_max)
    if noise is None:
        x, sigma = one.images, student.sigma_min
    else:
        x, sigma = noise.to(student.dtype) * student.sigma_max, student.sigma_max
    return Observed(student.encode(x, x.new_tensor([sigma]), one.labels), sigma)


def _changes(images: Tensor, ends: Sequence[Tensor], painted: Tensor) -> list[dict[str, float]]:
    """What edited images (R, C, H, W) differ by, inside and outside of the mask (RMS), and what they keep."""
    original, reference = ends
    squared = (images - original).square().mean(dim=1)
    low, high = content_kept(images, original[0], reference[0])
    sums = [(squared * part).sum(dim=(1, 2)) / part.sum() for part in (painted, 1 - painted)]
    inside, outside = (mean.nan_to_num().sqrt() for mean in sums)
    return [
        {"change_inside": a, "change_outside": b, "low_kept": c, "high_kept": d}
        for a, b, c, d in zip(*(part.tolist() for part in (inside, outside, low, high)), strict=True)
    ]
