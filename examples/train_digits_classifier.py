"""How the shipped classifiers of digits were made: `python train_digits_classifier.py FOLDER --seed N`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch.nn import functional as F

from hkdpipe.manifests.archive.reading_order import training_indices
from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.atomic_files import atomic_folder, write_json
from hkdpipe.trainer.images.formats.digits import load_digits
from hkdpipe.trainer.metrics.digits_classifier import HELD_OUT, DigitsClassifier

STEPS, BATCH_SIZE, LEARNING_RATE, NOISE = 1500, 128, 2e-3, 0.15


def train_classifier(folder: Path, seed: int, steps: int = STEPS) -> float:
    """Train on all digits but the last 297 with noise added; returns the accuracy on those 297."""
    torch.manual_seed(seed)
    images, classes = load_digits()
    count = len(images) - HELD_OUT
    classifier = DigitsClassifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
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
        write_json(temporary / "config.json", {"seed": seed, "steps": steps, "held_out_accuracy": accuracy})
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a classifier of the digits.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    print(f"accuracy on {HELD_OUT} held-out digits: {train_classifier(arguments.folder, arguments.seed):.4f}")
