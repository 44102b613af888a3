"""Recordings read by several processes (`data.jobs`)."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.data.episodes import DataError

T = TypeVar("T")


def in_processes(
    function: Callable[..., T],
    tasks: Sequence[tuple[Any, ...]],
    jobs: Any,
    begin: Callable[..., object] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Iterator[T]:
    """`function(*task)` of each task, in order, by at most `jobs` processes; one is this one.

    begin: called with `arguments` in each process before its first task. Raises ConfigError for
    `jobs` that is no whole number of 1 or more, DataError where a process was killed.
    """
    if not isinstance(jobs, int) or isinstance(jobs, bool) or jobs < 1:
        raise ConfigError(f"data.jobs = {jobs!r}: must be a whole number, 1 or more.")
    if min(jobs, len(tasks)) <= 1:
        if begin is not None:
            begin(*arguments)
        yield from (function(*task) for task in tasks)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, begin, arguments) as pool:
        try:
            yield from pool.map(function, *zip(*tasks, strict=True))
        except BrokenProcessPool as error:
            raise DataError(
                "a process that read the data was killed, most likely for memory: set data.jobs "
                f"below {jobs}."
            ) from error
