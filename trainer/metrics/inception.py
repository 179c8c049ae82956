"""Inception-v3 with the weights of the FID's own detector, through torch-fidelity."""

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hkdpipe.manifests.ground.errors import InputError, Name, WrongValue, first_line

VARIABLE = "HKDPIPE_INCEPTION"
FILE = "weights-inception-2015-12-05-6726825d.pth"
"""The reference detector in PyTorch's format, a file of torch-fidelity's releases; pytorch-fid's
pt_inception-2015-12-05-6726825d.pth holds the same."""
_FEATURES, _LOGITS = "2048", "logits_unbiased"


@dataclass(frozen=True)
class Inception:
    """The detector, and the SHA-256 of its weights' file."""

    network: Callable[[Tensor], tuple[Tensor, Tensor]]
    sha256: str

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, 2048) and unbiased logits (N, 1008), float32, of images uint8 (N, C, H, W). C is 1 or
        3: grey is repeated. The network resizes to 299 x 299 itself."""
        return self.network(images.expand(-1, 3, -1, -1))


def inception_file(setting: str) -> Path:
    """The weights' file: `setting`, or what the environment names. UsageError where neither does."""
    named = setting or os.environ.get(VARIABLE, "")
    if not named:
        raise WrongValue(
            Name("inception"),
            f": not set, and nor is {VARIABLE}; accepted: the path of {FILE} (of torch-fidelity's releases)",
        )
    return Path(named)


def load_inception(path: Path, device: torch.device) -> Inception:
    """The detector from its weights' file, which is read without executing anything. InputError where the
    file is missing, or is not the weights of this network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; accepted: {FILE} (of torch-fidelity's releases)"
        ) from None
    try:
        weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        network: Any = FeatureExtractorInceptionV3(
            "inception-v3-compat", [_FEATURES, _LOGITS], feature_extractor_weights_path=_as_file(weights)
        )
    except Exception as error:  # what is something else raises anything
        raise InputError(f"{path}: not the weights of Inception-v3, {FILE} ({first_line(error)})") from None
    return Inception(network.to(device), hashlib.sha256(data).hexdigest())


def _as_file(weights: Any) -> io.BytesIO:
    """The tensors once more as a file: torch-fidelity reads one, and would execute what it holds."""
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError("not a state dict")
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    buffer.seek(0)
    return buffer
