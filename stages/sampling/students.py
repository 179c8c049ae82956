"""Students as the white-box commands take them: with operators, their noise and their classes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import read_json, read_json_if_there
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.students.loading import load_model


def load_hkd(model: Path, device: torch.device) -> HKD:
    """An export or a checkpoint of hkd. UsageError where it is another method's."""
    student = load_model(model, device)
    if not isinstance(student, HKD):
        method = f"method '{student.method.name}'"
        raise UsageError(f"{model}: of {method}, which has no operators; accepted: 'hkd'")
    return student


def trained_classes(model: Path, label_dim: int) -> tuple[int, ...]:
    """The classes that an export, also beside its .onnx, or a checkpoint says it was trained on; else all of
    the network's, if it knows any."""
    if not label_dim:
        return ()
    folder = model if model.is_dir() else model.parent
    path = folder / "config.json"
    if path.is_file():
        about: Any = read_json(path).get("about")
    else:
        path = folder / "state.json"
        about = read_json_if_there(path)
    classes = about.get("classes", []) if isinstance(about, dict) else []
    if not isinstance(classes, list) or not all(type(c) is int and 0 <= c < label_dim for c in classes):
        raise InputError(f"{path}: classes: got {classes!r}; accepted: numbers from 0 to {label_dim - 1}")
    return tuple(classes) or tuple(range(label_dim))


def sampling_noise(student: HKD, seed: int, indices: range | list[int]) -> Tensor:
    """The unit noise (N, C, H, W) of the samples of a seed with those numbers, on the student's device."""
    noise = rng.unit_noise(seed, "sampling", indices, student.image_shape)
    return torch.from_numpy(noise).to(student.device, student.dtype)


def sampling_labels(
    student: HKD, seed: int, indices: range | list[int], classes: tuple[int, ...]
) -> Tensor | None:
    """The one-hot classes (N, label_dim) of those images, drawn of `classes`; None without classes."""
    drawn = rng.choice(seed, "sampling-labels", indices, classes) if classes else None
    return one_hot(drawn, student.arch.label_dim, student.device)
