"""Measurements of a conditional model by class: rows of per_class.csv."""

import numpy as np
from numpy.typing import NDArray

from hkdpipe.stages.settings.metrics import Row
from hkdpipe.trainer.metrics.frechet_distance import frechet_distance, statistics


def class_rows(
    metric: str,
    classes: tuple[int, ...],
    asked: NDArray[np.int64],
    features: NDArray[np.floating],
    judged: NDArray[np.int64] | None,
    real: NDArray[np.floating],
    labels: NDArray[np.int64] | None,
) -> list[Row]:
    """A row for each of `classes`: how many `samples` were asked for it (asked (N,), their features (N, d)),
    under `metric` their Frechet distance to the real images of that class (features (M, d), labels (M,) or
    None if unknown), and `as_asked`, the share in which a classifier, if there is one, sees it (judged (N,)).
    Left out is a distance that has fewer than two images on a side, and what has no samples."""
    rows = []
    for number in sorted(classes):
        own = asked == number
        row: Row = {"class": number, "samples": int(own.sum())}
        like = real[:0] if labels is None else real[labels == number]
        if min(own.sum(), len(like)) >= 2:
            row[metric] = frechet_distance(statistics([features[own]]), statistics([like]))
        if judged is not None and own.any():
            row["as_asked"] = float((judged[own] == number).mean())
        rows.append(row)
    return rows


def match_rows(classes: NDArray[np.int64], errors: NDArray[np.floating]) -> list[Row]:
    """For each class of held-out trajectories (N,): how many are `held_out`, and their mean error."""
    own = {number: errors[classes == number] for number in np.unique(classes).tolist()}
    return [
        {"class": number, "held_out": len(some), "match_mse": float(some.mean())}
        for number, some in own.items()
    ]


def merged(rows: list[Row], others: list[Row]) -> list[Row]:
    """Rows with the same name, number of evaluations and class made one, in the order they first come."""
    found: dict[tuple[str, int, int], Row] = {}
    for row in [*rows, *others]:
        found.setdefault((row["name"], row["nfe"], row["class"]), {}).update(row)
    return list(found.values())
