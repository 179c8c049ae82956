"""Who makes which shard, and who works in which folder: owner records, so that nobody needs a coordinator.

A claim is a small file that appears by a hard link, which local and network file systems grant to exactly
one process. Its time of change is a heartbeat. A claim whose owner is dead, as far as
can be seen from the same machine, or whose heartbeat has been silent for `STALE_SECONDS`, is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hkdpipe.manifests.ground.atomic_files import make_folders, read_json, remove_temporaries
from hkdpipe.manifests.ground.errors import InputError, InUseError

BEAT_SECONDS = 20.0
POLL_SECONDS = 0.1
STALE_SECONDS = 180.0
_OWNER = "owner"  # of a whole folder
_SHARER = "sharer"  # one of those that own a folder together


class Claims:
    """The claims of this process in the folder `root`/claims; a context in which their heartbeat runs."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "claims"
        self._token = secrets.token_hex(8)
        self._held: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Claims:
        make_folders(self._folder)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claim `name`; False if a living process holds it."""
        path = self._path(name)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        content = json.dumps({"token": self._token, **_this_process(), "since": since})
        while True:
            temporary = self._temporary(name)
            try:
                temporary.write_text(content)
                taken = _linked(temporary, path)
            except FileNotFoundError:
                # Another process tidied up (`remove_leftovers`), if only the file is gone.
                if not self._folder.is_dir():
                    raise
                continue
            finally:
                temporary.unlink(missing_ok=True)
            if taken:
                with self._lock:
                    self._held.add(name)
                return True
            abandoned = self._abandoned(path)
            if abandoned is None:
                return False
            self._move_away(path, abandoned)

    def remove_leftovers(self) -> None:
        """Delete what killed processes left; living ones that are just taking a claim try again."""
        remove_temporaries(self._folder)
        for path in self._folder.glob("*.json"):
            if (abandoned := self._abandoned(path)) is not None:
                self._move_away(path, abandoned)

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Hold `name` for a moment, after whoever holds it now."""
        while not self.take(name):
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            self.release(name)

    def holds(self, name: str) -> bool:
        """Whether `name` is still this process's, as it must be before what it claims is changed."""
        with contextlib.suppress(InputError):
            claim = read_json(self._path(name))
            return isinstance(claim, dict) and claim.get("token") == self._token
        return False

    def release(self, name: str) -> None:
        """Give `name` back."""
        with self._lock:
            self._held.discard(name)
        if self.holds(name):
            self._path(name).unlink(missing_ok=True)

    def owner(self, name: str) -> str:
        """In words, who holds `name`."""
        with contextlib.suppress(InputError):
            claim = read_json(self._path(name))
            if isinstance(claim, dict):
                job = f", job {claim['job']}" if claim.get("job") else ""
                return f"process {claim.get('pid')} on {claim.get('host')}{job}, since {claim.get('since')}"
        return "another process"

    def others(self, pattern: str) -> list[str]:
        """The names of this pattern that living processes hold, but this one's."""
        self.remove_leftovers()
        return sorted({path.stem for path in self._folder.glob(f"{pattern}.json")} - self._held)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _temporary(self, name: str) -> Path:
        return self._folder / f".{name}.{os.getpid()}.{secrets.token_hex(8)}.tmp"

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with self._lock:
                held = list(self._held)
            for name in held:
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))

    def _abandoned(self, path: Path) -> bytes | None:
        """The content of a claim whose owner is gone; None if there is no reason to think so."""
        try:
            silent = time.time() - path.stat().st_mtime
            content = path.read_bytes()
        except FileNotFoundError:
            return b""
        claim: Any = None
        with contextlib.suppress(ValueError):
            claim = json.loads(content)
        here = _this_process()
        if isinstance(claim, dict) and all(claim.get(key) == here[key] for key in ("host", "space")):
            gone = _started(claim.get("pid")) != claim.get("started")
        else:
            gone = silent > STALE_SECONDS
        return content if gone else None

    def _move_away(self, path: Path, abandoned: bytes) -> None:
        """Remove an abandoned claim, which another process may be doing as well."""
        aside = self._temporary(path.name)
        with contextlib.suppress(FileNotFoundError):
            path.rename(aside)
            if aside.read_bytes() != abandoned:
                # The other one was faster, and this is its new claim.
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(aside)
            aside.unlink()


@contextlib.contextmanager
def owning(folder: Path, what: str, shared: bool = False) -> Iterator[Callable[[], None]]:
    """Own `folder`, which is `what` in words; InUseError, at once, if another process does.

    `shared`: together with others that share it, and with none that does not. (Where one of either kind
    begins at the same instant, both may be refused.) Yields what to call before whatever is written is put
    in its place: InUseError if the folder was taken over.
    """
    with Claims(folder) as claims:
        name = f"{_SHARER}-{secrets.token_hex(8)}" if shared else _OWNER
        holders = [name]
        if claims.take(name):
            # After taking: of two that do so at once, one at least sees the other.
            holders = claims.others(_OWNER if shared else f"{_SHARER}-*")
        if holders:
            raise InUseError(f"{what} is in use by {claims.owner(holders[0])} ({folder / 'claims'})")

        def check() -> None:
            if not claims.holds(name):
                raise InUseError(f"{what} was taken over by {claims.owner(name)}: nothing more is written")

        yield check


def living(root: Path) -> int:
    """How many claims in `root`/claims have a heartbeat."""
    alive = 0
    for path in (root / "claims").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            alive += time.time() - path.stat().st_mtime < STALE_SECONDS
    return alive


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    # Processes in another container or after a reboot have the same numbers and are others.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": _started(pid),
        "space": f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}",
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def _started(pid: Any) -> int | None:
    """When the process began, in clock ticks since the boot; None if there is none."""
    try:
        # After the command's name, which may hold anything, in parentheses.
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError, TypeError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _linked(temporary: Path, path: Path) -> bool:
    """Put a claim in place: it appears with its content, or not at all (False) if there is one."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        # On NFS that may answer a request that was sent twice: the number of links tells (open(2)).
        return temporary.stat().st_nlink > 1
    return True
