"""The state that a joint_trajectory_controller publishes: its reference, its tracking error, its
silence."""

import threading
from typing import Any

import numpy as np

from robovlms_ros.core.types import NANOSECONDS, RobotState
from robovlms_ros.ros.controllers.base import Context
from robovlms_ros.ros.graph import NEWEST_ONLY
from robovlms_ros.ros.messages import from_time
from robovlms_ros.ros.spinning import QUIET_SUBSCRIPTION, PolledGroup, take_newest


class ControllerStateReader:
    """The newest message of `controller_state`, read on demand; safe from any thread.

    topic: the full name. kind: control_msgs/JointTrajectoryControllerState. A message older than
    the robot's `max_age`, or one without the robot's joints, counts as none.
    """

    def __init__(self, context: Context, topic: str, kind: type) -> None:
        self.topic = topic
        self._node = context.node
        self._joints = context.robot.joints
        self._max_age = context.robot.max_age
        self._lock = threading.Lock()
        self._message: Any = None
        self._read_ns = 0
        self._subscription = context.node.create_subscription(
            kind,
            topic,
            lambda message: None,
            NEWEST_ONLY,
            callback_group=PolledGroup(),
            event_callbacks=QUIET_SUBSCRIPTION,
        )

    def error(self) -> tuple[str, float] | None:
        """The joint furthest from its reference and how far (rad); None without a message."""
        message, age = self._read()
        if message is None or age > self._max_age:
            return None
        errors = np.abs(np.array(message.error.positions, dtype=np.float64))
        if not len(errors) or len(errors) != len(message.joint_names):
            return None
        worst = int(np.argmax(errors))
        return str(message.joint_names[worst]), float(errors[worst])

    def reference(self) -> RobotState | None:
        """The set point (J,) rad at its stamp; None without a message."""
        message, age = self._read()
        if message is None or age > self._max_age:
            return None
        positions = message.reference.positions
        places = dict(zip(message.joint_names, positions, strict=False))
        if len(positions) != len(message.joint_names) or any(j not in places for j in self._joints):
            return None
        chosen = np.array([places[joint] for joint in self._joints], dtype=np.float64)
        if not np.isfinite(chosen).all():
            return None
        return RobotState(from_time(message.header.stamp), chosen)

    @property
    def known(self) -> bool:
        """True once a message has come from a publisher that is still there."""
        return self._read()[0] is not None

    @property
    def silent(self) -> bool:
        """True while the publisher is there and has published nothing for `max_age`, after it had.

        A controller publishes in every cycle while it is active and not at all while it is not.
        """
        message, age = self._read()
        return message is not None and age > self._max_age

    def _read(self) -> tuple[Any, float]:
        """The newest message, None where its publisher is gone, and its age, s."""
        with self._lock:
            now_ns = self._node.get_clock().now().nanoseconds
            newer = take_newest(self._subscription)
            if newer is not None:
                self._message = newer
                self._read_ns = now_ns
            age = (now_ns - self._read_ns) / NANOSECONDS
            if age > self._max_age and not self._node.count_publishers(self.topic):
                self._message = None
            return self._message, age

    def close(self) -> None:
        """Destroy the subscription."""
        with self._lock:
            self._node.destroy_subscription(self._subscription)
