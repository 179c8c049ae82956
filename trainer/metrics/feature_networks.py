"""Feature networks that distributions of images are compared in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hkdpipe.manifests.ground.atomic_files import sha256_file
from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.metrics.digits_classifier import DIGITS, load_classifier
from hkdpipe.trainer.metrics.feature_spaces import SPACES, FeatureSpace
from hkdpipe.trainer.metrics.inception import inception_file, load_inception


@dataclass(frozen=True)
class FeatureNetwork:
    """What images are seen through."""

    space: FeatureSpace
    sha256: str
    """Of its weights' file."""
    outputs: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Images uint8 (N, C, H, W) to features (N, d) and logits (N, classes)."""
    resize: str
    """What it does to the images' size, in words."""


def load_features(
    name: str, file: str, image_shape: tuple[int, int, int], device: torch.device
) -> FeatureNetwork:
    """The network in whose `features` images are compared; `file` holds Inception's weights. WrongValue where
    it does not take such images, InputError for a file that is not its weights."""
    if name == "inception":
        if image_shape[0] not in (1, 3):
            raise WrongValue(Name("features"), f": 'inception' takes 1 or 3 channels, not {image_shape[0]}")
        inception = load_inception(inception_file(file), device)
        resize = "to 299 x 299, bilinear as TensorFlow 1's, by torch-fidelity"
        return FeatureNetwork(SPACES[name], inception.sha256, inception, resize)
    if image_shape not in DIGITS:
        raise WrongValue(
            Name("features"), f": '{name}' takes images of 1x8x8 or 3x8x8, these are {image_shape}"
        )
    classifier = load_classifier("digits-classifier-metric").to(device)

    def outputs(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.embed(images.float() / 127.5 - 1)
        return features, classifier.logits(features)

    digest = sha256_file(asset("digits-classifier-metric") / "model.safetensors")
    return FeatureNetwork(SPACES[name], digest, outputs, "none")
