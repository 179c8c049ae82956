"""Random weights for the FID's detector, in whose features distances can be computed, if not compared."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn


def write_random_inception(path: Path) -> None:
    """Under the names of the real ones, with batch norms that let features through."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Random(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state: Any) -> None:
            """Keeps what it was made with."""

    torch.manual_seed(0)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Random("inception-v3-compat", ["2048"], feature_extractor_weights_path=nothing)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # type: ignore[assignment]
            layer.reset_running_stats()
    network.train()
    network(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
    torch.save(network.state_dict(), path)
