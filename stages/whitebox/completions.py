"""Completing pictures of which a part is known: inpainting and colorization."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import make_folders
from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.stages.sampling.students import load_hkd
from hkdpipe.stages.settings.completion_settings import CompletionSettings
from hkdpipe.stages.shared.picture_grids import save_arrays, save_png, strip, to_uint8
from hkdpipe.stages.shared.reporting import Reporter, Summary, heed
from hkdpipe.stages.whitebox.masks import read_mask
from hkdpipe.stages.whitebox.subjects import Subjects, read_subjects
from hkdpipe.trainer.images.colour import chroma, into_gamut, luminance
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.whitebox.editing import Keep, complete, editing_levels, keep_luminance, keep_pixels

BATCH_SIZE = 256
PICTURED = (12, 10)  # pictures and completions of each, at most
PER_PICTURE = 2**32  # more completions than anyone asks for: what is drawn does not depend on their number


@dataclass(frozen=True)
class Task:
    """Which part of which pictures is known to which model."""

    student: HKD
    subjects: Subjects
    known: Callable[[Tensor], Keep]
    """Of some of the pictures (B, C, H, W)."""
    purpose: str
    """Of the noise."""

    def completions(
        self, settings: CompletionSettings, reporter: Reporter, stop: Callable[[], bool]
    ) -> Tensor:
        """`settings.count` completions of each picture, (N, count, C, H, W), on the CPU."""
        levels = editing_levels(self.student, settings.steps, settings.highest, settings.lowest)
        total = len(self.subjects.images) * settings.count
        parts = []
        with reporter.phase(self.purpose, total, "images") as advance:
            for start in range(0, total, BATCH_SIZE):
                heed(stop)
                numbers = np.arange(start, min(start + BATCH_SIZE, total))
                parts.append(self._batch(numbers, settings, levels))
                advance(int(numbers[-1]) + 1)
        return torch.cat(parts).unflatten(0, (-1, settings.count))

    def _batch(self, numbers: NDArray[np.int64], settings: CompletionSettings, levels: list[float]) -> Tensor:
        """Those of these numbers, in the order of the pictures."""
        pictures, completions = np.divmod(numbers, settings.count)
        indices = pictures * PER_PICTURE + completions
        labels = None if self.subjects.labels is None else self.subjects.labels[pictures]

        def noise(step: int) -> Tensor:
            drawn = rng.unit_noise(settings.seed, f"{self.purpose}-{step}", indices, self.student.image_shape)
            return torch.from_numpy(drawn).to(self.student.device)

        keep = self.known(self.subjects.images[pictures])
        return complete(self.student, keep, noise, levels, labels).cpu()


def inpaint(
    model: Path,
    image: str,
    mask: str,
    out: Path,
    settings: CompletionSettings,
    *,
    class_number: int | None = None,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Make up what a mask hides of pictures; write `out`/inpainted.png and .npz (uint8 (N * count, H, W, C)).

    `image` is read by `read_subjects`, `mask` by `read_mask`; pixels from 0.5 on are painted, the others
    kept exactly. Completion c of picture p depends on (seed, p, c) alone, to the rounding that the size of a
    network batch brings.
    """
    student = load_hkd(model, device)
    subjects = read_subjects(image, Name("image"), student, model, class_number)
    painted = (read_mask(mask, *student.image_shape[1:]) >= 0.5).to(device)
    task = Task(student, subjects, lambda images: keep_pixels(images, painted), "inpainting")
    made = task.completions(settings, reporter, stop)
    rows = [("mask", f"{mask}, {painted.float().mean():.0%} painted")]
    data = {"painted": painted.float().mean().item()}
    if settings.count > 1 and painted.any():
        variety = made[..., painted.cpu()].var(dim=1).mean().sqrt().item()
        rows.append(("deviation between completions, painted pixels", f"{variety:.3f}"))
        data["variety"] = variety
    known = keep_pixels(subjects.images, painted)(torch.zeros_like(subjects.images))
    return _written(out / "inpainted", task, known, made, rows, data)


def colorize(
    model: Path,
    image: str,
    out: Path,
    settings: CompletionSettings,
    *,
    class_number: int | None = None,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Make up the colours of pictures; write `out`/colorized.png and .npz (uint8 (N * count, H, W, C)).

    `image` is read by `read_subjects`, of one channel or three, of which the luminance alone is used; it is
    kept to rounding. UsageError for a model of grey images.
    """
    student = load_hkd(model, device)
    if student.image_shape[0] != 3:
        raise WrongValue(Name("model"), f" {model}: makes grey images; accepted: a model of colour images")
    subjects = read_subjects(image, Name("image"), student, model, class_number, grey=True)
    subjects = replace(subjects, images=subjects.images.expand(-1, 3, -1, -1))
    task = Task(student, subjects, keep_luminance, "colorization")
    made = into_gamut(task.completions(settings, reporter, stop).flatten(0, 1))
    wanted = luminance(subjects.images.cpu()).repeat_interleave(settings.count, dim=0)
    error = (luminance(torch.from_numpy(to_uint8(made.numpy())).float()) - (wanted * 127.5 + 127.5)).abs()
    colours = chroma(made).mean(dim=(2, 3)).unflatten(0, (-1, settings.count))
    data = {
        "luminance_error": error.max().item(),
        "chroma": chroma(made).square().sum(dim=1).mean().sqrt().item(),
    }
    rows = [
        ("luminance kept to", f"{data['luminance_error']:.2f} of 255 levels"),
        ("colour (RMS distance from grey)", f"{data['chroma']:.3f}"),
    ]
    if settings.count > 1:
        hues = F.normalize(colours, dim=2)
        data["hue_spread"] = (1 - hues.mean(dim=1).norm(dim=1)).mean().item()
        rows.append(("spread of a picture's hues (0: one hue, 1: all)", f"{data['hue_spread']:.2f}"))
    known = luminance(subjects.images).expand_as(subjects.images)
    made = made.unflatten(0, (-1, settings.count))
    return _written(out / "colorized", task, known, made, rows, data)


def _written(
    place: Path, task: Task, known: Tensor, made: Tensor, rows: list[tuple[str, str]], data: dict[str, float]
) -> Summary:
    """Write `place`.png, a row for each picture, and `place`.npz."""
    make_folders(place.parent)
    shown, arrays = (place.with_suffix(suffix) for suffix in (".png", ".npz"))
    save_arrays(arrays, made.flatten(0, 1).numpy())
    pictures, completions = (min(size, most) for size, most in zip(made.shape[:2], PICTURED, strict=True))
    sheet = [
        torch.cat([task.subjects.images[row, None].cpu(), known[row, None].cpu(), made[row, :completions]])
        for row in range(pictures)
    ]
    columns = ["given", "known", *map(str, range(completions))]
    picture = strip([images.numpy() for images in sheet], task.subjects.names[:pictures], columns)
    save_png(shown, picture)
    return Summary(
        title=place.name,
        rows=(("pictures", f"{len(made):,}, {made.shape[1]:,} completions each"), *rows),
        files=(shown, arrays),
        data={"images": str(arrays), "picture": str(shown), "first_picture": task.subjects.names[0], **data},
    )
