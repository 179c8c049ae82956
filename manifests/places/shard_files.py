"""Files opened for reading, once their SHA-256 is found to be the manifest's."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_CHUNK_BYTES = 1 << 20


class BadFile(Exception):
    """A file that is not the manifest's: the message goes on after its name."""


MISSING = "is missing"
DAMAGED = "is damaged: its SHA-256 is not the manifest's"


class OpenFile:
    """A file open for reading, closed when nobody refers to it any more: so never under a reading thread."""

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.descriptor = os.open(path, flags, 0o666)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def stamp(self) -> tuple[int, ...]:
        """What changes when another file is put in its place."""
        status = os.fstat(self.descriptor)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def read(self, count: int, offset: int) -> bytes:
        """Up to `count` bytes from `offset` on: fewer only where the file ends."""
        content = os.pread(self.descriptor, count, offset)
        while len(content) < count and (
            more := os.pread(self.descriptor, count - len(content), offset + len(content))
        ):
            content += more
        return content

    def chunks(self) -> Iterator[bytes]:
        """Its content from the start."""
        offset = 0
        while chunk := os.pread(self.descriptor, _CHUNK_BYTES, offset):
            yield chunk
            offset += len(chunk)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


class LocalFolder:
    """Files on a file system. Any thread may call its methods."""

    open_files = 256
    """As many as a reader should keep open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # What was verified, so that a file put in its place since is verified again.
        self._verified: dict[str, tuple[int, ...]] = {}

    def __str__(self) -> str:
        return str(self.path)

    def open(self, name: str, size: int, sha256: str) -> OpenFile:
        """The file, verified when it is first opened. Raises BadFile."""
        file = self._open(name)
        stamp = file.stamp()
        if self._verified.get(name) != stamp:
            if file.sha256() != sha256:
                raise BadFile(DAMAGED)
            self._verified[name] = stamp
        return file

    def stream(self, name: str) -> Iterator[bytes]:
        """The file's content in chunks, not verified. Raises BadFile where it is missing."""
        return self._open(name).chunks()

    def _open(self, name: str) -> OpenFile:
        try:
            return OpenFile(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            raise BadFile(MISSING) from None
