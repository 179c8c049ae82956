"""How far a process's memory grows, from Linux's own count.

`ru_maxrss` would not do: a process inherits it from the one that started it, and it never falls again.
"""

from collections.abc import Callable
from pathlib import Path

PROCESS = Path("/proc/self")


def growth(work: Callable[[], object]) -> int:
    """Bytes between the memory in use before the work and its peak during it."""
    before = _status("VmRSS")
    (PROCESS / "clear_refs").write_text("5")  # the peak becomes what is in use now
    kept = work()
    peak = _status("VmHWM")
    del kept
    return peak - before


def _status(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
