"""What a trained Koopman operator does: `python examples/trial_operator.py ARCHIVE MODEL ...`.

MODEL is a checkpoint or an export of hkd, ARCHIVE holds trajectories that it was not trained on among its
first 512 (`training.validation`). Printed of each model, of the digits:

- fd_digits of 8,192 images, with its operator A and with A set to zero;
- by stored state: the mean squared error of the image predicted from it, and by level the Koopman skill
  1 - |exp(A dt) E(x_t) - E(x_end)|^2 / |E(x_t) - E(x_end)|^2, where E(x_end) are the observables of the last
  state above sigma = 0;
- at the start, by level: R2, the share of the variance of E(x_end) about its mean over trajectories that is
  predicted, and the skill of the best A, fitted to the model's own observables by least squares.

A skill above 0 says that evolving is better than leaving the observables as they are; shrinking noise to
nothing reaches that as well, which R2 shows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.archive.reader import Archive, open_archive
from hkdpipe.manifests.ground import rng
from hkdpipe.stages.evaluation.seen import quantised
from hkdpipe.trainer.images.image_sets import load_images
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.metrics.feature_networks import load_features
from hkdpipe.trainer.metrics.frechet_distance import frechet_distance, statistics
from hkdpipe.trainer.students.loading import load_model
from hkdpipe.trainer.whitebox.koopman_skill import koopman_skill, squared_errors, without_evolution

HELD_OUT, FITTED, IMAGES, BATCH = 512, 4096, 8192, 512


def frechet(model: HKD) -> float:
    """fd_digits of images from noise that no archive uses."""
    network = load_features("digits", "", model.image_shape, torch.device("cpu"))

    def features(images: Tensor) -> NDArray[np.float32]:
        return network.outputs(quantised(images))[0].numpy()

    def made() -> Iterator[NDArray[np.float32]]:
        for start in range(0, IMAGES, BATCH):
            noise = rng.unit_noise(0, "evaluation", range(start, start + BATCH), model.image_shape)
            yield features(model.sample(torch.from_numpy(noise)))

    target = features(torch.from_numpy(load_images("digits")))
    return frechet_distance(statistics(made()), statistics([target]))


def observables(model: HKD, archive: Archive, indices: range, state: int) -> list[Tensor]:
    """E(x_t, t) of a stored state of some trajectories: (N, C, H, W) of each tensor, finest first."""
    sigma = torch.full((BATCH,), float(archive.sigmas[state]))
    parts = []
    for start in range(indices.start, indices.stop, BATCH):
        stored = archive.read(range(start, min(start + BATCH, indices.stop)), [state])[:, 0]
        x = torch.from_numpy(stored).float()
        parts.append(model.encode(x, sigma[: len(x)]))
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


def fitted(model: HKD, archive: Archive, start: Sequence[Tensor]) -> list[Tensor]:
    """`start` times the factor of every pair and location that leads others' starts to their ends best."""
    last = len(archive.sigmas) - 2
    indices = range(HELD_OUT, min(HELD_OUT + FITTED, len(archive)))
    before, after = (observables(model, archive, indices, state) for state in (0, last))
    predicted = []
    for x, y, z in zip(before, after, start, strict=True):
        u, v, w = (torch.complex(*tensor.chunk(2, dim=1)) for tensor in (x, y, z))
        factor = (u.conj() * v).mean(dim=0) / u.abs().square().mean(dim=0)
        predicted.append(torch.cat([(factor * w).real, (factor * w).imag], dim=1))
    return predicted


@torch.inference_mode()
def report(model: HKD, archive: Archive) -> None:
    print(f"fd_digits {frechet(model):.2f}, with A = 0 {frechet(without_evolution(model)):.2f}")
    last = len(archive.sigmas) - 2
    states = torch.from_numpy(archive.read(range(HELD_OUT), range(last + 2))).float()
    sigmas = archive.sigmas.tolist()
    skill = koopman_skill(model, states[:, :-1], sigmas[:-1])
    print("  sigma     mse " + " ".join(f"{level:>3}x{level:<3}" for level in skill))
    for state in range(last):
        sigma = torch.tensor([sigmas[state]])
        made = model.predict(states[:, state], sigma.expand(HELD_OUT))
        mse = float((made - states[:, -1]).square().mean())
        cells = " ".join(f"{of_level[state]:7.2f}" for of_level in skill.values())
        print(f"{sigma.item():7.3f} {mse:7.4f} {cells}")
    ends, start = (observables(model, archive, range(HELD_OUT), state) for state in (last, 0))
    z = model.evolve(start, torch.tensor([sigmas[0]]), torch.tensor([model.sigma_min]))
    error, spread, change, best = (
        squared_errors(tensors, ends)
        for tensors in (
            z,
            [tensor.mean(dim=0, keepdim=True) for tensor in ends],
            start,
            fitted(model, archive, start),
        )
    )
    r2 = " ".join(f"{1 - error[level] / spread[level]:7.2f}" for level in skill)
    bound = " ".join(f"{1 - best[level] / change[level]:7.2f}" for level in skill)
    print(f"at the start: R2       {r2}\n              best A   {bound}", flush=True)


def main(archive: Path, models: Sequence[Path]) -> None:
    with open_archive(archive) as trajectories:
        for path in models:
            model = load_model(path)
            assert isinstance(model, HKD), f"{path}: not a model of hkd"
            print(path)
            report(model, trajectories)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(argument) for argument in sys.argv[2:]])
