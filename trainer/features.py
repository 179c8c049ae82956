"""Feature networks for the Frechet distance, by the name of the metric that uses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hkdpipe.manifests.errors import UsageError
from hkdpipe.manifests.files import sha256_file
from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.classifier import load_classifier


@dataclass(frozen=True)
class FeatureNetwork:
    """What a Frechet distance is measured in."""

    metric: str
    """Name of the distance: fd_digits; FID is reserved for the Inception features of that name."""
    sha256: str
    features: Callable[[Tensor], Tensor]
    """Images (N, C, H, W) in [-1, 1] to features (N, d)."""
    probabilities: Callable[[Tensor], Tensor]
    """Images to class probabilities (N, classes)."""


def load_features(name: str, image_shape: tuple[int, int, int], device: torch.device) -> FeatureNetwork:
    """The network that `evaluation.features` names. Raises UsageError where it does not take such images."""
    if image_shape != (1, 8, 8):
        raise UsageError(f"evaluation.features: '{name}' takes images of 1x8x8, these are {image_shape}")
    classifier = load_classifier("digits-classifier-metric").to(device)
    return FeatureNetwork(
        metric="fd_digits",
        sha256=sha256_file(asset("digits-classifier-metric") / "model.safetensors"),
        features=classifier.embed,
        probabilities=lambda images: F.softmax(classifier(images), dim=1),
    )
