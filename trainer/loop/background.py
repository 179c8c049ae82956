"""Work that a loop need not wait for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class Background:
    """One job at a time in a thread. What a job raises is raised by the next call here."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._job: Future[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Wait for the job; if the body failed, its own error stands."""
        self._thread.shutdown()
        if error is None:
            self.wait()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Once the job before it is done."""
        self.wait()
        self._job = self._thread.submit(function, *arguments)

    def wait(self) -> None:
        if self._job is not None:
            job, self._job = self._job, None
            job.result()

    def check(self) -> None:
        """Without waiting."""
        if self._job is not None and self._job.done():
            self.wait()
