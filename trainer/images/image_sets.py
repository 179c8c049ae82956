"""Image sets to train a teacher on or to compare samples with; each form of them is a file in formats/."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground.discovery import discover
from hkdpipe.manifests.ground.errors import InputError


class Format:
    """What reads the image sets of one form."""

    names: tuple[str, ...] = ()
    """Of image sets that need no file."""
    words: str
    """Where an image set is asked for; `words_of_classes`: where one with classes is."""
    words_of_classes: str

    def holds(self, path: Path) -> bool:
        """Whether it reads what lies there."""
        return False

    def images(self, source: str) -> NDArray[np.float32]:
        """(N, C, H, W) in [-1, 1]; here and below, InputError where it cannot be read."""
        raise NotImplementedError

    def labels(self, source: str) -> NDArray[np.int64] | None:
        """The classes (N,), numbered from 0, of the images; None where the set has none."""
        return None


_FORMATS: list[Format] = []


def register(form: Format) -> None:
    _FORMATS.append(form)


def formats() -> list[Format]:
    """All that are registered."""
    discover("hkdpipe.trainer.images.formats")
    return _FORMATS


def load_images(source: str) -> NDArray[np.float32]:
    """The images (N, C, H, W) in [-1, 1] of a set of any form. InputError where it is of none."""
    return _format_of(source).images(source)


def select_images(source: str) -> NDArray[np.float32]:
    """The images (N, C, H, W) of `load_images`, or SET:NUMBER, one of them, counted from 0: (1, C, H, W)."""
    name, colon, number = source.rpartition(":")
    if not colon or not number.isdecimal() or Path(source).exists():
        return load_images(source)
    images = load_images(name)
    if int(number) >= len(images):
        raise InputError(f"{source}: no such image; accepted: {name}:0 to {name}:{len(images) - 1}")
    return images[int(number)][None]


def load_labels(source: str) -> NDArray[np.int64] | None:
    """The classes (N,), numbered from 0, of the images of `load_images`; None where the set has none."""
    return _format_of(source).labels(source)


def _format_of(source: str) -> Format:
    for one in formats():
        if source in one.names or one.holds(Path(source)):
            return one
    accepted = ", ".join(one.words for one in formats())
    raise InputError(f"{source}: no such image set; accepted: {accepted}")


def scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1], as EDM scales: x / 127.5 - 1."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1)


def class_numbers(source: str, labels: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The labels of `count` images, once it is sure that they are class numbers."""
    if labels.dtype.kind not in "iu" or labels.shape != (count,) or labels.min() < 0:
        raise InputError(
            f"{source}: labels: {labels.dtype} {labels.shape}; accepted: a class number from 0 on for each "
            f"of the {count} images"
        )
    return labels.astype(np.int64)
