"""Improved precision and recall (Kynkaanniemi et al. 2019), as torch-fidelity computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.stages.settings.metrics import Column, Metric, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings


def precision_recall(
    made: NDArray[np.float32], real: NDArray[np.float32], neighbours: int = 3
) -> dict[str, float]:
    """Of features (N, d): shares of samples in the real images' manifold, and of these in the samples'."""
    import torch
    from torch_fidelity.metric_prc import prc_features_to_metric

    both = torch.from_numpy(made), torch.from_numpy(real)
    found = prc_features_to_metric(*both, prc_neighborhood=neighbours, save_cpu_ram=True, verbose=False)
    return {"precision": found["precision"], "recall": found["recall"]}


def _check(settings: EvaluationSettings) -> None:
    if settings.samples <= settings.neighbours:
        least = f"at least {settings.neighbours + 1}, for {settings.neighbours} neighbours"
        accepted = f": got {settings.samples}; accepted with '{METRIC.name}': {least}"
        raise WrongValue(Name("samples", type(settings)), accepted)


METRIC = register(
    Metric(
        "precision_recall",
        "precision and recall",
        needs=("features", "reference features"),
        columns=(
            Column("precision", "precision", "{:.3f}", better="higher", shown=("table",)),
            Column("recall", "recall", "{:.3f}", better="higher", shown=("table",)),
        ),
        settings=("neighbours",),
        row=lambda seen: precision_recall(
            seen.first.features, seen.target.all_features, seen.context.settings.neighbours
        ),
        text="Precision and recall: the shares of samples near real images, and of real images near samples.",
        check=_check,
    )
)
