"""rclpy's executors, for nodes whose publishers and subscriptions come and go while they spin."""

import logging
import sys

from rclpy._rclpy_pybind11 import RCLError
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.executors import MultiThreadedExecutor

logger = logging.getLogger(__name__)

# rclpy waits for two QoS events of every publisher and subscription at every wake-up, which is half of what a wake-up
# costs, hundreds of times a second. They only log that two ends do not fit: the other end logs it too.
QUIET_PUBLISHER = PublisherEventCallbacks(use_default_callbacks=False)
QUIET_SUBSCRIPTION = SubscriptionEventCallbacks(use_default_callbacks=False)

SWITCH_INTERVAL = 0.001


def share_the_interpreter() -> None:
    """Let Python's threads take turns after 1 ms: an image must not wait 5 ms for one that shuffles joint states."""
    sys.setswitchinterval(SWITCH_INTERVAL)


class SteadyWaiting:
    """Goes on waiting where rclpy gives up.

    What another thread destroys between rclpy's listing of it and its waiting for it makes the wait, and with it the
    whole spin, fail with RCLError. The next listing no longer has it. What a callback raises comes another way.
    """

    def wait_for_ready_callbacks(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        """As the executor's own."""
        while True:
            try:
                return super().wait_for_ready_callbacks(*args, **kwargs)  # type: ignore[misc]
            except RCLError as error:
                logger.debug("waiting again: %s", error)


class SteadyExecutor(SteadyWaiting, MultiThreadedExecutor):
    """A MultiThreadedExecutor that goes on when something is destroyed meanwhile."""
