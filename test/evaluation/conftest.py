"""Bags written by the tests themselves: an arm that follows a known motion, two cameras, commands, an instruction."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.scheduler import ScheduleConfig
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec
from robovlms_ros.evaluation.bags.types import typestore
from robovlms_ros.evaluation.replay.evaluate import EvaluationConfig, Setting

BEGIN_NS = 1_000 * NANOSECONDS
STEP = 0.05
HORIZON = 10
JOINTS = tuple(f"panda_joint{i}" for i in range(1, 8))
HOME = np.array([0.0, 0.19634954, 0.0, -2.61799388, 0.0, 2.94159265, 0.78539816])
SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", STEP, (*JOINTS, "gripper"))


def motion(time_ns: int) -> np.ndarray:
    """(7,) rad, where the recorded arm is at a time: slow sines about home."""
    seconds = (time_ns - BEGIN_NS) / NANOSECONDS
    return HOME + 0.1 * np.sin(0.8 * seconds + np.arange(7))


def opening(time_ns: int) -> float:
    """The gripper: open, closed from 2 s to 4 s, open."""
    return 0.0 if 2.0 <= (time_ns - BEGIN_NS) / NANOSECONDS < 4.0 else 1.0


class BagWriter:
    """Message by message into a rosbag2 of any kind."""

    def __init__(self, path: Path, plugin: StoragePlugin = StoragePlugin.MCAP,
                 compression: CompressionMode | None = None) -> None:
        self.path, self.store = path, typestore()
        self.writer = Writer(path, version=9, storage_plugin=plugin)
        if compression is not None:
            self.writer.set_compression(compression, CompressionFormat.ZSTD)
        self.connections: dict[str, Any] = {}

    def __enter__(self) -> "BagWriter":
        self.writer.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def make(self, kind: str, **fields: Any) -> Any:
        return self.store.types[kind](**fields)

    def header(self, stamp_ns: int, frame: str = "") -> Any:
        return self.make("std_msgs/msg/Header", stamp=self.time(stamp_ns), frame_id=frame)

    def time(self, stamp_ns: int) -> Any:
        return self.make("builtin_interfaces/msg/Time", sec=stamp_ns // NANOSECONDS, nanosec=stamp_ns % NANOSECONDS)

    def write(self, topic: str, kind: str, log_ns: int, message: Any) -> None:
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.store)
        data = self.store.serialize_cdr(message, kind)
        self.writer.write(self.connections[topic], log_ns, data)

    def image(self, topic: str, stamp_ns: int, log_ns: int | None = None, size: int = 32,
              encoding: str = "rgb8") -> None:
        pixels = test_image(topic, stamp_ns, size)
        message = self.make(
            "sensor_msgs/msg/Image", header=self.header(stamp_ns, "camera"), height=size,
            width=size, encoding=encoding, is_bigendian=0, step=3 * size, data=pixels.reshape(-1))
        self.write(topic, "sensor_msgs/msg/Image", log_ns or stamp_ns, message)

    def compressed(self, topic: str, stamp_ns: int, size: int = 32) -> None:
        import io

        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(test_image(topic.removesuffix("/compressed"), stamp_ns, size)).save(stream, "PNG")
        message = self.make("sensor_msgs/msg/CompressedImage", header=self.header(stamp_ns, "camera"),
                            format="png", data=np.frombuffer(stream.getvalue(), np.uint8))
        self.write(topic, "sensor_msgs/msg/CompressedImage", stamp_ns, message)

    def joints(self, stamp_ns: int, log_ns: int | None = None, topic: str = "/joint_states",
               positions: np.ndarray | None = None) -> None:
        values = np.append(motion(stamp_ns) if positions is None else positions, 0.04 * opening(stamp_ns))
        message = self.make("sensor_msgs/msg/JointState", header=self.header(stamp_ns),
                            name=[*JOINTS, "panda_finger_joint1"], position=values, velocity=np.empty(0),
                            effort=np.empty(0))
        self.write(topic, "sensor_msgs/msg/JointState", log_ns or stamp_ns, message)

    def instruction(self, text: str, log_ns: int, topic: str = "/instruction") -> None:
        self.write(topic, "std_msgs/msg/String", log_ns, self.make("std_msgs/msg/String", data=text))

    def trajectory(self, log_ns: int, times_ns: list[int], positions: np.ndarray,
                   topic: str = "/panda_arm_controller/joint_trajectory") -> None:
        points = [self.make("trajectory_msgs/msg/JointTrajectoryPoint", positions=row, velocities=np.empty(0),
                            accelerations=np.empty(0), effort=np.empty(0),
                            time_from_start=self.make("builtin_interfaces/msg/Duration",
                                                      sec=(time - log_ns) // NANOSECONDS,
                                                      nanosec=(time - log_ns) % NANOSECONDS))
                  for time, row in zip(times_ns, positions, strict=True)]
        message = self.make("trajectory_msgs/msg/JointTrajectory", header=self.header(log_ns),
                            joint_names=list(JOINTS), points=points)
        self.write(topic, "trajectory_msgs/msg/JointTrajectory", log_ns, message)


def test_image(topic: str, stamp_ns: int, size: int = 32) -> np.ndarray:
    """(size, size, 3) uint8, another one for every topic and time."""
    rng = np.random.default_rng([sum(topic.encode()), stamp_ns % 2**32])
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


test_image.__test__ = False  # type: ignore[attr-defined]


def write_bag(path: Path, seconds: float = 6.0, commands: bool = True, plugin: StoragePlugin = StoragePlugin.MCAP,
              compression: CompressionMode | None = None, instruction: str | None = "lift the red cube") -> Path:
    """Both cameras at 20 Hz, joint states at 100 Hz, one JointTrajectory a second ahead of the motion each 0.2 s."""
    with BagWriter(path, plugin, compression) as bag:
        if instruction is not None:
            bag.instruction(instruction, BEGIN_NS)
        for tick in range(int(seconds * 100)):
            now = BEGIN_NS + tick * NANOSECONDS // 100
            if commands and tick % 20 == 0:
                times = [now + k * NANOSECONDS // 20 for k in range(1, 25)]
                bag.trajectory(now, times, np.stack([motion(t) for t in times]))
            bag.joints(now)
            if tick % 5 == 0:
                bag.image("/static/image_raw", now)
                bag.image("/wrist/image_raw", now)
    return path


@dataclass
class FakeSession:
    """Answers chunks out of a function of (stamp, step)."""

    value: Callable[[int, int], np.ndarray]
    spec: ActionSpec = SPEC
    horizon: int = HORIZON
    seen: list[Any] = field(default_factory=list)
    resets: int = 0

    def reset(self) -> None:
        self.resets += 1

    def predict_block(self, observations: Any, wanted: Any) -> list[ActionChunk | None]:
        self.seen += observations
        return [ActionChunk(o.stamp_ns, np.stack([self.value(o.stamp_ns, k) for k in range(self.horizon)]), self.spec,
                            o.instruction, "fake", len(self.seen)) if want else None
                for o, want in zip(observations, wanted, strict=True)]


def follow(shift_steps: int = 0) -> Callable[[int, int], np.ndarray]:
    """The policy that predicts the recorded motion itself, or the one `shift_steps` later."""

    def value(stamp_ns: int, step: int) -> np.ndarray:
        time = stamp_ns + round((step + 1 + shift_steps) * STEP * NANOSECONDS)
        return np.append(motion(time), opening(time))

    return value


@pytest.fixture(scope="session")
def robot() -> Any:
    return load_robot("panda")


@pytest.fixture(scope="session")
def kinematics(robot: Any) -> Kinematics:
    return Kinematics(robot.description_path, robot.joints, robot.eef_frame, robot.base_frame, robot.lower(),
                      robot.upper(), np.array(robot.home), robot.posture_gain)


@pytest.fixture
def setting(robot: Any, kinematics: Kinematics) -> Callable[..., Setting]:
    def make(cameras: tuple[str, ...] = ("static", "wrist"), **config: Any) -> Setting:
        config.setdefault("sensitivity", False)
        config.setdefault("annotate", False)
        config.setdefault("latencies", (0.05,))
        return Setting(robot, kinematics, ScheduleConfig(), cameras, EvaluationConfig(**config))

    return make


@pytest.fixture
def tools() -> Any:
    """The helpers above, for tests: modules of one folder cannot import each other."""
    from types import SimpleNamespace

    return SimpleNamespace(**globals())
