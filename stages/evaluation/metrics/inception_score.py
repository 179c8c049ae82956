"""The Inception score (Salimans et al. 2016), as torch-fidelity computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hkdpipe.stages.settings.metrics import Column, Metric, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def inception_score(logits: NDArray[np.float32], parts: int = 10) -> dict[str, float]:
    """exp of the mean divergence of p(class | image) from p(class), of logits (N, classes): mean and
    deviation over parts of the images in a random order, or one part for each image."""
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric

    found = isc_features_to_metric(torch.from_numpy(logits), splits=min(parts, len(logits)))
    mean, deviation = found["inception_score_mean"], found["inception_score_std"]
    return {"inception_score": mean, "inception_score_std": deviation}


register(
    Metric(
        "inception_score",
        "Inception score",
        needs=("logits",),
        columns=(
            Column("inception_score", "Inception score", "{:.2f}", better="higher", shown=("table",)),
            Column("inception_score_std"),
        ),
        settings=("inception_score_parts",),
        row=lambda seen: inception_score(seen.first.logits, seen.context.settings.inception_score_parts),
        text="Inception score: how sure the network is of each sample, and how unlike they are to it.",
    )
)
