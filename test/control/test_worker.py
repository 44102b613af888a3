"""Inference in its own thread.

- the newest observation is inferred, every other one is kept for the history, in order;
- submitting never waits for an inference; chunks carry when they were made;
- a reset discards what waits and what is in flight, and resets the session before its next use;
- what the session put off is done once the chunk was handed over, not before, and not for a chunk that was discarded;
- errors, out of memory included, reach on_error, and the thread goes on;
- observations closer than the period are kept, not inferred; stop ends the thread;
- a session is prepared in the thread that infers; a thread that nothing holds ends.
"""

import gc
import threading

import numpy as np
import pytest

from robovlms_ros.core.types import ActionChunk, ActionSpec, Observation
from robovlms_ros.inference.worker import InferenceThread, InferenceWorker

SPEC = ActionSpec("eef_delta", "base", "rotation_vector", "chained", 0.05)
SOON = 10.0  # s, only reached when something is broken


def observation(stamp_ns):
    return Observation(stamp_ns, {}, "lift")


class FakeSession:
    def __init__(self):
        self.calls, self.begun, self.go_on, self.raises = [], threading.Semaphore(0), threading.Semaphore(0), None
        self.finish = lambda: None

    def reset(self):
        self.calls.append("reset")

    def observe(self, frame):
        self.calls.append(frame.stamp_ns)

    def predict_action_chunk(self, frame):
        self.calls.append(("predict", frame.stamp_ns))
        self.begun.release()
        assert self.go_on.acquire(timeout=SOON)
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error
        return ActionChunk(frame.stamp_ns, np.zeros((2, 7)), SPEC, frame.instruction, "fake")


class Bench:
    def __init__(self, period_ns=0):
        self.session, self.chunks, self.errors = FakeSession(), [], []
        self.news, self.now_ns = threading.Semaphore(0), 100
        self.worker = InferenceWorker(self.session, lambda: self.now_ns, self.take, self.fail, period_ns)

    def take(self, chunk):
        self.chunks.append(chunk)
        self.news.release()

    def fail(self, error):
        self.errors.append(error)
        self.news.release()

    def infer(self, stamp_ns):
        """Submit, and return once the session is in the middle of it."""
        self.worker.submit(observation(stamp_ns))
        assert self.session.begun.acquire(timeout=SOON)

    def finish(self):
        """Let the inference end, and return once a callback has run."""
        self.session.go_on.release()
        assert self.news.acquire(timeout=SOON)


@pytest.fixture
def make_bench():
    benches = []

    def make(**options):
        benches.append(Bench(**options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.session.go_on.release(100)
        assert bench.worker.stop(SOON)


def test_the_newest_is_inferred_and_the_others_are_kept(make_bench):
    bench = make_bench()
    bench.infer(1)
    for stamp in (2, 3, 4, 5):
        bench.worker.submit(observation(stamp))
    bench.finish()
    assert bench.session.begun.acquire(timeout=SOON)
    bench.finish()
    assert bench.session.calls == [("predict", 1), 2, 3, 4, ("predict", 5)]
    assert [chunk.stamp_ns for chunk in bench.chunks] == [1, 5]


def test_chunks_carry_when_they_were_made(make_bench):
    bench = make_bench()
    bench.infer(1)
    assert bench.worker.inferring_since_ns == 100
    bench.now_ns = 250
    bench.finish()
    timing = bench.chunks[0].timing
    assert (timing.image_ns, timing.inference_start_ns, timing.inference_end_ns) == (1, 100, 250)
    assert bench.worker.inferring_since_ns is None


def test_reset_discards_what_waits_and_what_is_in_flight(make_bench):
    bench = make_bench()
    bench.infer(1)
    bench.worker.submit(observation(2))
    bench.worker.reset()
    bench.worker.submit(observation(3))
    bench.session.go_on.release()
    assert bench.session.begun.acquire(timeout=SOON)
    bench.finish()
    assert bench.session.calls == [("predict", 1), "reset", ("predict", 3)]
    assert [chunk.stamp_ns for chunk in bench.chunks] == [3]


@pytest.mark.parametrize(
    "error", [ValueError("bad"), MemoryError("no memory left"), RuntimeError("CUDA out of memory")]
)
def test_errors_are_reported_and_the_thread_goes_on(make_bench, error):
    bench = make_bench()
    bench.session.raises = error
    bench.infer(1)
    bench.finish()
    bench.infer(2)
    bench.finish()
    assert bench.errors == [error] and [chunk.stamp_ns for chunk in bench.chunks] == [2]


def test_the_chunk_leaves_before_the_rest_is_done(make_bench):
    bench = make_bench()
    finished = threading.Semaphore(0)

    def finish():
        bench.session.calls.append(("finish", [chunk.stamp_ns for chunk in bench.chunks]))
        finished.release()

    bench.session.finish = finish
    bench.infer(1)
    bench.worker.reset()
    bench.session.go_on.release()
    bench.infer(2)
    bench.finish()
    assert finished.acquire(timeout=SOON)
    assert bench.session.calls == [("predict", 1), "reset", ("predict", 2), ("finish", [2])]


def test_an_error_that_a_reset_overtook_is_not_reported(make_bench):
    bench = make_bench()
    bench.session.raises = ValueError("bad")
    bench.infer(1)
    bench.worker.reset()
    bench.session.go_on.release()
    bench.infer(2)
    bench.finish()
    assert bench.errors == [] and [chunk.stamp_ns for chunk in bench.chunks] == [2]


def test_a_failing_callback_does_not_end_the_thread(make_bench):
    bench = make_bench()
    bench.take, original = None, bench.take
    bench.worker._on_chunk = lambda chunk: original(chunk) or 1 / 0
    bench.infer(1)
    bench.finish()
    assert bench.news.acquire(timeout=SOON)
    assert isinstance(bench.errors[0], ZeroDivisionError)
    assert bench.worker.alive


def test_observations_closer_than_the_period_are_only_kept(make_bench):
    bench = make_bench(period_ns=100)
    bench.infer(1000)
    bench.worker.submit(observation(1050))
    bench.finish()
    bench.infer(1100)
    bench.finish()
    assert bench.session.calls == [("predict", 1000), 1050, ("predict", 1100)]


def test_stop_discards_what_is_in_flight_and_ends_the_thread(make_bench):
    bench = make_bench()
    bench.infer(1)
    assert not bench.worker.stop(0.0)
    bench.session.go_on.release()
    assert bench.worker.stop(SOON) and not bench.worker.alive
    assert bench.chunks == []


def test_a_session_is_prepared_in_the_thread_that_infers():
    thread = InferenceThread()
    prepared = thread.run(threading.get_ident)
    with pytest.raises(ValueError, match="no graph"):
        thread.run(lambda: (_ for _ in ()).throw(ValueError("no graph")))
    seen = []

    class Session(FakeSession):
        def predict_action_chunk(self, frame):
            seen.append(threading.get_ident())
            return ActionChunk(frame.stamp_ns, np.zeros((2, 7)), SPEC, frame.instruction, "fake")

    news = threading.Semaphore(0)
    worker = InferenceWorker(Session(), lambda: 0, lambda chunk: news.release(), lambda error: None, thread=thread)
    worker.submit(observation(1))
    assert news.acquire(timeout=SOON)
    assert seen == [prepared] and prepared != threading.get_ident()
    assert worker.stop(SOON) and not thread.alive


def test_a_thread_that_nothing_holds_ends():
    thread = InferenceThread()
    inner = thread._thread
    del thread
    gc.collect()
    inner.join(SOON)
    assert not inner.is_alive()
