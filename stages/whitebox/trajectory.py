"""Stored trajectories as a student sees them, and pictures between two of its images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.archive.reader import Archive, open_archive
from hkdpipe.manifests.ground.atomic_files import make_folders
from hkdpipe.manifests.ground.errors import Name, UsageError, WrongValue
from hkdpipe.stages.sampling.students import load_hkd, sampling_labels, sampling_noise, trained_classes
from hkdpipe.stages.shared.picture_grids import save_animation, save_png, strip
from hkdpipe.stages.shared.reporting import Summary, heed
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.whitebox.interpolation import linear, spherical

FRAME_SECONDS = 0.25
Rows = dict[str, NDArray[np.float32]]
"""By their captions, rows of columns of images (rows, columns, C, H, W)."""


@torch.inference_mode()
def trajectory(
    model: Path,
    archive: Path | str,
    out: Path,
    indices: Sequence[int],
    *,
    device: torch.device,
    stop: Callable[[], bool],
) -> Summary:
    """Write trajectory.png, and seen and evolved as .gif and .webp, in `out`, of stored trajectories.

    Shown are the states, the end that the student sees from each of them, and the observables of the start
    evolved to each noise level and decoded. The decoder was trained on the end alone, so the last are marked
    as outside of what it was trained on.
    """
    student = load_hkd(model, device)
    with open_archive(archive) as trajectories:
        _check_fits(student, trajectories, model)
        _check_indices(Name("indices"), indices, len(trajectories))
        sigmas = trajectories.sigmas
        states = trajectories.read(indices, range(len(sigmas))).astype(np.float32)
        labels = one_hot(trajectories.plan.labels(indices), student.arch.label_dim, device)
    x = torch.from_numpy(states).to(device, student.dtype)
    levels = torch.from_numpy(sigmas).to(device, student.dtype)
    seen, evolved = [], []
    first = student.encode(x[:, 0], levels[:1].expand(len(x)), labels)
    for state, level in enumerate(levels[:-1]):
        heed(stop)
        seen.append(student.predict(x[:, state], level.expand(len(x)), labels))
        evolved.append(student.decode(student.evolve(first, levels[:1], level[None]), labels))
    # Of the end nothing is predicted: it is shown itself.
    scale = np.maximum(1, sigmas).astype(np.float32)[:, None, None, None]
    rows: Rows = {
        "states (x / max(1, sigma))": states / scale,
        "end seen from each": _stacked([*seen, x[:, -1]], 1),
        "start evolved (not trained for)": _stacked([*evolved, x[:, -1]], 1),
    }
    columns = [f"{sigma:.2g}" for sigma in sigmas]
    files = [_sheet(out / "trajectory.png", rows, indices, columns)]
    (given, *_), frames = rows.items(), [f"sigma {column}" for column in columns]
    for name, shown in zip(("seen", "evolved"), list(rows.items())[1:], strict=True):
        files += _animate(out, name, dict([given, shown]), frames)
    return Summary(
        title="trajectory",
        rows=(
            ("trajectories", ", ".join(map(str, indices))),
            ("states", str(len(sigmas))),
            ("note", "partially evolved observables are outside of what the decoder was trained on"),
        ),
        files=tuple(files),
        data={"picture": str(files[0]), "indices": list(indices)},
    )


@torch.inference_mode()
def interpolate(
    model: Path,
    out: Path,
    pairs: Sequence[tuple[int, int]],
    seed: int,
    steps: int,
    archive: Path | str | None = None,
    time: float | None = None,
    *,
    device: torch.device,
    stop: Callable[[], bool],
) -> Summary:
    """Write interpolation.png, .gif and .webp in `out`: `steps` images from one to the other of each pair.

    Between the noises of two images, spherically, and between their observables, linearly: of the images
    that `sample` makes of `seed`, at the start; with an archive of its trajectories, at the stored state
    whose noise level is the nearest to `time`. UsageError for a time outside of the trajectory.
    """
    student = load_hkd(model, device)
    numbers = sorted({number for pair in pairs for number in pair})
    for one, other in pairs:
        if one == other:
            raise WrongValue(Name("pairs"), f": got {one} {other}; accepted: two different numbers")
    if archive is None:
        if time is not None:
            only = " only, whose trajectories have states between"
            raise WrongValue(Name("time"), ": accepted with ", Name("archive"), only)
        noise = sampling_noise(student, seed, numbers)
        classes = trained_classes(model, student.arch.label_dim)
        labels = sampling_labels(student, seed, numbers, classes)
        states, sigma = noise * student.sigma_max, student.sigma_max
    else:
        with open_archive(archive) as trajectories:
            _check_fits(student, trajectories, model)
            _check_indices(Name("pairs"), numbers, len(trajectories))
            sigmas = trajectories.sigmas
            state = _nearest_state(sigmas, time)
            read = trajectories.read(numbers, [0, state]).astype(np.float32)
            labels = one_hot(trajectories.plan.labels(numbers), student.arch.label_dim, device)
        start, states = torch.from_numpy(read).to(device, student.dtype).unbind(1)
        noise, sigma = start / float(sigmas[0]), float(sigmas[state])
    place = {number: index for index, number in enumerate(numbers)}
    level, end = (states.new_tensor([value]) for value in (sigma, student.sigma_min))
    observed = student.encode(states, level.expand(len(states)), labels)
    weights = torch.linspace(0, 1, steps, dtype=student.dtype, device=device)
    by_noise, by_latents = [], []
    for one, other in ((place[one], place[other]) for one, other in pairs):
        heed(stop)
        told = None if labels is None else linear(labels[one], labels[other], weights)
        by_noise.append(student.sample(spherical(noise[one], noise[other], weights), told))
        mixed = [linear(tensor[one], tensor[other], weights) for tensor in observed]
        by_latents.append(student.decode(student.evolve(mixed, level, end), told))
    rows = {"noise, spherical": _stacked(by_noise, 0), f"latents, sigma {sigma:.2g}": _stacked(by_latents, 0)}
    columns = [f"{weight:.0%}" for weight in weights.tolist()]
    named = [f"{one} to {other}" for one, other in pairs]
    picture = _sheet(out / "interpolation.png", rows, named, columns)
    files = [picture, *_animate(out, "interpolation", rows, columns)]
    return Summary(
        title="interpolate",
        rows=(
            ("pairs", ", ".join(named)),
            ("between latents at", f"σ = {sigma:.4g}"),
            ("images each", str(steps)),
        ),
        files=tuple(files),
        data={"picture": str(picture), "pairs": [list(pair) for pair in pairs], "sigma": sigma},
    )


def _check_fits(student: HKD, archive: Archive, model: Path) -> None:
    if archive.shape != student.image_shape:
        stored = f"{archive.name} has states of {archive.shape}"
        raise UsageError(f"{model}: makes images of {student.image_shape}, {stored}")
    known, labels = student.arch.label_dim, archive.plan.label_dim
    if known != labels:
        raise UsageError(f"{model}: knows {known} classes, {archive.name} {labels}")


def _check_indices(name: Name, indices: Sequence[int], count: int) -> None:
    wrong = [index for index in indices if not 0 <= index < count]
    if wrong:
        raise WrongValue(name, f": got {wrong[0]}; accepted: trajectories from 0 to {count - 1}")


def _nearest_state(sigmas: NDArray[np.float64], time: float | None) -> int:
    """The state that can be encoded whose noise level is nearest in its logarithm; the start for None."""
    known = sigmas[:-1]
    if time is None:
        return 0
    if not known[-1] <= time <= known[0]:
        accepted = f"noise levels from {known[-1]:g} to {known[0]:g}"
        raise WrongValue(Name("time"), f": got {time:g}; accepted: {accepted}")
    return int(np.abs(np.log(known / time)).argmin())


def _stacked(images: list[Tensor], dim: int) -> NDArray[np.float32]:
    """Rows of columns of images (rows, columns, C, H, W), of each row (dim 0) or of each column (1)."""
    return torch.stack(images, dim).float().cpu().numpy()


def _sheet(path: Path, rows: Rows, names: Sequence[object], columns: Sequence[str]) -> Path:
    """All rows (N, columns, C, H, W) of the first of N names, then those of the next."""
    captions = [f"{name}: {caption}" for name in names for caption in rows]
    make_folders(path.parent)
    save_png(
        path,
        strip([images for each in zip(*rows.values(), strict=True) for images in each], captions, columns),
    )
    return path


def _animate(out: Path, name: str, rows: Rows, columns: Sequence[str]) -> list[Path]:
    """A frame for each column of rows (N, columns, C, H, W), with N images in each of its rows."""
    frames = [
        strip([images[:, number] for images in rows.values()], list(rows), [column])
        for number, column in enumerate(columns)
    ]
    paths = [out / f"{name}.{form}" for form in ("gif", "webp")]
    for path in paths:
        save_animation(path, frames, FRAME_SECONDS)
    return paths
