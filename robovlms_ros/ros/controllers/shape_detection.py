"""Detection of the trajectory messages that a joint_trajectory_controller expects, from its
parameters.

Builds that blend a new trajectory into the running one have the parameter
`positions_upsampling.enable`; in these `allow_trajectory_replacement` turns the blending on and
off, at run time too. (6.8 and 6.9.0 use that name for something else.)
"""

import os
import threading
from typing import Literal

from rcl_interfaces.msg import ParameterEvent
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import qos_profile_parameter_events
from rclpy.task import Future

from robovlms_ros.core.types import TrajectoryShape

MARKER = "positions_upsampling.enable"
SWITCH = "allow_trajectory_replacement"
PERIOD = 0.5
"""s between attempts to reach the parameter services."""

PATIENCE = 6
"""Attempts without an answer after which the distribution decides, with a warning."""

FORGETFUL = ("humble", "iron", "jazzy", "kilted")
"""Distributions whose own ros2_controllers forget the running trajectory; so do those of wheels,
which set no ROS_DISTRO."""


class ShapeDetection:
    """The trajectory shape of one controller, detected without waiting for anything; safe from any
    thread.

    controller: the full name of the controller's node.
    wanted: the robot's `controller.trajectory_shape`; only `auto` detects.
    """

    def __init__(
        self, node: Node, controller: str, wanted: Literal["auto", "self_splice", "replacement"]
    ) -> None:
        self._node = node
        self._logger = node.get_logger()
        self.controller = controller
        self._lock = threading.Lock()
        self._attempts = 0
        self._future: Future | None = None
        self._answered = False
        self._can_blend = False
        self._distribution = os.environ.get("ROS_DISTRO", "")
        self._entities: list[tuple[object, object]] = []
        if wanted != "auto":
            self._shape: TrajectoryShape = wanted
            self._found = "controller.trajectory_shape of the robot"
            self._log(warn=False)
            return
        known = not self._distribution or self._distribution in FORGETFUL
        self._shape = "self_splice" if known else "replacement"
        self._found = f"{self.controller} was not reached yet, {self._by_distribution()}"
        self._list = node.create_client(ListParameters, f"{self.controller}/list_parameters")
        self._get = node.create_client(GetParameters, f"{self.controller}/get_parameters")
        events = node.create_subscription(
            ParameterEvent, "/parameter_events", self._on_event, qos_profile_parameter_events
        )
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        timer = node.create_timer(PERIOD, self._on_timer, clock=steady)
        self._entities = [
            (node.destroy_timer, timer),
            (node.destroy_subscription, events),
            (node.destroy_client, self._list),
            (node.destroy_client, self._get),
        ]
        self._request()

    @property
    def shape(self) -> TrajectoryShape:
        """The shape of the next command."""
        with self._lock:
            return self._shape

    @property
    def text(self) -> str:
        """The shape and the reason for it, one line."""
        with self._lock:
            return f"{self._shape}: {self._found}"

    def _by_distribution(self) -> str:
        return f"ROS_DISTRO is {self._distribution or 'not set'}"

    def _on_timer(self) -> None:
        ready = self._list.service_is_ready() and self._get.service_is_ready()
        if self._answered and not ready:
            # The controller is gone; another build may come in its place.
            self._answered = False
            self._attempts = 0
        if self._answered:
            return
        self._attempts += 1
        if self._attempts == PATIENCE:
            found = f"{self.controller} answers no parameter service, {self._by_distribution()}"
            self._set(self._shape, found, warn=True)
        if ready and (self._future is None or self._attempts % PATIENCE == 0):
            self._request()

    def _request(self) -> None:
        if not self._list.service_is_ready():
            return
        request = ListParameters.Request(prefixes=["positions_upsampling", SWITCH])
        self._future = self._list.call_async(request)
        self._future.add_done_callback(self._on_list)

    def _on_list(self, future: Future) -> None:
        answer = future.result()
        if answer is None or future is not self._future:
            return
        self._future = None
        names = set(answer.result.names)
        self._can_blend = MARKER in names and SWITCH in names
        if not self._can_blend:
            self._answered = True
            self._set("self_splice", f"{self.controller} has no {MARKER}: it does not blend")
            return
        self._future = self._get.call_async(GetParameters.Request(names=[SWITCH]))
        self._future.add_done_callback(self._on_get)

    def _on_get(self, future: Future) -> None:
        answer = future.result()
        if future is not self._future:
            return
        self._future = None
        if answer is not None and answer.values:
            self._answered = True
            self._switched(answer.values[0].bool_value)

    def _on_event(self, event: ParameterEvent) -> None:
        if event.node != self.controller:
            return
        if event.new_parameters:
            # The controller was started again: the timer requests until it has declared them all.
            self._answered = False
            self._attempts = 0
            self._future = None
        for parameter in event.changed_parameters:
            if parameter.name == SWITCH and self._answered and self._can_blend:
                self._switched(parameter.value.bool_value)

    def _switched(self, blends: bool) -> None:
        state = f"{self.controller} has {MARKER}, {SWITCH} is {str(blends).lower()}"
        self._set("replacement" if blends else "self_splice", state)

    def _set(self, shape: TrajectoryShape, found: str, warn: bool = False) -> None:
        with self._lock:
            changed = (shape, found) != (self._shape, self._found)
            self._shape = shape
            self._found = found
        if changed:
            self._log(warn)

    def _log(self, warn: bool) -> None:
        line = f"trajectories are sent as {self.text}"
        if warn:
            line += ". Set controller.trajectory_shape in the robot's YAML where that is wrong."
            self._logger.warning(line)
        else:
            self._logger.info(line)

    def close(self) -> None:
        """Destroy the clients, the subscription and the timer."""
        for destroy, entity in self._entities:
            destroy(entity)  # type: ignore[operator]
        self._entities = []
