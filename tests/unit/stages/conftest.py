from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hkdpipe.manifests.archive import writer
from hkdpipe.manifests.plan.plan import Plan
from hkdpipe.trainer.teachers.sampler import sigma_schedule

WriteShards = Callable[[Path, Plan, int], None]


@pytest.fixture(params=[(), (3, 0, 1)], ids=["unconditional", "classes"])
def plan(request: pytest.FixtureRequest) -> Plan:
    """Twelve trajectories of five 1 x 2 x 2 states in shards of five; of all classes and of three of four."""
    return Plan(
        form="zarr",
        count=12,
        shard_size=5,
        shape=(1, 2, 2),
        dtype="float16",
        sigmas=tuple(sigma_schedule(4).tolist()),
        seed=7,
        batch_size=4,
        sampler={"steps": 4, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "solver": "heun"},
        teacher={
            "sha256": "ab" * 32,
            "architecture": {"label_dim": 4 if request.param else 0},
            "source": "somewhere",
            "licence": "",
            "dataset": "",
        },
        classes=request.param,
    )


@pytest.fixture
def write_shards() -> WriteShards:
    """Write the first shards of a plan's archive, and finish it where they are all.

    State k of trajectory i is 10 i + k throughout.
    """

    def write(root: Path, plan: Plan, shards: int) -> None:
        writer.begin(root, plan)
        for k in range(shards):
            start, stop = plan.shard_range(k)
            values = 10 * np.arange(start, stop)[:, None] + np.arange(len(plan.sigmas))
            states = np.broadcast_to(values[:, :, None, None, None], (stop - start, *plan.states_shape))
            writer.write_shard(root, plan, k, states.astype(plan.stored_dtype), {})
        if shards == plan.shards:
            writer.finish(root, plan)

    return write
