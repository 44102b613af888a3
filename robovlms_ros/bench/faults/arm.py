"""An arm without physics for benchmarks: real messages, the model of joint_trajectory_controller,
recorded.

Its joints follow the controller's command with a first-order lag. Hooks bend what it publishes.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control.robot import RobotSpec, load_robot
from robovlms_ros.control.trajectory_controller_model import (
    TrajectoryController,
    TrajectoryRejected,
)
from robovlms_ros.core.types import NANOSECONDS, Array
from robovlms_ros.ros.messages import to_time, trajectory_from_message

JointHook = Callable[[JointState], JointState | None]
ImageHook = Callable[[Image], Image | None]

PERIOD = 0.005  # s, of the controller
PERIOD_NS = round(PERIOD * NANOSECONDS)
STATES_EVERY = 2  # periods
IMAGES_EVERY = 10
LAG = 0.02  # s
DELAY = 0.03
"""s: control runs so far behind the clock, with each message at its time of arrival, as a real-time
machine would."""
SIZE = 96
CAMERAS = ("static", "wrist")


class FaultArm(Node):
    """See the module's docstring. robot: with a trajectory controller for its arm and its gripper.

    cameras: names; their pictures are noise, unless a derived class draws them (`_picture`). start:
        (J,) rad; None is the robot's home.
    joint_hook, image_hook: applied to each message before it is published; None publishes nothing.
    silent_camera: name of a camera that publishes nothing; empty for none.
    controller: the controller's node, to be spun and destroyed beside this one.
    frozen: True stops the joints where they are, whatever the controller commands.
    received: the number of commands that have arrived. delayed: s that the
        machine delayed a command, the longest: from the publisher to the arrival, and until it was
        taken up. Its clock is published on /clock where
        `simulated_time` is true.
    """

    def __init__(
        self, simulated_time: bool = False, robot: RobotSpec | None = None, cameras: Sequence[str] = CAMERAS,
        start: Array | None = None,
    ) -> None:
        super().__init__("fault_arm")
        self.robot = robot or load_robot("panda")
        topic = self.robot.controller.topic  # type: ignore[union-attr]
        self.controller = Node(topic.rpartition("/")[0])
        self.gripper_position = self.robot.gripper.open_position  # type: ignore[union-attr]
        self.joint_hook: JointHook = lambda message: message
        self.image_hook: ImageHook = lambda message: message
        self.silent_camera = ""
        self.frozen = False
        self.simulated_time = simulated_time
        self._jumps = [(0.0, 0)]
        self._epoch = time.monotonic()
        self._epoch_ns = time.time_ns()
        self.rejected: list[str] = []
        self.received = 0
        self.delayed = 0.0
        self.gripper_closes_s = 0.0
        self._controller = TrajectoryController(self.robot.joints)
        self.positions: Array = np.array(self.robot.home if start is None else start)
        self._inbox: list[tuple[int, JointTrajectory]] = []
        self._lock = threading.Lock()
        self._times: list[float] = []
        self._commands: list[Array] = []
        self._measured: list[Array] = []
        self._own: list[int] = []
        self._states = self.create_publisher(JointState, "joint_states", 10)
        self._cameras = {
            name: self.create_publisher(Image, f"{name}/image_raw", qos_profile_sensor_data)
            for name in cameras
        }
        self._clock = self.create_publisher(Clock, "/clock", 10)
        self._pixels = np.random.default_rng(0)
        self._listening = None
        self.listen(True)
        gripper_topic = self.robot.gripper.topic  # type: ignore[union-attr]
        self.create_subscription(JointTrajectory, gripper_topic, self._on_gripper, 10)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="fault arm", daemon=True)
        self._thread.start()

    def now_ns(self) -> int:
        """The arm's clock, ns."""
        return self._clock_at(time.monotonic())

    def jump_clock(self, seconds: float) -> None:
        """Add seconds to the arm's clock from now on."""
        self._jumps.append((time.monotonic(), self._jumps[-1][1] + round(seconds * NANOSECONDS)))

    def _clock_at(self, monotonic: float) -> int:
        """The arm's clock at a monotonic time: one clock for control and record, whatever the
        interpreter delays."""
        offset = next(offset for since, offset in reversed(self._jumps) if monotonic >= since)
        return self._system_at(monotonic) + offset

    def _system_at(self, monotonic: float) -> int:
        """The system's clock at a monotonic time, ns."""
        return self._epoch_ns + round((monotonic - self._epoch) * NANOSECONDS)

    def listen(self, listening: bool) -> None:
        """Start or stop the controller's subscription."""
        if self._listening is not None:
            self.controller.destroy_subscription(self._listening)
            self._listening = None
        if listening:
            topic = self.robot.controller.topic  # type: ignore[union-attr]
            self._listening = self.controller.create_subscription(
                JointTrajectory, topic, self._on_command, 10
            )

    def restart_controller(self) -> None:
        """The controller forgets its trajectory and what it has not yet taken up, and holds the
        measured pose."""
        with self._lock:
            self._inbox.clear()
            self._controller.reset()
            self._own.append(len(self._commands))

    def freeze(self) -> None:
        """Stop the joints at once, as brakes do; the controller goes on."""
        with self._lock:
            self.frozen = True
            self._own.append(len(self._commands))

    def speed(self) -> float:
        """The fastest joint's commanded speed, rad/s."""
        with self._lock:
            if len(self._commands) < 4:
                return 0.0
            moved = np.abs(self._commands[-1] - self._commands[-4]).max()
            return float(moved / (self._times[-1] - self._times[-4]))

    def mark(self) -> int:
        """The index of the next recorded period."""
        with self._lock:
            return len(self._times)

    def recorded(self, since: int) -> tuple[Array, Array, Array, list[int]]:
        """Since an index: times (N,) s, commanded and measured joints (N, 7) rad, and the
        controller's own restarts."""
        with self._lock:
            own = [index - since for index in self._own if index >= since]
            return (
                np.array(self._times[since:]),
                np.array(self._commands[since:]),
                np.array(self._measured[since:]),
                own,
            )

    def close(self) -> None:
        """End the control loop."""
        self._running = False
        self._thread.join()

    def _on_command(self, message: JointTrajectory, info: dict[str, Any]) -> None:
        arrived_ns = info["received_timestamp"]
        with self._lock:
            self.received += 1
            late_ns = arrived_ns - info["source_timestamp"]
            if self._times:
                late_ns = max(late_ns, self._system_at(self._times[-1]) - arrived_ns)
            self.delayed = max(self.delayed, late_ns / NANOSECONDS)
            self._inbox.append((arrived_ns, message))

    def _on_gripper(self, message: JointTrajectory) -> None:
        closed = self.robot.gripper.position(0.0)  # type: ignore[union-attr]
        if abs(message.points[-1].positions[0] - closed) < 1e-6:
            self.gripper_closes_s = time.monotonic()

    def _run(self) -> None:
        """Control on a grid of PERIOD; late ticks follow at once, at their own times, as on a
        real-time machine."""
        begin = time.monotonic()
        count = 0
        while self._running:
            count += 1
            due = begin + count * PERIOD
            ahead = due + DELAY - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            self._control(due)
            if ahead > -PERIOD:
                # Control is still before a jump of the clock that is already published.
                self._publish(count, self._system_at(due) + self._jumps[-1][1])

    def _control(self, now: float) -> None:
        clock_ns = self._clock_at(now)
        with self._lock:
            while self._inbox and self._inbox[0][0] <= self._system_at(now):
                self._accept(self._inbox.pop(0)[1], clock_ns)
            command = self._controller.update(clock_ns, PERIOD_NS, self.positions, np.zeros_like(self.positions))[0]
            if not self.frozen:
                share = 1 - np.exp(-PERIOD / LAG)
                self.positions = self.positions + (command - self.positions) * share
            self._times.append(now)
            self._commands.append(np.array(command))
            self._measured.append(self.positions.copy())

    def _accept(self, message: JointTrajectory, clock_ns: int) -> None:
        try:
            self._controller.accept(trajectory_from_message(message), clock_ns)
        except TrajectoryRejected as error:
            self.rejected.append(str(error))

    def _publish(self, count: int, clock_ns: int) -> None:
        stamp = to_time(clock_ns)
        if self.simulated_time:
            self._clock.publish(Clock(clock=to_time(self.now_ns())))
        if count % STATES_EVERY == 0:
            names = [*self.robot.joints, self.robot.gripper.joint]  # type: ignore[union-attr]
            state = JointState(name=names, position=[*self.positions.tolist(), self.gripper_position])
            state.header.stamp = stamp
            bent = self.joint_hook(state)
            if bent is not None:
                self._states.publish(bent)
        if count % IMAGES_EVERY == 0:
            for name, publisher in self._cameras.items():
                if name == self.silent_camera:
                    continue
                image = Image(width=SIZE, height=SIZE, encoding="rgb8", step=3 * SIZE)
                image.data = self._picture(name).tobytes()
                image.header.stamp = stamp
                changed = self.image_hook(image)
                if changed is not None:
                    publisher.publish(changed)

    def _picture(self, camera: str) -> NDArray[np.uint8]:
        """(SIZE, SIZE, 3) the camera's next picture."""
        return self._pixels.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
