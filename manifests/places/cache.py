"""Copies of remote files on this machine, shared by its processes and bounded in size.

A file is named by its SHA-256, so that a name says what the content must be, whichever archive it is of. It
appears whole or not at all. Who reads or writes a file holds a kernel lock on it; of the others the one least
recently opened goes first when room is needed.
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.places.shard_files import DAMAGED, BadFile, OpenFile

_DEFAULT_GIGABYTES = 50.0


class Cache:
    """Files in `folder`, together at most `limit` bytes, but for more that are in use at once. Any thread and
    any process may call its methods."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._verified: dict[str, tuple[int, ...]] = {}

    def open(self, sha256: str, size: int, fetch: Callable[[], Iterable[bytes]]) -> OpenFile:
        """The file with that SHA-256, verified by this process; fetched where it is not there. BadFile where
        what was fetched is something else."""
        (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        while True:
            file = self._find(sha256)
            if file is None:
                with _locked(self.folder / "locks" / sha256):
                    file = self._find(sha256) or self._fetch(sha256, size, fetch())
            if self._verified.get(sha256) == file.stamp() or file.sha256() == sha256:
                self._verified[sha256] = file.stamp()
                return file
            (self.folder / sha256).unlink(missing_ok=True)

    def _find(self, sha256: str) -> OpenFile | None:
        """The file, in use from now on; None if it is not there."""
        try:
            file = OpenFile(self.folder / sha256)
        except FileNotFoundError:
            return None
        fcntl.flock(file.descriptor, fcntl.LOCK_SH)
        status = os.fstat(file.descriptor)
        if not status.st_nlink:  # removed before it was locked
            return None
        with contextlib.suppress(PermissionError):  # another user's: only its owner may say it was used
            os.utime(file.descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        return file

    def _fetch(self, sha256: str, size: int, chunks: Iterable[bytes]) -> OpenFile:
        part = self.folder / f"{sha256}.part"  # what a killed process left is written over
        digest = hashlib.sha256()
        try:
            with _locked(self.folder / "locks" / "room"):
                self._make_room(size)
                file = OpenFile(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                fcntl.flock(file.descriptor, fcntl.LOCK_EX)
                os.truncate(file.descriptor, size)  # counts for the others from here on
            with open(file.descriptor, "wb", closefd=False) as output:
                for chunk in chunks:
                    output.write(chunk)
                    digest.update(chunk)
                    if output.tell() > size:
                        break
            if digest.hexdigest() != sha256:
                raise BadFile(DAMAGED)
            part.replace(self.folder / sha256)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(part)
            raise
        self._verified[sha256] = file.stamp()
        fcntl.flock(file.descriptor, fcntl.LOCK_SH)
        return file

    def _make_room(self, size: int) -> None:
        """Remove files that nobody uses, the least recently opened first, until `size` more bytes fit."""
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    files.append((path.stat().st_atime_ns, path.stat().st_size, path))
        excess = size + sum(length for _, length, _ in files) - self.limit
        for _, length, path in sorted(files):
            if excess <= 0:
                return
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                file = OpenFile(path)
                fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                excess -= length


def cache_of_environment() -> Cache:
    """The cache in the folder HKDPIPE_CACHE, of HKDPIPE_CACHE_GB. Raises UsageError for what is no size."""
    text = os.environ.get("HKDPIPE_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else _DEFAULT_GIGABYTES
    except ValueError:
        gigabytes = 0.0
    if not 0 < gigabytes < 1e9:
        raise UsageError(f"environment: HKDPIPE_CACHE_GB: got '{text}'; accepted: gigabytes, above 0")
    if not (folder := os.environ.get("HKDPIPE_CACHE")):
        # Asked last: in a container the user may have no home.
        folder = f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/hkdpipe"
    return Cache(Path(folder), int(gigabytes * 1e9))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path` (created, never deleted), waiting for whoever has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
