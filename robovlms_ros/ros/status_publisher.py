"""Publishes the node's state: the status on every change and twice a second, /diagnostics
once a second."""

import threading
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock

from robovlms_ros.core.text_safety import RepeatFilter, printable, without_numbers
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.observation_subscriber import LATCHED
from robovlms_ros.ros.spinning import QUIET_PUBLISHER
from robovlms_ros.ros.status import TEXT_LIMIT, NodeStatus, diagnostics_message, status_message

PERIOD = 0.5


class StatusPublisher:
    """Publishes one node's report, from any thread; a status never overtakes a newer one.

    watched: parts of /diagnostics beside the policy: name -> what is wrong, empty when
        nothing is.
    clock: paces the reports, so that they go on while simulated time is paused.
    """

    def __init__(self, node: PlainLifecycleNode, report: NodeStatus, watched: Callable[[], dict[str, str]],
                 clock: Clock) -> None:
        self._node = node
        self._report = report
        self._watched = watched
        self._lock = threading.Lock()
        self._said: tuple[object, ...] = ()
        self._logged = ""
        self._clock = clock
        self._repeats = RepeatFilter()
        self._beats = 0
        self._status = node.create_publisher(PolicyStatus, "~/status", LATCHED, event_callbacks=QUIET_PUBLISHER)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10,
                                                   event_callbacks=QUIET_PUBLISHER)
        node.create_timer(PERIOD, self._on_beat, callback_group=node.work_group, clock=clock)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def log_edge(self, line: str) -> None:
        """Log a line about a change; the same one, numbers aside, again only after a while."""
        if self._repeats.passes(line, self._clock.now().nanoseconds / NANOSECONDS):
            self._node.get_logger().info(printable(line, TEXT_LIMIT))

    def publish_on_change(self) -> None:
        """Publish the status if it must be received at once."""
        if self._report.change_key() != self._said:
            self.publish()

    def publish(self) -> None:
        """Publish the status."""
        with self._lock:
            self._said = self._report.change_key()
            line = f"{self._report.state}: {self._report.detail}"
            # Edges are logged, not levels: the same complaint with another number is no news.
            edge = without_numbers(line)
            if edge != self._logged and self._report.detail:
                self.log_edge(line)
            self._logged = edge
            self._status.publish(status_message(self._report, self._now_ns()))

    def _on_beat(self) -> None:
        self.publish()
        self._beats += 1
        if self._beats % round(1.0 / PERIOD) == 0:
            self._diagnostics.publish(diagnostics_message(
                self._report, self._node.get_fully_qualified_name(), self._watched(), self._now_ns()))
