"""Opening an archive of 1,000,000 trajectories: seconds and memory of a process.

`python tests/benchmarks/bench_open.py`: of CIFAR-10's shape, in shards of 2,048 trajectories and of 64, each
opened in a process of its own. The shards are sparse files, of which only the sizes are true.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from hkdpipe.manifests.contents import FORMS
from hkdpipe.manifests.files import make_folders, write_json
from hkdpipe.manifests.plan import Plan, ShardRecord
from hkdpipe.manifests.settings import digest

COUNT = 1_000_000
OPEN = """
import sys, time
from pathlib import Path
from hkdpipe.manifests.archive import open_archive
began, busy = time.perf_counter(), time.process_time()
archive = open_archive(sys.argv[1])
took, busy = time.perf_counter() - began, time.process_time() - busy
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(f"{len(archive):,} trajectories, {len(archive.shards):,} shards: {took:.3f} s, processor {busy:.3f} s;",
      f"peak memory of the process {int(peak.split()[1]) / 1e3:.0f} MB")
"""


def write(root: Path, shard_size: int) -> None:
    plan = Plan(
        form="zarr",
        count=COUNT,
        shard_size=shard_size,
        shape=(3, 32, 32),
        dtype="float16",
        sigmas=tuple(float(18 - step) for step in range(19)),
        seed=0,
        batch_size=256,
        sampler={"steps": 18, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "solver": "heun"},
        teacher={"sha256": "0" * 64, "architecture": {}, "source": "", "licence": "", "dataset": ""},
    )
    stride = plan.trajectory_bytes + 4
    how = {
        "device": "cuda: NVIDIA H200",
        "threads": 16,
        "precision": "float32",
        "batch_shape": [256, 3, 32, 32],
        "torch": "2.15.0",
        "numpy": "2.4.6",
    }
    records = []
    for k in range(plan.shards):
        start, stop = plan.shard_range(k)
        file, size = FORMS["zarr"].shard_file(k), (stop - start) * stride + 16 * shard_size + 4
        sha256 = digest(k)
        record = ShardRecord(k, file, start, stop, size, sha256, 0, stride, plan.identity(), how)
        records.append(record.to_json())
        make_folders((root / file).parent)
        with (root / file).open("wb") as sparse:
            sparse.truncate(size)
    values = {"plan": plan.to_json(), "shards": records}
    write_json(root / "manifest.json", {**values, "sha256": digest(values)})


def main() -> None:
    for shard_size in (2048, 64):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), shard_size)
            subprocess.run([sys.executable, "-c", OPEN, folder], check=True)


if __name__ == "__main__":
    main()
