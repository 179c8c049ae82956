"""Scores of samples from their features beside the Frechet distance, as torch-fidelity computes them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
NEIGHBOURS = 3


def kernel_distance(made: NDArray[np.float32], real: NDArray[np.float32]) -> dict[str, float]:
    """KID (Binkowski et al. 2018): the unbiased squared MMD with the kernel (x.y/d + 1)^3 of features (N, d).

    `kid` is the mean over 100 pairs of random subsets, `kid_std` their standard deviation. The subsets
    hold `kid_subset_size` each: 1,000, or all of the smaller side.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(KID_SUBSET_SIZE, len(made), len(real))
    found = kid_features_to_metric(
        torch.from_numpy(made),
        torch.from_numpy(real),
        kid_subsets=KID_SUBSETS,
        kid_subset_size=size,
        verbose=False,
    )
    return {
        "kid": found["kernel_inception_distance_mean"],
        "kid_std": found["kernel_inception_distance_std"],
        "kid_subset_size": size,
    }


def inception_score(logits: NDArray[np.float32]) -> dict[str, float]:
    """exp of the mean divergence of p(class | image) from p(class), of logits (N, classes) (Salimans et al.
    2016): mean and deviation over ten parts of the images in a random order, or one part for each image."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(torch.from_numpy(logits), splits=min(10, len(logits)))
    return {
        "inception_score": found["inception_score_mean"],
        "inception_score_std": found["inception_score_std"],
    }


def precision_recall(made: NDArray[np.float32], real: NDArray[np.float32]) -> dict[str, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019) of features (N, d), with 3 neighbours: shares
    of the samples within the real images' manifold, and of the real images within the samples'."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    found = prc_features_to_metric(
        torch.from_numpy(made),
        torch.from_numpy(real),
        prc_neighborhood=NEIGHBOURS,
        save_cpu_ram=True,
        verbose=False,
    )
    return {"precision": found["precision"], "recall": found["recall"]}
