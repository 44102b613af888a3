"""Bags that rosbags writes message by message, with known numbers: a leader arm, a follower that lags it, cameras."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.evaluation.bags.types import typestore

JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
HOME = np.array([0.0, 0.2, 0.0, -2.6, 0.0, 2.9, 0.8])
STEP_NS = NANOSECONDS // 20
BEGIN = 1000 * NANOSECONDS
HORIZON = 4
MAPPING = {"bag": {"robot": "panda"}}
ACTION = {"space": "joint_position", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
          "step_duration": 0.05, "units": {"joint": 1.0}, "gripper": {"open_value": 1},
          "names": [*JOINTS, "gripper"]}


def told(time_ns: int) -> np.ndarray:
    """(7,) rad, the set point published at a time."""
    return HOME + 0.1 * np.sin((time_ns - BEGIN) / NANOSECONDS + np.arange(7))


def opening(time_ns: int) -> float:
    return float((time_ns - BEGIN) // NANOSECONDS % 2)


def pixels(topic: str, stamp_ns: int, size: int = 8) -> np.ndarray:
    rng = np.random.default_rng([sum(topic.encode()), stamp_ns % 2**32])
    return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)


class Script:
    """Writes messages of the four kinds that a demonstration needs."""

    def __init__(self, path: Path, plugin: StoragePlugin = StoragePlugin.MCAP,
                 compression: CompressionMode | None = None) -> None:
        self.store, self.path = typestore(), path
        self.writer = Writer(path, version=9, storage_plugin=plugin)
        if compression is not None:
            self.writer.set_compression(compression, CompressionFormat.ZSTD)
        self.connections: dict[str, Any] = {}

    def __enter__(self) -> "Script":
        self.writer.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def _write(self, topic: str, kind: str, now: int, **fields: Any) -> None:
        if topic not in self.connections:
            self.connections[topic] = self.writer.add_connection(topic, kind, typestore=self.store)
        message = self.store.types[kind](**fields)
        self.writer.write(self.connections[topic], now, self.store.serialize_cdr(message, kind))

    def _header(self, stamp: int, frame: str = "") -> Any:
        time = self.store.types["builtin_interfaces/msg/Time"](sec=stamp // NANOSECONDS, nanosec=stamp % NANOSECONDS)
        return self.store.types["std_msgs/msg/Header"](stamp=time, frame_id=frame)

    def image(
        self, topic: str, stamp: int, now: int | None = None, encoding: str = "rgb8"
    ) -> None:
        data = pixels(topic, stamp).reshape(-1)
        self._write(topic, "sensor_msgs/msg/Image", now or stamp, header=self._header(stamp),
                    height=8, width=8, encoding=encoding, is_bigendian=0, step=24, data=data)

    def png(self, topic: str, stamp: int, cut: bool = False) -> None:
        stream = io.BytesIO()
        Image.fromarray(pixels(topic, stamp)).save(stream, "PNG")
        data = np.frombuffer(stream.getvalue(), np.uint8)
        self._write(topic, "sensor_msgs/msg/CompressedImage", stamp, header=self._header(stamp), format="rgb8; png",
                    data=data[: len(data) // 2] if cut else data)

    def transform(self, stamp: int, position: list[float], turn: list[float]) -> None:
        translation, rotation = self._place(position, turn, "Vector3")
        item = self.store.types["geometry_msgs/msg/TransformStamped"](
            header=self._header(stamp, "panda_link0"), child_frame_id="panda_grip_site",
            transform=self.store.types["geometry_msgs/msg/Transform"](translation=translation, rotation=rotation))
        self._write("/tf", "tf2_msgs/msg/TFMessage", stamp, transforms=[item])

    def pose(self, stamp: int, position: list[float], turn: list[float]) -> None:
        point, orientation = self._place(position, turn, "Point")
        pose = self.store.types["geometry_msgs/msg/Pose"](position=point, orientation=orientation)
        self._write("/target", "geometry_msgs/msg/PoseStamped", stamp, header=self._header(stamp), pose=pose)

    def _place(self, position: list[float], turn: list[float], kind: str) -> tuple[Any, Any]:
        vector, quaternion = (self.store.types[f"geometry_msgs/msg/{name}"] for name in (kind, "Quaternion"))
        return vector(**dict(zip("xyz", position, strict=True))), quaternion(**dict(zip("xyzw", turn, strict=True)))

    def numbers(self, topic: str, now: int, data: list[float]) -> None:
        layout = self.store.types["std_msgs/msg/MultiArrayLayout"](dim=[], data_offset=0)
        self._write(topic, "std_msgs/msg/Float64MultiArray", now, layout=layout, data=np.array(data))

    def text(self, topic: str, now: int, data: str) -> None:
        self._write(topic, "std_msgs/msg/String", now, data=data)

    def joints(self, stamp: int, positions: np.ndarray, topic: str = "/joint_states", now: int | None = None) -> None:
        names = [*JOINTS, "panda_finger_joint1"]
        self._write(topic, "sensor_msgs/msg/JointState", now or stamp, header=self._header(stamp), name=names,
                    position=np.asarray(positions), velocity=np.empty(0), effort=np.empty(0))

    def trajectory(self, now: int, times: list[int], positions: np.ndarray) -> None:
        duration, point = (self.store.types[f"{name}"] for name in
                           ("builtin_interfaces/msg/Duration", "trajectory_msgs/msg/JointTrajectoryPoint"))
        points = [point(positions=row, velocities=np.empty(0), accelerations=np.empty(0), effort=np.empty(0),
                        time_from_start=duration(sec=(t - now) // NANOSECONDS, nanosec=(t - now) % NANOSECONDS))
                  for t, row in zip(times, positions, strict=True)]
        self._write("/panda_arm_controller/joint_trajectory", "trajectory_msgs/msg/JointTrajectory", now,
                    header=self._header(now), joint_names=JOINTS, points=points)


def write(path: Path, seconds: float = 3.0, begin: int = BEGIN, commands: bool = True, rate: int = 20,
          cameras: tuple[str, ...] = ("static",), offset: int = 0, plugin: StoragePlugin = StoragePlugin.MCAP,
          instruction: str | None = "lift the cube", also: Any = None,
          compression: CompressionMode | None = None) -> Path:
    """Joint states at 100 Hz that lag the set points by 100 ms, set points (with the gripper) at 20 Hz, images."""
    with Script(path, plugin, compression) as bag:
        if instruction:
            bag.text("/instruction", begin, instruction)
        for tick in range(int(seconds * 100)):
            now = begin + tick * NANOSECONDS // 100
            bag.joints(now, np.append(told(now - NANOSECONDS // 10), 0.04 * opening(now)))
            if commands and tick % 5 == 0:
                bag.joints(now, np.append(told(now), 0.04 * opening(now)), "/leader/joint_states")
            if also is not None:
                also(bag, tick, now)
        for k in range(int(seconds * rate)):
            for index, camera in enumerate(cameras):
                stamp = begin + k * NANOSECONDS // rate + index * offset
                bag.image(f"/{camera}/image_raw", stamp)
    return path


def config(space: str = "joint_position", cameras: tuple[str, ...] = ("static",), **blocks: Any) -> Any:
    return config_from_mapping({
        "model": {"backbone": "paligemma", "history_length": 2, "history_step": 0.05, "action_chunk_size": HORIZON},
        "action_head": {"action_dim": 8}, "cameras": list(cameras),
        "action": {**ACTION, "space": space},
        **blocks})


@pytest.fixture
def bags() -> SimpleNamespace:
    """The helpers above, for tests: modules of one folder cannot import each other."""
    return SimpleNamespace(**globals())
