"""Inference in its own thread: always on the newest observation, with every frame kept for the
history."""

import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from typing import Protocol, TypeVar

from robovlms_ros.core.types import ActionChunk, ChunkTiming, Observation

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# frames kept while one inference runs; older ones no longer matter to any history
MAX_WAITING = 256


class InferenceSession(Protocol):
    """Interface of a policy session; only the worker's thread calls it."""

    def reset(self) -> None: ...
    def observe(self, observation: Observation) -> None: ...
    def predict_action_chunk(self, observation: Observation) -> ActionChunk: ...
    def finish(self) -> None: ...


class InferenceThread:
    """A daemon thread that runs jobs one after the other. CUDA's handles, compiled code and graphs
    belong to the thread that made them: a policy is prepared in the thread that will run it.

    It ends with `close`, or when nothing holds this object any more.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._jobs,), name="inference", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """True for a caller in this thread."""
        return threading.current_thread() is self._thread

    def start(self, job: Callable[[], None]) -> None:
        """Have `job` run after the earlier ones."""
        self._jobs.put(job)

    def run(self, job: Callable[[], Result]) -> Result:
        """Wait for the result of `job`; raises its exception."""
        future: Future[Result] = Future()

        def complete() -> None:
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)

        self.start(complete)
        return future.result()

    def close(self, timeout: float | None = None) -> bool:
        """End the thread after its jobs. True when it has ended."""
        self._jobs.put(None)
        if not self.is_current:
            self._thread.join(timeout)
        return not self.alive


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    # Holds no InferenceThread, which could not be collected otherwise.
    while (job := jobs.get()) is not None:
        job()
        del job


class InferenceWorker:
    """Runs a session. Both callbacks come from the worker's thread, one at a time.

    now: the caller's clock, ns; it only labels when inference began and ended.
    on_chunk: called with each chunk that no `reset` overtook.
    on_error: called with whatever the session or `on_chunk` raised, out of memory included; the
        thread goes on.
    period_ns: shortest distance between the stamps of two observations that are inferred.
    thread: where the session was prepared; None starts one. It ends with the worker.
    """

    def __init__(
        self,
        session: InferenceSession,
        now: Callable[[], int],
        on_chunk: Callable[[ActionChunk], None],
        on_error: Callable[[Exception], None],
        period_ns: int = 0,
        thread: InferenceThread | None = None,
    ) -> None:
        self._session = session
        self._now = now
        self._on_chunk = on_chunk
        self._on_error = on_error
        self._period_ns = period_ns
        self._condition = threading.Condition()
        self._waiting: deque[Observation] = deque(maxlen=MAX_WAITING)
        self._epoch = 0
        self._stopping = False
        self._inferring_since_ns: int | None = None
        self._thread = thread or InferenceThread()
        self._thread.start(self._run)

    @property
    def inferring_since_ns(self) -> int | None:
        """Start time of the inference in progress; None between two."""
        return self._inferring_since_ns

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.alive

    def submit(self, observation: Observation) -> None:
        """Hand over a frame; never blocks on inference."""
        with self._condition:
            self._waiting.append(observation)
            self._condition.notify()

    def reset(self) -> None:
        """Forget what waits, discard what is in flight, and reset the session before the next
        frame."""
        with self._condition:
            self._waiting.clear()
            self._epoch += 1

    def stop(self, timeout: float | None = None) -> bool:
        """End the thread after the inference in progress, whose chunk is discarded. True when it
        has ended."""
        with self._condition:
            self._stopping = True
            self._epoch += 1
            self._condition.notify()
        return self._thread.close(timeout)

    def _run(self) -> None:
        session_epoch = 0
        inferred_ns = None
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                frames = list(self._waiting)
                epoch = self._epoch
                self._waiting.clear()
            newest = frames[-1]
            try:
                if epoch != session_epoch:
                    self._session.reset()
                    session_epoch = epoch
                    inferred_ns = None
                for frame in frames[:-1]:
                    self._session.observe(frame)
                if inferred_ns is not None and 0 <= newest.stamp_ns - inferred_ns < self._period_ns:
                    self._session.observe(newest)
                    continue
                inferred_ns = newest.stamp_ns
                self._infer(newest, epoch)
            except Exception as error:
                self._report(error, epoch)

    def _infer(self, observation: Observation, epoch: int) -> None:
        began = self._inferring_since_ns = self._now()
        try:
            chunk = self._session.predict_action_chunk(observation)
        finally:
            self._inferring_since_ns = None
        chunk = replace(chunk, timing=ChunkTiming(observation.stamp_ns, began, self._now()))
        if epoch == self._epoch:
            self._on_chunk(chunk)
            self._session.finish()  # what no chunk had to wait for

    def _report(self, error: Exception, epoch: int) -> None:
        if epoch != self._epoch:
            logger.info("an inference that a reset had overtaken failed: %s", error)
            return
        try:
            self._on_error(error)
        except Exception:
            logger.exception("the error callback failed on %r", error)
