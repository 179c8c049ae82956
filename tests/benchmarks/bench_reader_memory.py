"""What reading takes in memory as an archive grows: `python tests/benchmarks/bench_reader_memory.py [COUNT]`.

Archives of COUNT (by default 65,536), 4 and 16 times as many CIFAR-10-shaped trajectories, whose shards are
holes in sparse files: only their SHA-256 is not looked at. Of each, in a process of its own: the peak before
the first batch and after 50 batches of 256 trajectories, in both reading orders.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from sparse_archive import NO_HASH, write

from hkdpipe.manifests.archive.reader import open_archive
from hkdpipe.manifests.archive.reading_order import Blocks, training_indices
from hkdpipe.manifests.places.shard_files import OpenFile

COUNT, SHARD_SIZE, BATCH, BATCHES, HELD_OUT = 65_536, 2048, 256, 50, 256


def peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def read(root: str, order: str) -> None:
    OpenFile.sha256 = lambda self: NO_HASH  # type: ignore[method-assign]
    blocks = Blocks(SHARD_SIZE, 4) if order == "blocks" else None
    with open_archive(root) as archive:
        opened = peak()
        for position in range(0, BATCHES * BATCH, BATCH):
            chosen = training_indices(0, position, position + BATCH, HELD_OUT, len(archive), blocks)
            archive.read(chosen, [0, 4, 9, 14, 18])
    print(opened, peak())


def main() -> None:
    if len(sys.argv) == 3:
        read(*sys.argv[1:])
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 4, 16):
            root = Path(folder) / str(times)
            write(root, times * count, SHARD_SIZE)
            shown = []
            for order in ("blocks", "full"):
                command = [sys.executable, __file__, str(root), order]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                opened, after = map(float, output.split())
                shown.append(
                    f'order "{order}" {opened:.0f} MB opened, {after:.0f} MB after {BATCHES} batches'
                )
            print(f"{times:>2} x {count:,} trajectories: {'; '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
