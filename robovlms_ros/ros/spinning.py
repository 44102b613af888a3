"""rclpy's executors, for nodes whose publishers and subscriptions come and go while they spin."""

import logging
import sys
import threading
from typing import Any

from rclpy._rclpy_pybind11 import InvalidHandle, RCLError
from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import (
    ConditionReachedException,
    ExternalShutdownException,
    MultiThreadedExecutor,
    ShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.subscription import Subscription
from rclpy.task import Task

logger = logging.getLogger(__name__)

# rclpy waits for two QoS events of every publisher and subscription at every wake-up, which is half
# of what a wake-up costs, hundreds of times a second. They only log that two ends do not fit: the
# other end logs it too.
QUIET_PUBLISHER = PublisherEventCallbacks(use_default_callbacks=False)
QUIET_SUBSCRIPTION = SubscriptionEventCallbacks(use_default_callbacks=False)

SWITCH_INTERVAL = 0.001
BREATH = 0.002  # s that the spinning thread leaves to callbacks that wait for a thread, at most


def share_the_interpreter() -> None:
    """Let Python's threads take turns after 1 ms: an image must not wait 5 ms for one that shuffles
    joint states."""
    sys.setswitchinterval(SWITCH_INTERVAL)


class PolledGroup(CallbackGroup):
    """The group of subscriptions that are read on demand: no executor waits for them.

    A controller publishes its state in every control cycle; a callback each would wake the node
    up to 1000 times a second for a value that is needed 20 times.
    """

    def can_execute(self, entity: object) -> bool:
        return False

    def beginning_execution(self, entity: object) -> bool:
        return False

    def ending_execution(self, entity: object) -> None:
        pass


def take_newest(subscription: Subscription) -> Any:
    """The message that a subscription of depth 1 holds; None where none came since the last
    call."""
    with subscription.handle:
        taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
    return None if taken is None else taken[0]


class SteadyWaiting:
    """Goes on waiting where rclpy gives up.

    What another thread destroys between rclpy's listing of it and its waiting for it makes the
    wait, and with it the whole spin, fail with RCLError or InvalidHandle. The next listing no
    longer has it. What a callback raises comes another way.
    """

    def wait_for_ready_callbacks(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """As the executor's own."""
        while True:
            try:
                return super().wait_for_ready_callbacks(*args, **kwargs)  # type: ignore[misc]
            except (RCLError, InvalidHandle) as error:
                logger.debug("waiting again: %s", error)


class SteadySingleThreadedExecutor(SteadyWaiting, SingleThreadedExecutor):
    """A SingleThreadedExecutor that goes on when something is destroyed meanwhile."""


class SteadyExecutor(SteadyWaiting, MultiThreadedExecutor):
    """A MultiThreadedExecutor that goes on when something is destroyed meanwhile, and queues a
    callback once.

    rclpy's hands a callback that waits for a free thread to the pool again at every wake-up: the
    spinning thread then takes the interpreter from the very threads that it waits for, and images
    are lost.
    """

    def __init__(self, num_threads: int) -> None:
        super().__init__(num_threads)
        self._queued: set[Task] = set()
        self._began = threading.Event()

    def _spin_once_impl(  # type: ignore[no-untyped-def]
            self, timeout_sec=None, wait_condition=lambda: False) -> None:
        try:
            task = self.wait_for_ready_callbacks(timeout_sec, None, wait_condition)[0]
        except (ExternalShutdownException, ShutdownException, TimeoutException, ConditionReachedException):
            return
        if task in self._queued:
            self._began.wait(BREATH)
            self._began.clear()
            return
        self._queued.add(task)
        self._futures.append(task)
        self._executor.submit(self._run, task)
        done = [future for future in self._futures if future.done()]
        self._futures = [future for future in self._futures if future not in done]
        for future in done:
            future.result()  # what the callback raised

    def _run(self, task: Task) -> None:
        self._queued.discard(task)  # a callback that is suspended is queued again
        self._began.set()
        task()
