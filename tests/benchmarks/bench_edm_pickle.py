"""Reading an EDM snapshot of 55.7 M parameters, beside `torch.load` of the same tensors.

`python tests/benchmarks/bench_edm_pickle.py`: each measured in fresh processes, in turns, the files' pages
cached. Prints the ratio of the median times, and how far the peak of memory grew, in sizes of the file read.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 5
HELPERS = Path(__file__).parents[1] / "support"
# Reading is timed once per process: a second reading would find memory that the first has already been given.
MEASURE = """
import sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from process_memory import growth
from edm_fixtures import read_edm
kind, path = sys.argv[2], Path(sys.argv[3])

def read():
    global seconds
    start = time.perf_counter()
    kept = read_edm(path) if kind == "snapshot" else torch.load(path, weights_only=True)
    seconds = time.perf_counter() - start
    return kept

grown = growth(read)
print(seconds, grown / path.stat().st_size)
"""
MAKE = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from edm_snapshots import snapshot
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
class EDMPrecond(PreconditionedUNet): pass
network = EDMPrecond(Architecture(32, 3, channel_mult=(2, 2, 2)))
del network.arch  # The only attribute that is not plain.
Path(sys.argv[2]).write_bytes(snapshot(network))
torch.save(network.state_dict(), sys.argv[3])
"""


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {"snapshot": Path(folder) / "snapshot.pkl", "torch.load": Path(folder) / "state.pt"}
        run(MAKE, HELPERS, *files.values())
        measured: dict[str, list[tuple[float, float]]] = {kind: [] for kind in files}
        for _ in range(ROUNDS):
            for kind, path in files.items():
                seconds, growth = map(float, run(MEASURE, HELPERS, kind, path).split())
                measured[kind].append((seconds, growth))
        for kind, path in files.items():
            times, growths = zip(*measured[kind], strict=True)
            print(
                f"{kind}: {path.stat().st_size / 1e6:.0f} MB, {statistics.median(times):.3f} s"
                f", peak memory grew by {max(growths):.2f} times the file"
            )
        snapshot, state = (statistics.median(time for time, _ in measured[kind]) for kind in files)
        print(f"the snapshot takes {snapshot / state:.2f} times as long as torch.load (medians of {ROUNDS})")


if __name__ == "__main__":
    main()
