"""A finished archive of CIFAR-10's shape whose shards are sparse files, of which only the sizes are true."""

from pathlib import Path

import numpy as np

from hkdpipe.manifests.archive.contents import manifest_values
from hkdpipe.manifests.forms import zarr_form
from hkdpipe.manifests.ground.atomic_files import make_folders, write_json
from hkdpipe.manifests.plan.plan import Plan, ShardRecord

NO_HASH = "0" * 64
HOW = {
    "device": "cuda: NVIDIA H200",
    "threads": 16,
    "precision": "float32",
    "batch_shape": [256, 3, 32, 32],
    "torch": "2.15.0",
    "numpy": "2.4.6",
}


def write(root: Path, count: int, shard_size: int) -> None:
    plan = Plan(
        form="zarr",
        count=count,
        shard_size=shard_size,
        shape=(3, 32, 32),
        dtype="float16",
        sigmas=tuple(np.linspace(80.0, 0.0, 19).tolist()),
        seed=0,
        batch_size=256,
        sampler={"steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "solver": "heun"},
        teacher={"sha256": NO_HASH, "architecture": {}, "source": "", "licence": "", "dataset": ""},
    )
    offset, stride = zarr_form.spacing(plan)
    records = []
    for k in range(plan.shards):
        start, stop = plan.shard_range(k)
        file, size = zarr_form.shard_file(k), (stop - start) * stride + 16 * shard_size + 4
        record = ShardRecord(
            k, file, start, stop, size, NO_HASH, plan.identity(), HOW, offset=offset, stride=stride
        )
        records.append(record)
        make_folders((root / file).parent)
        with (root / file).open("wb") as sparse:
            sparse.truncate(size)
    write_json(root / "manifest.json", manifest_values(plan, records))
