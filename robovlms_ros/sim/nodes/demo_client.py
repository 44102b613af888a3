"""The examiner: puts the arm into a scene, gives the instruction, watches the simulator's ground
truth.

It is outside of what it examines: the policy node never receives the topics that carry object
poses.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.client import Client
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.core.types import NANOSECONDS, RoboVLMsError, TrajectoryCommand
from robovlms_ros.msg import ActionChunk, PolicyStatus
from robovlms_ros.observations.images import image_to_rgb
from robovlms_ros.ros.graph import LATCHED
from robovlms_ros.ros.messages import from_time
from robovlms_ros.ros.processes import Child
from robovlms_ros.sim.demo_report import EpisodeRecording
from robovlms_ros.sim.tasks.base import CUBES

SIM = "sim_arm"
POLICY = "vla"
STEP_NS = 10_000_000
CAMERAS = ("static", "wrist")


class DemoClientError(RoboVLMsError):
    """A node did not answer, or refused a request."""


class DemoClient(Node):
    """Drives one policy node and one simulated arm through episodes.

    An executor must be spinning this node in another thread: the methods wait for answers.
    `children` are checked while waiting, so that a dead process is reported at once and not as a
    time-out.
    """

    def __init__(self, children: tuple[Child, ...], namespace: str) -> None:
        super().__init__("examiner", namespace=namespace,
                         parameter_overrides=[Parameter("use_sim_time", value=True)])
        self._children = children
        self._lock = threading.Lock()
        self._recording: EpisodeRecording | None = None
        self._truth: dict[str, Any] = {}
        self.status = PolicyStatus()
        self.chunks = 0
        self.worst_step = 0.0
        """Largest change of a measured joint, rad per 10 ms, while `watch_steps` is on."""
        self._last: tuple[int, np.ndarray] | None = None
        self._watching = False
        self._instruction = self.create_publisher(String, "instruction", LATCHED)
        self.create_subscription(String, f"{SIM}/ground_truth", self._on_truth, 10)
        self.create_subscription(PolicyStatus, f"{POLICY}/status", self._on_status, LATCHED)
        self.create_subscription(ActionChunk, f"{POLICY}/action_chunk", self._on_chunk, 10)
        self.create_subscription(JointState, "joint_states", self._on_joints, qos_profile_sensor_data)
        self.create_subscription(JointTrajectory, "panda_arm_controller/joint_trajectory", self._on_command, 10)
        for camera in CAMERAS:
            self.create_subscription(Image, f"{camera}/image_raw", self._camera(camera), qos_profile_sensor_data)

    def _on_truth(self, message: String) -> None:
        truth = json.loads(message.data)
        with self._lock:
            self._truth = truth

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message

    def _on_chunk(self, message: ActionChunk) -> None:
        with self._lock:
            self.chunks += 1
            if self._recording:
                self._recording.chunk_stamps.append(from_time(message.header.stamp))

    def _on_joints(self, message: JointState) -> None:
        with self._lock:
            if self._watching:
                named = zip(message.name, message.position, strict=True)
                arm = np.array([position for name, position in named if "finger" not in name])
                stamp = from_time(message.header.stamp)
                if self._last is not None and stamp > self._last[0]:
                    # A joint state that was lost on the way must not look like a step.
                    step = np.abs(arm - self._last[1]).max() * STEP_NS / (stamp - self._last[0])
                    self.worst_step = max(self.worst_step, float(step))
                self._last = stamp, arm
            if self._recording:
                order = [message.name.index(joint) for joint in self._recording.joints]
                positions = np.array([message.position[i] for i in order])
                self._recording.measured.append((from_time(message.header.stamp), positions))

    def _on_command(self, message: JointTrajectory) -> None:
        with self._lock:
            if self._recording:
                self._recording.commands.append((self.now_ns(), _as_command(message)))

    def _camera(self, name: str) -> Callable[[Image], None]:
        def keep(message: Image) -> None:
            with self._lock:
                if self._recording:
                    frames = self._recording.frames.setdefault(name, [])
                    frames.append((from_time(message.header.stamp), image_to_rgb(message).copy()))
        return keep

    def now_ns(self) -> int:
        """The run's clock: simulated time, ns."""
        return int(self.get_clock().now().nanoseconds)

    def truth(self) -> dict[str, Any]:
        """The simulator's latest ground truth."""
        with self._lock:
            return self._truth

    def watch_steps(self, watching: bool) -> None:
        """True if `worst_step` counts from now on: not while a new scene moves the arm by
        decree."""
        with self._lock:
            self._watching = watching
            self._last = None

    def record(self, recording: EpisodeRecording | None) -> None:
        """Fill `recording` from now on; None stops."""
        with self._lock:
            self._recording = recording

    def instruct(self, instruction: str) -> None:
        """Publish an instruction, latched, and wait until the policy node has it."""
        self._instruction.publish(String(data=instruction))
        heard = f"the policy node to hear '{instruction}'"
        self.wait_until(lambda: self.status.instruction == instruction, 30.0, heard)

    def configure(self, patience: float) -> None:
        """Bring the policy node to inactive; raises DemoClientError with its reason when it
        refuses."""
        self._transition(Transition.TRANSITION_CONFIGURE, "configure", patience)

    def activate(self, patience: float = 30.0) -> None:
        """Bring the policy node to active, unless it is."""
        request = GetState.Request()
        state = self._call(GetState, f"{POLICY}/get_state", request, patience).current_state.id
        if state != State.PRIMARY_STATE_ACTIVE:
            self._transition(Transition.TRANSITION_ACTIVATE, "activate", patience)

    @property
    def given_up(self) -> bool:
        """The policy node has deactivated itself: too many of its chunks were refused."""
        return bool(self.status.state == PolicyStatus.INACTIVE)

    def _transition(self, transition: int, name: str, patience: float) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        if not self._call(ChangeState, f"{POLICY}/change_state", request, patience).success:
            self.wait_until(lambda: bool(self.status.last_stop), 5.0, "a reason from the policy node")
            raise DemoClientError(f"the policy node refused to {name}: {self.status.last_stop}")

    def pause(self, paused: bool) -> None:
        """Hold the arm (True) or let the policy drive (False)."""
        self._demand(SetBool, f"{POLICY}/pause", SetBool.Request(data=paused))
        self.wait_until(lambda: (self.status.state == PolicyStatus.PAUSED) == paused, 30.0, "the policy node's status")

    def reset(self) -> None:
        """Make the policy forget what it saw."""
        self._demand(Trigger, f"{POLICY}/reset", Trigger.Request())

    def new_scene(self, seed: int, blank_cameras: bool, task: str = CUBES) -> None:
        """Put the simulated arm at its home in the scene of `seed` of a task."""
        values = [Parameter("seed", value=seed), Parameter("blank_cameras", value=blank_cameras),
                  Parameter("task", value=task)]
        # By the count and not by the seed: the same scene again must not be judged by what was left
        # of it before.
        self.wait_until(lambda: bool(self.truth()), 30.0, "the simulated arm's ground truth")
        before = self.truth()["resets"]
        request = SetParameters.Request(parameters=[value.to_parameter_msg() for value in values])
        for result in self._call(SetParameters, f"{SIM}/set_parameters", request, 30.0).results:
            if not result.successful:
                raise DemoClientError(f"the simulated arm refused a parameter: {result.reason}")
        self._demand(Trigger, f"{SIM}/reset", Trigger.Request())
        self.wait_until(lambda: self.truth()["resets"] > before, 30.0, f"the scene of seed {seed}")

    def _demand(self, kind: type, service: str, request: object) -> None:
        response = self._call(kind, service, request, 30.0)
        if not response.success:
            raise DemoClientError(f"{service} refused: {response.message}")

    def _call(self, kind: type, service: str, request: object, patience: float) -> Any:
        client: Client = self.create_client(kind, service)
        try:
            self.wait_until(client.service_is_ready, 60.0, f"the service {service}")
            future = client.call_async(request)
            self.wait_until(future.done, patience, f"an answer of {service}")
            return future.result()
        finally:
            self.destroy_client(client)

    def wait_until(self, condition: Callable[[], bool], patience: float, what: str) -> None:
        """Wait (wall time) until the condition holds; raises DemoClientError, or ChildDied when a
        process has ended."""
        deadline = time.monotonic() + patience
        while not condition():
            for child in self._children:
                child.check()
            if time.monotonic() > deadline:
                raise DemoClientError(f"waited {patience:.0f} s for {what} in vain.")
            time.sleep(0.005)


def _as_command(message: JointTrajectory) -> TrajectoryCommand:
    times = [from_time(point.time_from_start) / NANOSECONDS for point in message.points]
    positions = np.array([point.positions for point in message.points])
    velocities = np.array([point.velocities for point in message.points])
    return TrajectoryCommand(from_time(message.header.stamp), tuple(message.joint_names), np.array(times),
                             positions, velocities)
