import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from hkdpipe.trainer.numbers.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def steps(count):
    for _ in range(count):
        torch.ones(16, 2**20)  # 64 MiB, more than glibc keeps by itself
steps(10)  # some, until the pieces that are left over fit
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps(4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


LIBRARY, VERSION = platform.libc_ver()


@pytest.mark.skipif(
    LIBRARY != "glibc" or tuple(map(int, VERSION.split("."))) < (2, 35), reason="needs glibc 2.35"
)
def test_memory_that_tensors_give_back_is_not_cleared_again() -> None:
    """In a process of its own: what is set there lasts."""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", COUNT, how], capture_output=True, check=True).stdout)
        for how in ("kept", "as it is")
    }
    assert faults["kept"] < 100 < faults["as it is"]
