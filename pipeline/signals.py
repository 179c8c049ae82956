"""Requests to stop: SIGTERM (schedulers), SIGINT (Ctrl-C) and SIGUSR2 (a job's time limit ahead)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


@contextmanager
def stop_requests(quiet: bool) -> Iterator[Callable[[], bool]]:
    """Yield what tells whether one of the signals came. A second Ctrl-C raises KeyboardInterrupt."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        if not received and not quiet:
            # The signal may have come amid a print, which must not be entered twice.
            with contextlib.suppress(OSError):
                os.write(2, b"stopping at the next safe point (Ctrl-C again: at once)\n")
        received.append(number)

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
