"""A disk that fails generation at any call: one line, code 1, nothing half-written, and no trace later."""

import errno
import os
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Called, succeeded
from crash_campaign import Halved
from test_killed_at_random import LEFTOVER, content, different
from tiny import GENERATION, Inputs, settings

ERRORS = {
    errno.ENOSPC: r"disk full \(No space left on device\); free some space and give the same command again",
    errno.EIO: "Input/output error",
}


class Failing:
    """Lets one of a kind of calls fail, counted from 1; 0 lets none fail, and counts them."""

    def __init__(self, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.fails_at = 0
        self.error = errno.EIO
        if kind == "write":
            opened = Path.open

            def halving(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
                file = opened(path, mode, *arguments, **named)
                return Halved(file, lambda: self.enter()) if mode == "xb" else file

            monkeypatch.setattr(Path, "open", halving)
            return
        function: Callable[..., Any] = getattr(os, kind)

        def failing(*arguments: Any, **named: Any) -> Any:
            self.enter(*arguments[:2])
            return function(*arguments, **named)

        monkeypatch.setattr(os, kind, failing)

    def enter(self, *paths: Any) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            # As the system: with the names of files if the call has some.
            names = (str(paths[0]), None, str(paths[1])) if len(paths) == 2 else ()
            raise OSError(self.error, os.strerror(self.error), *names)


@pytest.mark.parametrize("form", ["zarr", "webdataset"])
@pytest.mark.parametrize("kind", ["write", "fsync", "replace", "link"])
def test_a_call_that_fails(
    kind: str, form: str, conditional: Inputs, folder: Path, monkeypatch: pytest.MonkeyPatch, called: Called
) -> None:
    """The first, the last and some between of all the calls that one of two workers makes alone."""
    options = settings(generation=replace(GENERATION, count=10, shard_size=4, steps=2, format=form))
    command = ["generate-trajectories", "--teacher", str(conditional.teacher), *options, "--quiet", "--out"]
    disk = Failing(kind, monkeypatch)
    succeeded(called(*command, "whole", "--worker", "0/2"))
    calls = disk.calls
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    for number in {1, calls, *chance.sample(range(1, calls + 1), 3)}:
        out = f"out-{number}"
        disk.calls, disk.fails_at, disk.error = 0, number, chance.choice([errno.ENOSPC, errno.EIO])
        ran = called(*command, out, "--worker", "0/2")
        what = f"seed {seed}, call {number} of {calls}: {ran.err}"
        assert ran.code == 1, what
        assert re.fullmatch(rf"hkdpipe: error: {out}[^ ]*: {ERRORS[disk.error]}\n", ran.err), what
        names = [part for name in content(Path(out)) for part in Path(name).parts]
        assert not list(filter(LEFTOVER.fullmatch, names)), what
        disk.fails_at = 0
        succeeded(called(*command, out, "--worker", "1/2"))
        assert not different(content(Path(out)), content(Path("whole"))), what
