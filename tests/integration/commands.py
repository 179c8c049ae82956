"""The command `hkdpipe` as a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
HKDPIPE = str(BIN / "hkdpipe")
TORCHRUN = str(BIN / "torchrun")
PATIENCE = 600.0  # seconds: only a process that hangs meets it
_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def environment(**more: str) -> dict[str, str]:
    """This process's, with one thread per process, as the tests' own: so the same bits come out."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OF_TORCHRUN}
    return {**inherited, "OMP_NUM_THREADS": "1", "PATH": f"{BIN}:{os.environ['PATH']}", **more}


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """What it says went wrong, one entry per line that says so."""
        return [
            line.removeprefix("hkdpipe: error: ")
            for line in self.err.splitlines()
            if "hkdpipe: error" in line
        ]


Called = Callable[..., Ran]
"""What takes a command line and says how it ended."""


def run(arguments: Sequence[str], folder: Path, **more: str) -> Ran:
    """Run a command line in `folder` to its end."""
    done = subprocess.run(
        arguments, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=PATIENCE
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def hkdpipe(folder: Path, *arguments: str, **more: str) -> Ran:
    return run([HKDPIPE, *arguments], folder, **more)


def succeeded(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


class Running:
    """A command on its way."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    def wait_until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, f"ended too early: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"hangs: {self.log.read_text()}"
            time.sleep(0.002)

    def wait_for(self, text: str) -> None:
        """Until it has said `text` on stderr."""
        self.wait_until(lambda: text in self.log.read_text())

    def end(self) -> Ran:
        """Wait for its end."""
        out, _ = self.process.communicate(timeout=PATIENCE)
        return Ran(self.process.returncode, out, self.log.read_text())


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Running]:
    """`hkdpipe ...` started in `folder`; killed at the end of the body if it is still there."""
    # Each has a file of its own: of two in one file, the second would write over what the first has said.
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".log", delete=False) as stderr:
        process = subprocess.Popen(
            [HKDPIPE, *arguments],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        yield Running(process, Path(stderr.name))
    finally:
        process.kill()
        process.wait()
