"""Samples: one-step ones of an export or a checkpoint, or a teacher's by its own sampling."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import make_folders
from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.stages.sampling.students import trained_classes
from hkdpipe.stages.settings.teacher_sampling import TeacherSampling
from hkdpipe.stages.shared.picture_grids import grid, save_arrays, save_png
from hkdpipe.stages.shared.reporting import Reporter, Summary, heed
from hkdpipe.trainer.exports.programs import OnnxModel
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers import sampler
from hkdpipe.trainer.teachers.teacher import load_teacher

BATCH_SIZE = 256
PICTURED = 256


def sample(
    model: Path,
    out: Path,
    count: int,
    seed: int,
    *,
    steps: int = 1,
    class_number: int | None = None,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write `out`/samples.npz (images: uint8 (N, H, W, C)) and `out`/samples.png (the first 256).

    The model samples in so many `steps`, each a network evaluation; UsageError where it cannot.
    Image i depends on (seed, i) alone, to the rounding that the size of a network batch brings. So does its
    class, of a conditional model: drawn of those it was trained on, unless `class_number` says which; the
    .npz then holds `labels`, int64 (N,), too. UsageError where the model was not trained on that class.
    """
    generator = _generator(model, device, steps)
    shape, label_dim = generator.image_shape, generator.label_dim
    classes = asked_classes(trained_classes(model, label_dim), class_number)

    def images(indices: range, labels: Tensor | None) -> Tensor:
        noise, draw = _noise(seed, indices, shape, device, "sampling-step")
        if isinstance(generator, OnnxModel):
            return generator.sample(noise, labels)
        return generator.sample(noise, labels, steps, draw)

    rows = (("model", str(model)), ("network evaluations each", str(steps)))
    told = partial(one_hot, label_dim=label_dim, device=device)
    return _sample(images, shape, count, seed, classes, told, out, rows, reporter, stop)


def _generator(model: Path, device: torch.device, steps: int) -> Student | OnnxModel:
    """InputError where there is none, or not one that hkdpipe exports; UsageError of another form."""
    if model.suffix == ".pt2":  # torch would unpickle parts of it, so a foreign one could run anything
        accepted = "an export's folder, its model.onnx, or a checkpoint"
        raise WrongValue(Name("model"), f": got '{model}', for torch.export.load; accepted: {accepted}")
    if model.suffix == ".onnx":
        if steps != 1:
            raise WrongValue(Name("steps"), f": got {steps}; accepted: 1, as {model} makes one step")
        return OnnxModel(model, device)
    student = load_model(model, device)
    student.check_steps(steps)
    return student.folded(steps)


def sample_teacher(
    teacher: str,
    out: Path,
    count: int,
    seed: int,
    sampling: TeacherSampling,
    *,
    class_number: int | None = None,
    device: torch.device,
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """The same of a teacher, by its own sampler; by default from the noise that `sample` gives a student."""
    loaded = load_teacher(teacher, device)
    label_dim = loaded.arch.label_dim
    classes = asked_classes(tuple(range(label_dim)), class_number)

    def images(indices: range, labels: Tensor | None) -> Tensor:
        noise, draw = _noise(seed, indices, loaded.image_shape, device, "sampling-churn", sampling.edm_seeds)
        steps, solver = sampling.steps, sampling.solver
        if sampling.churn:
            churn = sampler.Churn(sampling.churn, sampling.s_min, sampling.s_max, sampling.s_noise)
            return sampler.sample_stochastic(loaded, noise, draw, churn, steps, labels, solver=solver)
        return sampler.sample_trajectory(loaded, noise, steps, labels, solver=solver, keep=[steps])[0][0]

    nfe = sampler.evaluations(sampling.steps, sampling.solver)
    rows = (("teacher", teacher), ("network evaluations each", str(nfe)))
    told = partial(one_hot, label_dim=label_dim, device=device)
    return _sample(images, loaded.image_shape, count, seed, classes, told, out, rows, reporter, stop)


def _noise(
    seed: int,
    indices: range,
    shape: tuple[int, ...],
    device: torch.device,
    later: str,
    edm_seeds: bool = False,
) -> tuple[Tensor, Callable[[int], Tensor]]:
    """Unit noise (N, *shape) that images start from, and by a step's number that added for `later`."""
    if edm_seeds:
        generators = sampler.edm_generators(seed, indices, device)
        # EDM draws the start in the network's precision and what follows in the state's.
        start = sampler.following_noise(generators, shape, torch.float32)
        return start, lambda step: sampler.following_noise(generators, shape, torch.float64)

    def of(purpose: str) -> Tensor:
        return torch.from_numpy(rng.unit_noise(seed, purpose, indices, shape)).to(device)

    return of("sampling"), lambda step: of(f"{later}-{step}")


def _sample(
    make: Callable[[range, Tensor | None], Tensor],
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    classes: tuple[int, ...],
    told: Callable[[NDArray[np.int64] | None], Tensor | None],
    out: Path,
    rows: tuple[tuple[str, str], ...],
    reporter: Reporter,
    stop: Callable[[], bool],
) -> Summary:
    """Write what `make` gives for the numbers of images and their one-hot classes, batch by batch."""
    labels = rng.choice(seed, "sampling-labels", range(count), classes) if classes else None
    make_folders(out)
    images = np.empty((count, *shape), dtype=np.float32)
    with reporter.phase("sampling", count, "images") as advance, torch.inference_mode():
        for start in range(0, count, BATCH_SIZE):
            heed(stop)
            indices = range(start, min(start + BATCH_SIZE, count))
            own = None if labels is None else labels[start : indices.stop]
            images[start : indices.stop] = make(indices, told(own)).cpu().numpy()
            advance(indices.stop)
    save_arrays(out / "samples.npz", images, **({} if labels is None else {"labels": labels}))
    save_png(out / "samples.png", grid(images[:PICTURED], math.ceil(math.sqrt(min(count, PICTURED)))))
    drawn = [("classes", _in_words(classes))] if classes else []
    return Summary(
        title="sample",
        rows=(("images", f"{count:,}"), *drawn, ("seed", str(seed)), *rows),
        files=(out / "samples.png", out / "samples.npz"),
        data={"images": str(out / "samples.npz"), "picture": str(out / "samples.png"), "count": count},
    )


def asked_classes(known: tuple[int, ...], class_number: int | None) -> tuple[int, ...]:
    """The one asked for, else all of those known; none of an unconditional network."""
    if class_number is None:
        return known
    if class_number not in known:
        accepted = _in_words(known) if known else "none, as the model knows no classes"
        raise WrongValue(Name("class_number"), f": got {class_number}; accepted: {accepted}")
    return (class_number,)


def _in_words(classes: tuple[int, ...]) -> str:
    first, last = min(classes), max(classes)
    without_gaps = len(classes) == last - first + 1 and first < last
    return f"{first} to {last}" if without_gaps else ", ".join(map(str, sorted(classes)))
