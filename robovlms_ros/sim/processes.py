"""The scenes of a bench in several processes of one torch thread each; the results are those of one process."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from robovlms_ros.sim.scenes import Bench, BenchSettings, Scene
from robovlms_ros.sim.tasks.evaluate import TaskEpisode
from robovlms_ros.sim.world import WorldError

Done = tuple[Scene, list[TaskEpisode]]

_bench: Bench | None = None
"""The one of a worker process."""


def run_scenes(settings: BenchSettings, scenes: Sequence[Scene], jobs: int) -> Generator[Done, None, None]:
    """Each scene with its episodes, as it is done: with one job in this process and in order, else in any order.

    Close the generator to stop early; the scenes under way are then lost. Raises WorldError when a process is killed.
    """
    if min(jobs, len(scenes)) <= 1:
        yield from _in_this_process(settings, scenes)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(scenes)), context, _start)
    pending: dict[Future[list[TaskEpisode]], Scene] = {}
    waiting = iter(scenes)
    try:
        # No more than run at once: what has been handed over cannot be taken back when the user stops.
        while True:
            for scene in islice(waiting, jobs - len(pending)):
                pending[pool.submit(_run, settings, scene)] = scene
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future.result()
    except BrokenProcessPool as error:
        raise WorldError(
            f"one of {jobs} processes was killed, perhaps for want of memory: use fewer --jobs."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_this_process(settings: BenchSettings, scenes: Sequence[Scene]) -> Generator[Done, None, None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order are other sums
    bench = Bench(settings)
    try:
        for scene in scenes:
            yield scene, bench.run(scene)
    finally:
        bench.close()
        torch.set_num_threads(threads)


def _start() -> None:
    """In a new process: one torch thread, a quiet end with Ctrl-C, and with the parent, however that ends."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow the parent", daemon=True).start()


def _run(settings: BenchSettings, scene: Scene) -> list[TaskEpisode]:
    global _bench
    if _bench is None:
        _bench = Bench(settings)
    return _bench.run(scene)
