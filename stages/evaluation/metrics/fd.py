"""The Frechet distance, its spread, and that between two halves of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hkdpipe.stages.settings.metrics import Column, Metric, Place, Row, register
from hkdpipe.trainer.metrics.feature_spaces import SPACES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hkdpipe.stages.evaluation.context import Context
    from hkdpipe.stages.evaluation.seen import Seen, Target
    from hkdpipe.trainer.metrics.frechet_distance import Statistics

HALVINGS, HALVINGS_IN_MANY_DIMENSIONS = 10, 2  # of Inception's 2,048, each costs minutes of linear algebra


def _measure(seen: Seen) -> Row:
    from hkdpipe.trainer.metrics.frechet_distance import frechet_distance, statistics

    settings, target, name = seen.context.settings, seen.target.statistics, seen.network.space.metric
    found = [
        frechet_distance(statistics(seen.feature_blocks(number)), target) for number in range(settings.ranges)
    ]
    row: Row = {name: min(found)}
    if settings.ranges > 1:
        row["ranges"] = found
    if settings.bootstrap:
        row[f"{name}_std"] = bootstrap(seen.context, lambda: seen.feature_blocks(0), target)
    return row


def bootstrap(
    context: Context, features: Callable[[], Iterator[NDArray[np.float32]]], target: Statistics
) -> float:
    """Standard deviation of the Frechet distance over samples drawn from the samples with replacement."""
    import numpy as np

    from hkdpipe.manifests.ground import rng
    from hkdpipe.trainer.metrics.frechet_distance import quick_frechet_distance, statistics

    count = context.settings.samples
    found = []
    for number in range(context.settings.bootstrap):
        context.check_stop()
        positions = np.arange(number * count, (number + 1) * count)
        drawn = rng.uniform(context.settings.seed, "bootstrap", positions, 1)[:, 0]
        times = np.bincount((drawn * count).astype(np.int64), minlength=count)
        found.append(quick_frechet_distance(statistics(_repeated(features(), times)), target))
    return float(np.std(found, ddof=1))


def _repeated(
    blocks: Iterator[NDArray[np.float32]], times: NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    """Every feature as often as `times` (N,) says, in blocks."""
    import numpy as np

    first = 0
    for block in blocks:
        own = times[first : first + len(block)]
        if own.any():
            yield np.repeat(block, own, axis=0)
        first += len(block)


def halvings(dimension: int) -> int:
    """How often the reference is divided into two halves."""
    return HALVINGS if dimension < 1024 else HALVINGS_IN_MANY_DIMENSIONS


def halves_row(context: Context, name: str, target: Target) -> Row:
    """The distance between two random halves of the reference: the mean of some divisions."""
    import numpy as np

    from hkdpipe.manifests.ground import rng
    from hkdpipe.trainer.metrics.frechet_distance import frechet_distance, statistics

    count = target.images
    half = count // 2
    distances = []
    for division in range(halvings(next(target.features()).shape[1])):
        order = rng.permutation(context.settings.seed, "halves", division, count)
        parts = (np.bincount(part, minlength=count) for part in (order[:half], order[half:]))
        distances.append(frechet_distance(*(statistics(_repeated(target.features(), own)) for own in parts)))
    return {
        "name": "two halves of the reference",
        "nfe": 0,
        "samples": half,
        name: float(np.mean(distances)),
        "smallest": min(distances),
        "largest": max(distances),
    }


def _columns(name: str) -> tuple[Column, Column]:
    places: tuple[Place, ...] = ("table", "summary", "key figure")
    spread = f"{name}_std"
    return Column(name, name, "{:.2f}", better="lower", shown=places, spread=spread), Column(spread)


METRIC = register(
    Metric(
        "fd",
        "Fréchet distance",
        needs=("features",),
        columns=(
            *(column for space in SPACES.values() for column in _columns(space.metric)),
            Column("ranges", type=list),
            Column("smallest"),
            Column("largest"),
        ),
        row=_measure,
    )
)
