"""Subscriptions of the node: cameras, joint states, instruction; checked, synchronised, monitored
for silence."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from robovlms_ros.control.camera_check import image_digest
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.core.text_safety import RepeatFilter, printable, without_numbers
from robovlms_ros.core.types import NANOSECONDS, Observation, ObservationError, RobotState
from robovlms_ros.observations.camera_sync import FrameSet, FrameSync, SyncedFrame
from robovlms_ros.observations.images import RGB, Converter, convert_with_numpy, to_rgb
from robovlms_ros.observations.joint_states import (
    ImplausibleJointState,
    JointPlausibility,
    JointStateBuffer,
    PublisherCheck,
    stamp_of,
)
from robovlms_ros.ros.graph import LATCHED, NEWEST_ONLY, node_names
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.parameters import CameraParameters, NodeParameters
from robovlms_ros.ros.spinning import QUIET_SUBSCRIPTION

JOINT_STATES = qos_profile_sensor_data

KEPT_LONGER = 1.0  # s that joint states are kept beyond the latest use

CONVERTED = ("bgr8", "rgba8", "bgra8", "mono8")
"""Encodings that every release of cv_bridge converts alike."""

JOINTS = "joint_states"
INSTRUCTION = "instruction"
GRIPPER = "gripper"
CLOCKS = "camera and joint_states"

_LOG = logging.getLogger(__name__)


@cache
def pick_converter() -> Converter:
    """(encoding, (H, W, bytes per pixel)) -> (H, W, 3) RGB: cv_bridge's, else the stand-in that
    needs NumPy alone.

    An apt cv_bridge beside a NumPy it was not built for imports and fails at the first image, so it
    is tried first.
    """
    try:
        from cv_bridge.boost.cv_bridge_boost import cvtColor2

        probe = np.zeros((2, 2, 3), np.uint8)
        if cvtColor2(probe, "bgr8", "rgb8").shape != probe.shape:
            raise ImportError("cvtColor2 answers another shape")
    except ImportError as error:
        _LOG.debug("cv_bridge is not used (%s); images are converted with NumPy", error)
        return convert_with_numpy
    except Exception as error:  # whatever a mismatched binary raises, there is a complete stand-in
        _LOG.warning("cv_bridge is installed but does not work here (%s); images are converted with NumPy", error)
        return convert_with_numpy

    def convert(encoding: str, pixels: RGB) -> RGB:
        if encoding not in CONVERTED:
            return convert_with_numpy(encoding, pixels)
        source = pixels.squeeze(-1) if encoding == "mono8" else pixels
        return cvtColor2(np.ascontiguousarray(source), encoding, "rgb8")

    return convert


class ObservationSubscriber:
    """The node's subscriptions and what came over them. Callbacks only convert and store.

    Cameras and joint states have a callback group each: an image, of which only the newest is kept,
    must wait neither behind joint states at 1 kHz nor behind a tick that waits for the inverse
    kinematics.

    cameras: those the policy uses, the reference camera first. needs_state: whether the policy sees
        the arm's state.
    needs_gripper: True where the policy sees the gripper's opening.
    complete_state: fills what kinematics knows (the tool's pose) into a measured state.
    on_observation: called with each complete observation; on_instruction: with each instruction
        that differs.
    instruction_locked: the reason to refuse an instruction on the topic now, empty for none;
    called with its text.
    """

    def __init__(
        self, node: PlainLifecycleNode, parameters: NodeParameters, robot: RobotSpec,
        cameras: tuple[CameraParameters, ...], needs_state: bool, monitor: SafetyMonitor,
        complete_state: Callable[[RobotState], RobotState], on_observation: Callable[[Observation], None],
        on_instruction: Callable[[str], None],
        needs_gripper: bool = False,
        instruction_locked: Callable[[str], str] = lambda text: "",
    ) -> None:
        self._needs_state = needs_state
        gripper = robot.gripper if needs_gripper else None
        self._gripper_joint = None if gripper is None else gripper.joint
        self._monitor = monitor
        self._node = node
        self._parameters = parameters
        self._max_age = parameters.max_age or robot.max_age
        self._cameras = cameras
        self._complete_state = complete_state
        self._on_observation = on_observation
        self._on_new_instruction = on_instruction
        self._instruction_locked = instruction_locked
        self._convert = pick_converter()
        self._lock = threading.Lock()
        # images and joint states both complete observations: they keep their order
        self._handing_on = threading.Lock()
        # The answer to an image needs the arm at the image's stamp, however late it may come.
        span = max(robot.max_age, robot.max_latency) + parameters.joint_states_tolerance + KEPT_LONGER
        plausibility = JointPlausibility(robot.joints, robot.lower(), robot.upper(), np.array(robot.limits.velocity),
                                         robot.max_start_jump)
        self._joints = JointStateBuffer(robot.joints, robot.gripper, span, plausibility)
        self._arm_joints = frozenset(robot.joints)
        self._publishers = PublisherCheck()
        self._frames = FrameSync(tuple(camera.name for camera in cameras), parameters.camera_tolerance)
        self._faults: dict[str, str] = {}
        self._repeats = RepeatFilter()
        self._pending: deque[FrameSet] = deque(maxlen=8)
        self._last_set_ns = 0
        self.instruction = parameters.instruction.strip()
        check_instruction(self.instruction or "none yet", parameters.max_instruction_length)
        monitor.instruction(self.instruction)
        self._subscriptions = self._subscribe()

    def _subscribe(self) -> list[Subscription]:
        node = self._node
        parameters = self._parameters
        camera_group = MutuallyExclusiveCallbackGroup()
        joints_group = MutuallyExclusiveCallbackGroup()
        subscriptions = [
            node.create_subscription(JointState, parameters.joint_states_topic, self._on_joints, JOINT_STATES,
                                     callback_group=joints_group, event_callbacks=QUIET_SUBSCRIPTION),
            node.create_subscription(String, parameters.instruction_topic, self._on_instruction, LATCHED,
                                     callback_group=node.work_group),
        ]
        for camera in self._cameras:
            compressed = camera.transport == "compressed"
            subscriptions.append(node.create_subscription(
                CompressedImage if compressed else Image,
                f"{camera.topic}/compressed" if compressed else camera.topic,
                lambda message, name=camera.name, encoding=camera.encoding: self._on_image(name, message, encoding),
                NEWEST_ONLY,
                callback_group=camera_group, event_callbacks=QUIET_SUBSCRIPTION))
        return subscriptions

    def close(self) -> None:
        """Destroy the subscriptions."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def clear_joint_states(self) -> None:
        """Forget the joint states: the next ones need not be reachable from the last."""
        with self._lock:
            self._joints.clear()

    def clear(self) -> None:
        """Forget images and joint states, as after a clock jump. The instruction stays."""
        with self._lock:
            self._joints.clear()
            self._frames.clear()
            self._pending.clear()
            self._last_set_ns = 0
            self._faults = {key: text for key, text in self._faults.items() if key == INSTRUCTION}

    def _on_image(self, camera: str, message: Image | CompressedImage, encoding: str | None) -> None:
        try:
            stamp = stamp_of(message)
            if stamp <= 0:
                raise ObservationError("the stamp is zero: the camera's driver must stamp its images.")
            frame = SyncedFrame(stamp, to_rgb(message, self._convert, encoding))
        except ObservationError as error:
            self._fault(f"camera '{camera}'", str(error))
            return
        self._fault(f"camera '{camera}'", None)
        now = self._node.now_ns()
        # one ahead of the clock would make all that follows look late
        if self._ahead(stamp, now) == 0:
            with self._lock:
                complete = self._frames.add(camera, frame)
                if complete:
                    self._last_set_ns = complete[-1].stamp_ns
                self._pending.extend(complete)
            self._release()
        # The policy already has the image: a checksum of 1 MB takes longer than handing it over.
        digest = image_digest(memoryview(message.data))
        self._monitor.image(camera, stamp, digest, now)

    def _release(self) -> None:
        """Hand on what is complete: with a policy that sees the arm's state, once that state is
        known at its time."""
        with self._handing_on:
            while frames := self._next_complete():
                if self.instruction:
                    self._observe(frames)

    def _next_complete(self) -> FrameSet | None:
        with self._lock:
            latest = self._joints.latest() if self._needs_state else None
            if not self._pending or (self._needs_state and (
                    latest is None or latest.stamp_ns < self._pending[0].stamp_ns)):
                return None
            return self._pending.popleft()

    def _observe(self, frames: FrameSet) -> None:
        state = None
        if self._needs_state:
            try:
                state = self.state_at(frames.stamp_ns)
            except ObservationError as error:
                self._fault(CLOCKS, str(error))
                return
            self._fault(CLOCKS, None)
            if self._gripper_joint is not None and state.gripper is None:
                topic = self._node.resolve_topic_name(self._parameters.joint_states_topic)
                text = (
                    f"joint '{self._gripper_joint}' is in no message on {topic}, and the policy takes the gripper's "
                    "opening. Check `gripper.joint` in the robot's YAML and the driver."
                )
                self._fault(GRIPPER, text)
                return
            self._fault(GRIPPER, None)
        self._on_observation(Observation(frames.stamp_ns, frames.images, self.instruction, state))

    def _on_joints(self, message: JointState, info: dict[str, Any]) -> None:
        now = self._node.now_ns()
        if self._arm_joints.intersection(message.name):
            two = self._publishers.two_publish(info["publication_sequence_number"], now)
            names = self._joint_publishers() if two else ()
            if len(names) > 1:
                text = f"{', '.join(names)} publish the same joints. Stop all but one."
                self._monitor.implausible_joint_state(text, now)
        try:
            ahead = self._ahead(stamp_of(message), now)
            if ahead > 0:
                raise ObservationError(f"stamped {ahead:.3f} s ahead of the node's clock. Synchronise the machines, "
                                       "and set use_sim_time alike on all nodes.")
            with self._lock:
                advanced = self._joints.add(message)
        except ImplausibleJointState as error:
            names = self._joint_publishers()
            by = f" Publishers: {', '.join(names)}." if len(names) > 1 else ""
            self._monitor.implausible_joint_state(f"{error}{by}", now)
            return
        except ObservationError as error:
            self._fault(JOINTS, str(error))
            return
        if advanced:
            self._fault(JOINTS, None)
            with self._lock:
                state = self._joints.latest()
            if state is not None:
                self._monitor.joint_state(state.stamp_ns, state.positions, self._node.now_ns())
            self._release()

    def _joint_publishers(self) -> tuple[str, ...]:
        topic = self._node.resolve_topic_name(self._parameters.joint_states_topic)
        return node_names(self._node.get_publishers_info_by_topic(topic))

    def _on_instruction(self, message: String) -> None:
        text = message.data.strip()
        if self._instruction_locked(text):
            return
        try:
            check_instruction(text, self._parameters.max_instruction_length)
        except ObservationError as error:
            self._fault(INSTRUCTION, str(error))
            text = ""
        else:
            self._fault(INSTRUCTION, None)
        self._put_in_force(text)

    def set_instruction(self, text: str) -> None:
        """Put a checked instruction in force, by whatever way it came; empty for none."""
        self._fault(INSTRUCTION, None)
        self._put_in_force(text)

    def _put_in_force(self, text: str) -> None:
        self._monitor.instruction(text)
        if text != self.instruction:
            self.instruction = text
            self._on_new_instruction(text)

    def _ahead(self, stamp_ns: int, now_ns: int) -> float:
        """By how many seconds a stamp is ahead of the clock; 0 within the tolerance."""
        ahead = (stamp_ns - now_ns) / NANOSECONDS
        return ahead if ahead > self._parameters.watchdog.clock_tolerance else 0.0

    def _fault(self, source: str, text: str | None) -> None:
        """Note that `source` last sent something unusable, or something usable (None). Edges are
        logged."""
        with self._lock:
            known = self._faults.get(source)
            if text is None:
                self._faults.pop(source, None)
            elif known is None or without_numbers(known) != without_numbers(text):
                self._faults[source] = text
        if (text is None) == (known is None):
            return
        line = f"{source}: {text or 'good again'}"
        if self._repeats.passes(line, time.monotonic()):
            logger = self._node.get_logger()
            # rclpy requires a line of code of its own for each severity.
            if text is None:
                logger.info(printable(line, 1000))
            else:
                logger.warning(printable(line, 1000))

    def state_at(self, stamp_ns: int) -> RobotState:
        """The arm at an image's stamp. Raises ObservationError."""
        with self._lock:
            state = self._joints.at(stamp_ns, self._parameters.joint_states_tolerance)
        return self._complete_state(state)

    def measured(self) -> RobotState | None:
        """The arm's newest state, None before the first."""
        with self._lock:
            state = self._joints.latest()
        return None if state is None else self._complete_state(state)

    def speed(self) -> NDArray[np.float64]:
        """(J,) the arm's measured speed, rad/s; infinite where the joint states do not cover enough
        time."""
        with self._lock:
            return self._joints.speed()

    def problem(self, now_ns: int) -> str | None:
        """Fault of the inputs, None without one: an unusable message, or cameras
        that do not match.

        Silence is detected by the safety monitor.
        """
        with self._lock:
            for source, text in self._faults.items():
                return f"{source}: {text}"
            stamps = [self._frames.last_stamp(camera.name) for camera in self._cameras]
        oldest = min(stamp or 0 for stamp in stamps)
        age = (now_ns - self._last_set_ns) / NANOSECONDS
        if now_ns - oldest > self._max_age * NANOSECONDS or age <= self._max_age:
            return None
        return (f"the cameras' newest images within {self._parameters.camera_tolerance:g} s of each other "
                f"(camera_tolerance) are more than {self._max_age:g} s old: their stamps do not match.")

    def topic_of(self, fault: str) -> str:
        """The topic behind a fault, empty where there is none."""
        kind, _, name = fault.partition(" ")
        if kind in ("joint_states_stale", "joint_states_implausible"):
            return str(self._node.resolve_topic_name(self._parameters.joint_states_topic))
        if kind == "no_instruction":
            return str(self._node.resolve_topic_name(self._parameters.instruction_topic))
        topics = {c.name: c.topic + ("/compressed" if c.transport == "compressed" else "") for c in self._cameras}
        return str(self._node.resolve_topic_name(topics[name])) if name in topics else ""


def check_instruction(text: str, limit: int) -> None:
    """Raise ObservationError for an empty instruction or one of more than `limit` characters."""
    if not text:
        raise ObservationError("it is empty: publish the task in words.")
    if len(text) > limit:
        raise ObservationError(f"it has {len(text)} characters, at most {limit} are allowed (max_instruction_length).")
