"""rclpy's executors, for nodes whose publishers and subscriptions come and go while they spin."""

import logging

from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import MultiThreadedExecutor

logger = logging.getLogger(__name__)


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
