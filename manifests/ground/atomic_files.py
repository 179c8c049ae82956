"""Files that appear whole or not at all, JSON, and checksums.

A write goes to a temporary sibling `.NAME.PID.TOKEN.tmp`, is synchronised to disk and renamed. A process
killed at any moment leaves the old content or the new one, and at worst a temporary that
`remove_temporaries` deletes. OSError (disk full, no permission) is left to the caller throughout.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hkdpipe.manifests.ground.errors import InputError

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+\.[0-9a-f]{16}\.(?P<kind>tmp|old)")


Bytes = bytes | memoryview


def write_atomic(path: Path, *data: Bytes) -> None:
    """Give `path` the content `data`, one after another, replacing what is there; the folder must exist."""
    temporary = _sibling(path, "tmp")
    try:
        with temporary.open("xb") as file:
            for part in data:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, keys in the order given; ValueError for NaN and infinities."""
    write_atomic(path, json_bytes(values))


def json_bytes(values: Any) -> bytes:
    """What `write_json` writes."""
    return (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON; InputError when the file is missing or is not JSON in UTF-8."""
    try:
        return parse_json(path.read_bytes(), path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path}: missing") from None


def read_json_if_there(path: Path) -> Any:
    """Read JSON; None when the file is missing or is not JSON."""
    try:
        return read_json(path)
    except InputError:
        return None


def parse_json(data: bytes, name: Path | str) -> Any:
    """JSON that was read from the file or URL `name`; InputError when it is not JSON in UTF-8."""
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON: {error}") from None


@contextlib.contextmanager
def atomic_folder(path: Path, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Fill the temporary folder this yields; on success it becomes `path`, replacing an existing one.

    `check` is called when all is on disk, before it is put in place. On an exception, from there too, the
    temporary is removed and `path` is as it was. A folder cannot be replaced in one rename, so a process
    killed between the two leaves `path` missing until `remove_temporaries` on the parent folder puts the old
    one back.
    """
    temporary = _sibling(path, "tmp")
    old = _sibling(path, "old")
    try:
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                if not (Path(folder) / name).is_symlink():
                    sync(Path(folder) / name)
            sync(Path(folder))
        check()
        with contextlib.suppress(FileNotFoundError):
            path.rename(old)
        try:
            temporary.rename(path)
        except BaseException:
            if _exists(old):
                old.rename(path)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)
    if _exists(old):
        _remove(old)


def remove_folder(path: Path) -> None:
    """Delete the folder `path`. A process killed amid this leaves all of it, or a temporary."""
    temporary = _sibling(path, "tmp")
    path.rename(temporary)
    shutil.rmtree(temporary)


def remove_temporaries(folder: Path, name: str | None = None) -> None:
    """Delete what killed writers left in `folder` (not below), and put back a folder they had moved away.
    With `name`, only what belongs to that file. For a process that knows no other one is writing it."""
    if not folder.is_dir():
        return
    leftovers: list[tuple[int, Path, re.Match[str]]] = []
    for path in folder.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match and name in (None, match["name"]):
            # A living process may have put its own in place since.
            with contextlib.suppress(FileNotFoundError):
                leftovers.append((path.lstat().st_ctime_ns, path, match))
    # The last one moved away first: of two old folders it is the one to put back.
    for _, path, match in sorted(leftovers, key=lambda leftover: leftover[0], reverse=True):
        final = folder / match["name"]
        if match["kind"] == "old" and not _exists(final):
            path.rename(final)
        else:
            _remove(path)
    sync(folder)


def make_folders(path: Path) -> None:
    """Create the folder `path` and its missing parents, each durably entered in the one above."""
    if path.is_dir():
        return
    make_folders(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sibling(path: Path, kind: str) -> Path:
    # Process numbers repeat across the hosts of a shared file system; the token does not.
    return path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}.{kind}"


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
