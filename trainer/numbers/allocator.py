"""How the C library hands out the memory of tensors on the CPU."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let this process keep what its tensors give back, for the next ones.

    glibc returns large pieces to the system, which clears every page when they are asked for again; each step
    of a training, and each batch of a sampler, asks for the same ones. Before version 2.35, which keeps no
    piece of more than 32 MiB, and elsewhere nothing is done. (mallopt(3))
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    # Where this is refused, the other setting alone would end that glibc learns by itself what to keep.
    if libc.mallopt(_M_MMAP_THRESHOLD, _NEVER):
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
