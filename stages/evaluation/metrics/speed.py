"""Latency and throughput of a student and of its teacher's sampler."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hkdpipe.stages.settings.metrics import Column, Metric, register

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hkdpipe.stages.evaluation.context import Context

BATCHES = (1, 64)
"""Images in a call, beside the evaluation's own batch."""


def measure_speed(context: Context) -> dict[str, Any]:
    """Latency of one image and throughput in batches, warm, of the student and of the whole sampler."""
    whole, nfe = context.whole_sampler()
    subjects = [*context.students(), ("teacher", nfe, whole)]
    rows = []
    with context.reporter.phase("speed", len(subjects), "samplers") as advance:
        for done, (name, nfe, sampler) in enumerate(subjects, 1):
            row: dict[str, Any] = {"name": name, "nfe": nfe}
            for batch in sorted({*BATCHES, context.settings.batch_size}):
                context.check_stop()
                given = context.given(0, batch)
                seconds = _seconds(functools.partial(sampler, *given), context.device)
                row[f"ms_per_image_batch_{batch}"] = 1e3 * seconds / batch
                row[f"images_per_second_batch_{batch}"] = batch / seconds
            rows.append(row)
            advance(done)
    return {"speed": rows}


def _seconds(sample: Callable[[], Tensor], device: torch.device) -> float:
    """The median time of a call, after a warm-up: of 5 calls, or as many as fit two seconds."""
    import torch

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: list[float] = []
    with torch.inference_mode():
        sample()
        while len(times) < 5 and sum(times) < 2:
            synchronise()
            start = time.perf_counter()
            sample()
            synchronise()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


_COLUMNS = (
    Column("name", type=str),
    Column("nfe", "evaluations", type=int, shown=("table",)),
    Column("ms_per_image_batch_1", "latency, one image", unit="ms", shown=("key figure", "summary")),
    Column("ms_per_image_batch_*", "an image in batches of *", "", "ms", "lower", ("table",)),
    Column("images_per_second_batch_*", "images a second in batches of *", "", "", "higher", ("table",)),
)

register(
    Metric(
        "speed",
        "median time of warm calls",
        columns=_COLUMNS,
        tables=measure_speed,
        empty={"speed": []},
        section="Cost",
    )
)
