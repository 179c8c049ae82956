"""Opening an archive of 1,000,000 trajectories: seconds and memory of a process.

`python tests/benchmarks/bench_open.py`: of CIFAR-10's shape, in shards of 2,048 trajectories and of 64, each
opened in a process of its own. The shards are sparse files, of which only the sizes are true.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from sparse_archive import write

COUNT = 1_000_000
OPEN = """
import sys, time
from pathlib import Path
from hkdpipe.manifests.archive.reader import open_archive
began, busy = time.perf_counter(), time.process_time()
archive = open_archive(sys.argv[1])
took, busy = time.perf_counter() - began, time.process_time() - busy
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(f"{len(archive):,} trajectories, {len(archive.shards):,} shards: {took:.3f} s, processor {busy:.3f} s;",
      f"peak memory of the process {int(peak.split()[1]) / 1e3:.0f} MB")
"""


def main() -> None:
    for shard_size in (2048, 64):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), COUNT, shard_size)
            subprocess.run([sys.executable, "-c", OPEN, folder], check=True)


if __name__ == "__main__":
    main()
