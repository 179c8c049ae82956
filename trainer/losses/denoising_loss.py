"""The training loss of an EDM teacher (arXiv 2206.00364, table 1 and section 5)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hkdpipe.manifests.archive.reading_order import training_indices
from hkdpipe.manifests.ground import rng
from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings

NoisyImages = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Images (B, C, H, W), unit noise of their shape, sigmas (B,), labels (B, label_dim) or None."""


def read_noisy_images(
    images: NDArray[np.float32],
    settings: TeacherTrainingSettings,
    labels: Tensor | None,
    start: int,
    stop: int,
) -> NoisyImages:
    """Images (B, C, H, W), unit noise of their shape and log-normal sigmas (B,) at the given positions. With
    the images' `labels` (N, label_dim) those of the images taken come with them."""
    positions, seed = np.arange(start, stop), settings.seed
    chosen = training_indices(seed, start, stop, 0, len(images))
    clean = torch.from_numpy(images[chosen])
    noise = rng.normal(seed, "teacher-noise", positions, clean[0].numel()).reshape(clean.shape)
    log_sigma = rng.normal(seed, "teacher-sigma", positions, 1)[:, 0]
    log_sigma = log_sigma * settings.noise_std + settings.noise_mean
    sigma = torch.from_numpy(np.exp(log_sigma)).float()
    return clean, torch.from_numpy(noise).float(), sigma, None if labels is None else labels[chosen]


def edm_loss(network: nn.Module, noisy: NoisyImages, sigma_data: float) -> Tensor:
    """Mean over batch and pixels of lambda(sigma) (D(y + n; sigma) - y)^2, lambda = (sigma^2 + sigma_data^2)
    / (sigma sigma_data)^2. `noisy` is what `read_noisy_images` returns."""
    clean, noise, sigma, labels = noisy
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = network(clean + noise * sigma[:, None, None, None], sigma, labels)
    return (weight[:, None, None, None] * (denoised - clean) ** 2).mean()
