"""The images that inpainting, colorization and edits are given: pictures, or samples by their seeds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError, Name, WrongValue
from hkdpipe.stages.sampling.sample import asked_classes
from hkdpipe.stages.sampling.students import sampling_labels, sampling_noise, trained_classes
from hkdpipe.trainer.images.image_sets import select_images
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.methods.hkd.hkd import HKD


@dataclass(frozen=True)
class Subjects:
    """Images and what the model is told of them, on its device."""

    names: Sequence[str]
    images: Tensor
    """(N, C, H, W); C is 1 or the model's, where grey pictures are welcome."""
    labels: Tensor | None
    """One-hot (N, label_dim), of a conditional model."""
    noise: Tensor | None = None
    """Unit noise (N, C, H, W) that the model makes the images of; None of pictures."""


def read_subjects(
    source: str, name: Name, student: HKD, model: Path, class_number: int | None, grey: bool = False
) -> Subjects:
    """SEED[:NUMBER], a sample of that seed; or pictures, as `select_images` reads them.

    A conditional model is told `class_number`; without it, of its own samples, the class that they are drawn
    with. `grey`: pictures of one channel serve a colour model, too. Raises WrongValue, naming `name`, where
    a class is missing or unknown, and InputError where the pictures do not have the model's shape.
    """
    label_dim = student.arch.label_dim
    classes = asked_classes(trained_classes(model, label_dim), class_number)
    if seeded := re.fullmatch(r"(\d+)(?::(\d+))?", source):
        seed, index = int(seeded[1]), int(seeded[2] or 0)
        noise = sampling_noise(student, seed, [index])
        labels = sampling_labels(student, seed, [index], classes)
        with torch.inference_mode():
            return Subjects([source], student.sample(noise, labels), labels, noise)
    images = select_images(source)
    channels, height, width = student.image_shape
    if images.shape[2:] != (height, width) or images.shape[1] not in ({1, channels} if grey else {channels}):
        accepted = f"{_kind(student.image_shape)}{', or grey' if grey else ''}, as the model's images are"
        raise InputError(name, f" {source}: {_kind(images.shape[1:])}; accepted: {accepted}")
    if label_dim and class_number is None:
        missing = (Name("class_number"), ": missing; the model is told classes, and ", name)
        raise WrongValue(*missing, f" {source} does not say its own")
    labels = one_hot(np.repeat(classes, len(images)), label_dim, student.device) if label_dim else None
    names = [source] if len(images) == 1 else [f"{source}:{number}" for number in range(len(images))]
    return Subjects(names, torch.from_numpy(images).to(student.device, student.dtype), labels)


def _kind(shape: Sequence[int]) -> str:
    channels, height, width = shape
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    return f"{colour} pictures of {height}x{width}"
