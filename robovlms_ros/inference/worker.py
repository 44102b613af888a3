"""Inference in its own thread: always on the newest observation, with every frame kept for the
history."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from robovlms_ros.core.types import ActionChunk, ChunkTiming, Observation

logger = logging.getLogger(__name__)

# frames kept while one inference runs; older ones no longer matter to any history
MAX_WAITING = 256


class InferenceSession(Protocol):
    """Interface of a policy session; only the worker's thread calls it."""

    def reset(self) -> None: ...
    def observe(self, observation: Observation) -> None: ...
    def predict_action_chunk(self, observation: Observation) -> ActionChunk: ...
    def finish(self) -> None: ...


class InferenceWorker:
    """Runs a session. Both callbacks come from the worker's thread, one at a time.

    now: the caller's clock, ns; it only labels when inference began and ended.
    on_chunk: called with each chunk that no `reset` overtook.
    on_error: called with whatever the session or `on_chunk` raised, out of memory included; the
        thread goes on.
    period_ns: shortest distance between the stamps of two observations that are inferred.
    """

    def __init__(
        self,
        session: InferenceSession,
        now: Callable[[], int],
        on_chunk: Callable[[ActionChunk], None],
        on_error: Callable[[Exception], None],
        period_ns: int = 0,
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
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    @property
    def inferring_since_ns(self) -> int | None:
        """Start time of the inference in progress; None between two."""
        return self._inferring_since_ns

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

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
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)
        return not self._thread.is_alive()

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
