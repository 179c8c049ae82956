"""Small classifiers of scikit-learn's digits: one gives the loss its features, one the Frechet distance.

They are two networks trained apart, so that a student is not trained on its own measure. How the shipped ones
were made: `python -m hkdpipe.trainer.metrics.digits_classifier FOLDER --seed N`, see assets/ASSETS.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from hkdpipe.manifests.archive.reading_order import training_indices
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import atomic_folder, write_json
from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.images.colour import luminance
from hkdpipe.trainer.images.formats.digits import load_digits
from hkdpipe.trainer.teachers.teacher import read_weights

STEPS, BATCH_SIZE, LEARNING_RATE, NOISE = 1500, 128, 2e-3, 0.15
HELD_OUT = 297
DIGITS = ((1, 8, 8), (3, 8, 8))
"""The images that the classifiers take."""


class DigitsClassifier(nn.Module):
    """Four convolutions and a hidden layer for 8x8 images in [-1, 1], of which it sees the luminance."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(1, 32, 3, padding=1),
                nn.Conv2d(32, 64, 3, padding=1, stride=2),
                nn.Conv2d(64, 64, 3, padding=1),
                nn.Conv2d(64, 64, 3, padding=1, stride=2),
            ]
        )
        self.hidden = nn.Linear(256, 64)
        self.logits = nn.Linear(64, 10)

    def features(self, images: Tensor) -> list[Tensor]:
        """The activations of every convolution, for a perceptual distance."""
        features = []
        x = (luminance(images) if images.shape[1] == 3 else images).to(self.logits.weight.dtype)
        for conv in self.convs:
            x = F.relu(conv(x))
            features.append(x)
        return features

    def embed(self, images: Tensor) -> Tensor:
        """The hidden layer (N, 64), for a Frechet distance."""
        return F.relu(self.hidden(self.features(images)[-1].flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        scores: Tensor = self.logits(self.embed(images))
        return scores


def load_classifier(name: str) -> DigitsClassifier:
    """A shipped classifier, frozen."""
    classifier = DigitsClassifier()
    path = asset(name) / "model.safetensors"
    classifier.load_state_dict(read_weights(path, classifier.state_dict()))
    return classifier.eval().requires_grad_(False)


def train_classifier(folder: Path, seed: int) -> float:
    """Train on all digits but the last 297 with noise added; returns the accuracy on those 297."""
    torch.manual_seed(seed)
    images, classes = load_digits()
    count = len(images) - HELD_OUT
    classifier = DigitsClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for step in range(STEPS):
        positions = np.arange(step * BATCH_SIZE, (step + 1) * BATCH_SIZE)
        chosen = training_indices(seed, int(positions[0]), int(positions[-1]) + 1, 0, count)
        noise = rng.normal(seed, "classifier-noise", positions, 64).reshape(-1, 1, 8, 8) * NOISE
        scores = classifier(torch.from_numpy(images[chosen] + noise).float())
        optimizer.zero_grad()
        F.cross_entropy(scores, torch.from_numpy(classes[chosen])).backward()
        optimizer.step()
        schedule.step()
    with torch.inference_mode():
        right = classifier(torch.from_numpy(images[count:])).argmax(dim=1).numpy() == classes[count:]
    accuracy = float(right.mean())
    with atomic_folder(folder) as temporary:
        weights = {name: value.half().contiguous() for name, value in classifier.state_dict().items()}
        (temporary / "model.safetensors").write_bytes(save(weights))
        write_json(temporary / "config.json", {"seed": seed, "steps": STEPS, "held_out_accuracy": accuracy})
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a classifier of the digits.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    print(f"accuracy on {HELD_OUT} held-out digits: {train_classifier(arguments.folder, arguments.seed):.4f}")
