"""Episodes of the simulated arm as a rosbag2, in one process and without ROS: a bag to evaluate
where none is at hand.

Topics are the demo's: both cameras at 20 Hz, joint states at 100 Hz, trajectories of arm and
gripper, the instruction.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer

from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.types import NANOSECONDS, TrajectoryCommand
from robovlms_ros.evaluation.bags.chunks import TRAJECTORY, message_of_command
from robovlms_ros.evaluation.bags.types import typestore
from robovlms_ros.sim.relieved_policy import RelievedPolicy
from robovlms_ros.sim.rollout import ClosedLoop, Outcome, RolloutFrame
from robovlms_ros.sim.world import FINGER_JOINT, SimWorld

JOINT_PERIOD_NS = NANOSECONDS // 100
NAMESPACE = "/demo"
SETTLE_TICKS = 50


class SimulatedBag:
    """A world that writes what it publishes and receives; give it to `ClosedLoop` in the world's
    place."""

    def __init__(self, path: Path, world: SimWorld, robot: RobotSpec) -> None:
        self._world = world
        self._robot = robot
        self._store = typestore()
        self._writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections: dict[str, Any] = {}
        controllers = (robot.controller, robot.gripper)
        arm_topic, gripper_topic = (f"{NAMESPACE}/{getattr(part, 'topic', 'commands')}" for part in controllers)
        self.arm_controller = _Hearing(self, world.arm_controller, arm_topic)
        self.gripper_controller = _Hearing(self, world.gripper_controller, gripper_topic)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def step(self) -> None:
        """One tick of the world; joint states where they are due."""
        self._world.step()
        if self._world.time_ns % JOINT_PERIOD_NS == 0:
            self._write_joints()

    def on_frame(self, frame: RolloutFrame) -> None:
        """Both cameras' images, and the instruction when it is another one."""
        observation = frame.observation
        for camera, image in observation.images.items():
            height, width, _ = image.shape
            message = self._make("sensor_msgs/msg/Image", header=self._header(observation.stamp_ns), height=height,
                                 width=width, encoding="rgb8", is_bigendian=0, step=3 * width, data=image.reshape(-1))
            self._write(f"{NAMESPACE}/{camera}/image_raw", "sensor_msgs/msg/Image", message)

    def instruct(self, words: str) -> None:
        """A new instruction."""
        self._write(f"{NAMESPACE}/instruction", "std_msgs/msg/String", self._make("std_msgs/msg/String", data=words))

    def control_source(self, person: bool) -> None:
        """Write who commands the arm from now on. person: or the policy."""
        kind = "robovlms_ros/msg/ControlSource"
        header = self._header(self._world.time_ns)
        source = "human" if person else "policy"
        message = self._make(kind, header=header, source=source, since=header.stamp, reason="")
        self._write(f"{NAMESPACE}/vla/control_source", kind, message)

    def close(self) -> None:
        """Finish the bag."""
        self._writer.close()

    def write_command(self, topic: str, command: TrajectoryCommand) -> None:
        """A trajectory that a controller was sent."""
        self._raw(topic, TRAJECTORY, message_of_command(self._store, command))

    def _write_joints(self) -> None:
        state = self._world.joint_state()
        finger = FINGER_JOINT if self._robot.gripper is None else self._robot.gripper.joint
        opening = 0.0 if self._robot.gripper is None else self._robot.gripper.position(state.gripper or 0.0)
        velocities = np.zeros_like(state.positions) if state.velocities is None else state.velocities
        message = self._make("sensor_msgs/msg/JointState", header=self._header(state.stamp_ns),
                             name=[*self._robot.joints, finger], position=np.append(state.positions, opening),
                             velocity=np.append(velocities, 0.0), effort=np.empty(0))
        self._write(f"{NAMESPACE}/joint_states", "sensor_msgs/msg/JointState", message)

    def _make(self, kind: str, **fields: Any) -> Any:
        return self._store.types[kind](**fields)

    def _header(self, stamp_ns: int) -> Any:
        seconds, nanoseconds = divmod(stamp_ns, NANOSECONDS)
        stamp = self._make("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
        return self._make("std_msgs/msg/Header", stamp=stamp, frame_id="")

    def _write(self, topic: str, kind: str, message: Any) -> None:
        self._raw(topic, kind, bytes(self._store.serialize_cdr(message, kind)))

    def _raw(self, topic: str, kind: str, data: bytes) -> None:
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(topic, kind, typestore=self._store)
        self._writer.write(self._connections[topic], self._world.time_ns, data)


class _Hearing:
    """A controller whose messages are written down."""

    def __init__(self, bag: SimulatedBag, controller: Any, topic: str) -> None:
        self._bag = bag
        self._controller = controller
        self._topic = topic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)

    def accept(self, message: Any, now_ns: int) -> Any:
        """As the controller's own; a refused message is not written."""
        answer = self._controller.accept(message, now_ns)
        self._bag.write_command(self._topic, message)
        return answer


def record_episodes(
    path: Path,
    loop: ClosedLoop,
    agent: Any,
    robot: RobotSpec,
    episodes: Sequence[tuple[int, str]],
    begin: Callable[[int, str], None] = lambda seed, words: None,
) -> list[Outcome]:
    """Run (seed, instruction) episodes of `loop` with `agent` and record them as one bag; returns
    how they went. begin: called in each episode's new scene, before anything of it is recorded."""
    bag = SimulatedBag(path, loop.world, robot)
    world = loop.world
    on_frame = loop.on_frame
    loop.world = bag  # type: ignore[assignment]
    loop.on_frame = bag.on_frame
    if isinstance(agent, RelievedPolicy):
        agent.on_source = bag.control_source
    outcomes = []
    try:
        for seed, words in episodes:
            world.reset(seed)
            begin(seed, words)
            for _ in range(SETTLE_TICKS):  # a joint state of the new scene before its first image
                bag.step()
            bag.instruct(words)
            outcomes.append(loop.run(agent, [(0.0, words)], np.random.default_rng(seed)))
    finally:
        loop.world = world
        loop.on_frame = on_frame
        bag.close()
    return outcomes
