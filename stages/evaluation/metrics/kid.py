"""KID (Binkowski et al. 2018), as torch-fidelity computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hkdpipe.stages.settings.metrics import Column, Metric, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def kernel_distance(
    made: NDArray[np.float32], real: NDArray[np.float32], subsets: int = 100, subset_size: int = 1000
) -> dict[str, float]:
    """The unbiased squared MMD with the kernel (x.y/d + 1)^3 of features (N, d).

    `kid` is the mean over pairs of random subsets, `kid_std` their standard deviation. They hold
    `kid_subset_size` each: `subset_size`, or all of the smaller side.
    """
    import torch
    from torch_fidelity.metric_kid import kid_features_to_metric

    size = min(subset_size, len(made), len(real))
    both = torch.from_numpy(made), torch.from_numpy(real)
    found = kid_features_to_metric(*both, kid_subsets=subsets, kid_subset_size=size, verbose=False)
    mean, deviation = (found[f"kernel_inception_distance_{of}"] for of in ("mean", "std"))
    return {"kid": mean, "kid_std": deviation, "kid_subset_size": size}


register(
    Metric(
        "kid",
        "kernel distance",
        needs=("features", "reference features"),
        columns=(
            Column("kid", "KID", "{:.5f}", better="lower", shown=("table",)),
            Column("kid_std"),
            Column("kid_subset_size", type=int),
        ),
        settings=("kid_subsets", "kid_subset_size"),
        row=lambda seen: kernel_distance(
            seen.first.features,
            seen.target.all_features,
            seen.context.settings.kid_subsets,
            seen.context.settings.kid_subset_size,
        ),
        text="KID: the squared maximum mean discrepancy of the same features, with a cubic kernel.",
    )
)
