"""Feature networks that distributions of images are compared in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hkdpipe.manifests.ground.atomic_files import sha256_file
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.metrics.digits_classifier import DIGITS, load_classifier
from hkdpipe.trainer.metrics.inception import inception_file, load_inception

METRICS = {"digits": "fd_digits", "inception": "fid"}
"""Name of the Frechet distance in the features named; FID is reserved for Inception's."""
DIMENSIONS = {"digits": 64, "inception": 2048}
"""How many features an image has."""


@dataclass(frozen=True)
class FeatureNetwork:
    """What images are seen through."""

    name: str
    sha256: str
    """Of its weights' file."""
    outputs: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Images uint8 (N, C, H, W) to features (N, d) and logits (N, classes)."""
    resize: str
    """What it does to the images' size, in words."""

    @property
    def metric(self) -> str:
        return METRICS[self.name]

    @property
    def dimension(self) -> int:
        """d"""
        return DIMENSIONS[self.name]

    @property
    def judges(self) -> bool:
        """Whether its classes are those of the images, so that its opinion of single images counts."""
        return self.name == "digits"


def load_features(
    name: str, file: str, image_shape: tuple[int, int, int], device: torch.device
) -> FeatureNetwork:
    """The network that `evaluation.features` names; `file` holds Inception's weights.

    Raises UsageError where it does not take such images, InputError for a file that is not its weights.
    """
    if name == "inception":
        if image_shape[0] not in (1, 3):
            raise UsageError(f"evaluation.features: 'inception' takes 1 or 3 channels, not {image_shape[0]}")
        inception = load_inception(inception_file(file), device)
        return FeatureNetwork(
            name, inception.sha256, inception, "to 299 x 299, bilinear as TensorFlow 1's, by torch-fidelity"
        )
    if image_shape not in DIGITS:
        raise UsageError(
            f"evaluation.features: '{name}' takes images of 1x8x8 or 3x8x8, these are {image_shape}"
        )
    classifier = load_classifier("digits-classifier-metric").to(device)

    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.embed(images.float() / 127.5 - 1)
        return features, classifier.logits(features)

    digest = sha256_file(asset("digits-classifier-metric") / "model.safetensors")
    return FeatureNetwork(name, digest, outputs, "none")
