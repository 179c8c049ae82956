import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hkdpipe.manifests.archive import contents, writer
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.manifests.plan.state_type import encode


@pytest.fixture(params=["zarr", "webdataset"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[(), (0, 7, 3)], ids=["unconditional", "classes"])
def plan(form: str, request: pytest.FixtureRequest) -> Plan:
    """Ten trajectories of five 2 x 3 x 4 states in shards of four: the last shard is partial.

    Of a teacher without classes, and of some of the classes of one with ten.
    """
    return Plan(
        form=form,
        count=10,
        shard_size=4,
        shape=(2, 3, 4),
        dtype="float16",
        sigmas=(80.0, 20.0, 5.0, 0.002, 0.0),
        seed=7,
        batch_size=4,
        sampler={"steps": 4, "sigma_min": 0.002, "sigma_max": 80, "rho": 7, "solver": "heun"},
        teacher={
            "sha256": "ab" * 32,
            "architecture": {"kind": "SongUNet", "mult": (1, 2), "label_dim": 10 if request.param else 0},
            "source": "/some/where",
            "licence": "CC0",
            "dataset": "digits",
        },
        classes=request.param,
    )


@pytest.fixture
def values() -> Callable[[Plan], NDArray[Any]]:
    """All states of a plan's archive; a longer archive begins with the same ones."""

    def make(plan: Plan) -> NDArray[Any]:
        rows = [np.random.default_rng(i).normal(size=plan.states_shape) for i in range(plan.count)]
        return encode(np.stack(rows), plan.dtype).view(plan.stored_dtype)

    return make


@pytest.fixture
def write(values: Callable[[Plan], NDArray[Any]]) -> Callable[[Path, Plan], NDArray[Any]]:
    """Write what is missing of an archive and finish it; returns what it holds."""

    def fill(root: Path, plan: Plan) -> NDArray[Any]:
        data = values(plan)
        writer.begin(root, plan)
        for k in contents.missing_shards(root, plan):
            start, stop = plan.shard_range(k)
            writer.write_shard(root, plan, k, data[start:stop], {"device": "cpu"})
        writer.finish(root, plan)
        return data

    return fill


@pytest.fixture
def grown(plan: Plan) -> Plan:
    return dataclasses.replace(plan, count=15)
