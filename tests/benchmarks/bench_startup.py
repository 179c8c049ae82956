"""How long `hkdpipe --help` and `import hkdpipe` take, beside a bare interpreter."""

import statistics
import subprocess
import sys
import time
from pathlib import Path


def median_seconds(command: list[str], calls: int = 5) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    bare = median_seconds([sys.executable, "-c", "pass"])
    answer = median_seconds([str(Path(sys.executable).parent / "hkdpipe"), "--help"])
    imported = median_seconds([sys.executable, "-c", "import hkdpipe"])
    print(
        f"python -c pass: {bare:.3f} s"
        f"; hkdpipe --help: {answer:.3f} s (medians of 5), ratio {answer / bare:.1f}"
        f"; import hkdpipe: {imported - bare:.3f} s more than nothing"
    )


if __name__ == "__main__":
    main()
