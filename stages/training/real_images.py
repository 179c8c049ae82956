"""The real images that some methods learn from beside the archive."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError, Name, WrongValue
from hkdpipe.manifests.ground.rng import permutation
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.trainer.images.image_sets import load_images, load_labels
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.settings.method_registry import methods
from hkdpipe.trainer.settings.training_settings import TrainingSettings


@dataclass(frozen=True)
class RealImages:
    """A set of images in a random order of its own, a permutation in every epoch."""

    images: NDArray[np.float32]
    """(M, C, H, W) in [-1, 1]"""
    labels: NDArray[np.int64] | None
    """(M,); None where they are not known, or the teacher knows no classes."""
    label_dim: int
    seed: int

    @functools.cached_property
    def identity(self) -> str:
        """Digest of images and classes."""
        labels = b"" if self.labels is None else self.labels.tobytes()
        return digest([list(self.images.shape), self.images.tobytes().hex(), labels.hex()])

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Those at positions start .. stop-1 of the endless sequence, and their one-hot classes."""
        epochs, places = np.divmod(np.arange(start, stop), len(self.images))
        orders = {epoch: _order(self.seed, epoch, len(self.images)) for epoch in set(epochs.tolist())}
        rows = np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])
        labels = None if self.labels is None else one_hot(self.labels[rows], self.label_dim)
        return torch.from_numpy(self.images[rows]), labels


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return permutation(seed, "real-images", epoch, count)


def real_images(training: TrainingSettings, shape: tuple[int, int, int], label_dim: int) -> RealImages | None:
    """What `images` names, for a method that learns from real images; None for the others.

    UsageError where the setting and the method do not go together, InputError for images of another shape.
    """
    wanted = "images" in methods()[training.method].learns_from
    if bool(training.images) != wanted:
        accepted = "a set of images, as {} learns from them" if wanted else "'', as {} learns without images"
        got = f": got '{training.images}'; accepted: {accepted.format(training.method)}"
        raise WrongValue(Name("images", TrainingSettings), got)
    if not wanted:
        return None
    images = load_images(training.images)
    if images.shape[1:] != shape:
        raise InputError(f"{training.images}: images of {images.shape[1:]}; the teacher's are of {shape}")
    labels = load_labels(training.images) if label_dim else None
    if labels is not None and labels.max() >= label_dim:
        raise InputError(f"{training.images}: has {labels.max() + 1} classes, the teacher {label_dim}")
    return RealImages(images, labels, label_dim, training.seed)
