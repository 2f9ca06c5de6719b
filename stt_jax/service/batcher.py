"""Many callers, one worker: what waits is done together, and too much is refused at once."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class BusyError(Exception):
    """Too much is waiting, or it waited too long; the caller should try again a little later."""


class Batcher(Generic[Job, Result]):
    """A thread that takes whatever jobs are waiting, does them in one call, and answers each.

    A batch forms while the one before it is being done, so nobody waits for company, and a busy
    service works in large batches of its own accord.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[Job]], Sequence[Result | Exception]],
        *,
        max_batch: int,
        max_waiting: int,
        timeout_s: float,
    ) -> None:
        """Starts the thread.

        Args:
          name: of the thread.
          work: does jobs, one result a job; an exception among the results is that job's, an
            exception raised is every job's.
          max_batch: most jobs a call.
          max_waiting: jobs that may wait; more are refused.
          timeout_s: a job that has waited longer is not begun.
        """
        self._work, self._max_batch, self._timeout_s = work, max_batch, timeout_s
        self._jobs: queue.Queue = queue.Queue(max_waiting)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    def submit(self, job: Job) -> concurrent.futures.Future[Result]:
        """Hands a job in; the future gets its result or its exception.

        Raises:
          BusyError: too much is waiting.
        """
        future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        try:
            if self._stopped:
                raise BusyError("the service is stopping")
            self._jobs.put_nowait((job, future, time.monotonic() + self._timeout_s))
        except queue.Full:
            raise BusyError("too many requests are waiting") from None
        return future

    def stop(self) -> None:
        """Does what waits, then ends the thread."""
        self._stopped = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            waiting = [self._jobs.get()]
            while len(waiting) < self._max_batch:
                try:
                    waiting.append(self._jobs.get_nowait())
                except queue.Empty:
                    break
            self._do([entry for entry in waiting if entry is not None])
            if None in waiting:
                return

    def _do(self, entries: list) -> None:
        live = []
        for job, future, deadline in entries:
            if not future.set_running_or_notify_cancel():
                continue  # the caller is gone
            if time.monotonic() > deadline:
                future.set_exception(BusyError("the request has waited too long"))
            else:
                live.append((job, future))
        if not live:
            return
        try:
            results = self._work([job for job, _ in live])
        except Exception as error:
            results = [error] * len(live)
        for (_, future), result in zip(live, results, strict=True):
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
