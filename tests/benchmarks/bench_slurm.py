"""What SLURM costs stage 1: the tasks of an array against as many plain processes, in turns.

`python tests/benchmarks/bench_slurm.py [TRAJECTORIES [TURNS]]`, by default 2,048 of the digits teacher and 3.
The cluster is one of two nodes on this machine, as in the tests, with one process of one thread on each;
without SLURM's programs nothing is measured. The steady rate is that between the first and the last shards;
what comes before is start-up, the queue included.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from commands import HKDPIPE
from slurm_cluster import Cluster, missing_programs

PROCESSES = 2
SHARD = 64
CLUSTER = "[generation]\ngpus = 0\ncpus = 1\ntasks = 2\n[training]\ngpus = 0\n[evaluation]\ngpus = 0\n"


def options(run: Path, count: int) -> list[str]:
    sizes = [f"generation.count={count}", f"generation.shard_size={SHARD}", f"generation.batch_size={SHARD}"]
    chosen = [word for size in sizes for word in ("--set", size)]
    return ["--run-dir", str(run), "--preset", "digits", *chosen]


def plain(cluster: Cluster, run: Path, count: int) -> tuple[float, float]:
    command = [HKDPIPE, "generate-trajectories", *options(run, count), "--quiet", "--wait"]
    began = time.time()
    started = [
        subprocess.Popen([*command, "--worker", f"{k}/{PROCESSES}"], env=cluster.environment())
        for k in range(PROCESSES)
    ]
    assert [process.wait() for process in started] == [0] * PROCESSES
    return rates(run, began)


def array(cluster: Cluster, run: Path, count: int) -> tuple[float, float]:
    given = options(run, count)
    began = time.time()
    cluster.ask(
        *(HKDPIPE, "submit", *given, "--cluster", str(cluster.root / "cluster.toml")),
        *("--stages", "generation"),
    )
    # Asking the queue all the time would take a part of the machine.
    cluster.wait_for((run / "trajectories" / "manifest.json").exists, "end of the array", 3600)
    cluster.wait_for(lambda: not cluster.ask("squeue", "-h"), "empty queue")
    return rates(run, began)


def rates(run: Path, began: float) -> tuple[float, float]:
    """Trajectories a second while all processes work, and seconds to the first shard."""
    made = sorted(path.stat().st_mtime for path in (run / "trajectories" / "records").iterdir())
    # At either end one process may work alone for as long as a shard takes.
    steady = made[PROCESSES:-PROCESSES]
    return (len(steady) - 1) * SHARD / (steady[-1] - steady[0]), made[0] - began


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    turns = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    if lacking := missing_programs():
        print(f"no SLURM here: {', '.join(lacking)} missing")
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cluster = Cluster(root / "slurm")
        cluster.root.mkdir()
        try:
            cluster.start()
            (cluster.root / "cluster.toml").write_text(CLUSTER)
            measured = [
                (plain(cluster, root / f"plain-{k}", count), array(cluster, root / f"array-{k}", count))
                for k in range(turns)
            ]
        finally:
            cluster.stop()
    ratios = sorted(jobs[0] / processes[0] for processes, jobs in measured)
    starts = [statistics.median(turn[which][1] for turn in measured) for which in (0, 1)]
    print(
        f"{PROCESSES} array tasks, {count} trajectories: {statistics.median(ratios):.3f} times the rate of "
        f"plain processes ({ratios[0]:.3f} to {ratios[-1]:.3f}); first shard after {starts[0]:.1f} s, "
        f"as jobs after {starts[1]:.1f} s"
    )


if __name__ == "__main__":
    main()
