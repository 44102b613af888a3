"""Rosbags as training data, against bags that rosbags writes here with known numbers.

- Frames lie on the training rate's grid, each with the image of its stamp; a faster camera's nearest images are taken.
- Actions are the recorded commands at the step's time, for set points and for trajectories, absolute and as deltas.
- Steps after the episode's end are not known; markers and new instructions begin episodes.
- SQLite, and compressed by message or file, gives what MCAP gives; compressed images are read, a damaged one is named.
- A pickled copy and forked workers read the same images.
- Refused with the place and a remedy: no command topic, cameras that are apart, a camera slower than the steps, no
  instruction, commands that are not finite and clock jumps (as flaws).
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from torch.utils.data import DataLoader

from robovlms_ros.config import config_from_mapping
from robovlms_ros.evaluation.bags.types import typestore
from robovlms_ros.schema import ConfigError
from robovlms_ros.training.episodes import DataError, open_sources
from robovlms_ros.training.windows import WindowDataset
from robovlms_ros.types import NANOSECONDS

JOINTS = [f"panda_joint{i}" for i in range(1, 8)]
HOME = np.array([0.0, 0.2, 0.0, -2.6, 0.0, 2.9, 0.8])
STEP_NS = NANOSECONDS // 20
BEGIN = 1000 * NANOSECONDS
HORIZON = 4
MAPPING = {"bag": {"robot": "panda"}}


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

    def image(self, topic: str, stamp: int, now: int | None = None) -> None:
        self._write(topic, "sensor_msgs/msg/Image", now or stamp, header=self._header(stamp), height=8, width=8,
                    encoding="rgb8", is_bigendian=0, step=24, data=pixels(topic, stamp).reshape(-1))

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
        "action": {"space": space, "frame": "base", "rotation": "rotation_vector", "composition": "chained",
                   "step_duration": 0.05, "units": {"joint": 1.0}, "gripper": {"open_value": 1},
                   "names": [*JOINTS, "gripper"]},
        **blocks})


def test_frames_and_set_points(tmp_path):
    path = write(tmp_path / "bag", cameras=("static", "wrist"), offset=3_000_000)
    source = open_sources([path], config(cameras=("static", "wrist")), MAPPING)
    assert len(source) == 1 and source.rate_hz == pytest.approx(20.0)
    arrays = source.arrays(0)
    stamps = BEGIN + STEP_NS * np.arange(len(arrays))
    assert np.array_equal(arrays.stamps_ns, stamps) and source.length(0) == len(arrays) >= 58
    assert arrays.instruction == "lift the cube"
    # A set point published at t is what the step from t leads to; the gripper's goes with it.
    assert np.allclose(arrays.actions[:, :7], [told(int(t)) for t in stamps], atol=1e-12)
    assert np.allclose(arrays.actions[:, 7], [opening(int(t)) for t in stamps], atol=1e-12)
    for t in (0, 20, 50):
        expected = [told(int(stamps[t]) + k * STEP_NS) for k in range(HORIZON)]
        assert arrays.known[t].all() and np.allclose(arrays.chunks[t, :, :7], expected, atol=1e-12)
    assert not arrays.known[-1, 1:].any()
    steps = [40, 3, 4]
    for copy in (source, pickle.loads(pickle.dumps(source))):
        images = copy.images(0, steps)
        assert np.array_equal(images["static"], [pixels("/static/image_raw", int(stamps[t])) for t in steps])
        assert np.array_equal(images["wrist"], [pixels("/wrist/image_raw", int(stamps[t]) + 3_000_000) for t in steps])


def test_deltas_start_from_the_measured_arm(tmp_path):
    source = open_sources([write(tmp_path / "bag")], config("joint_delta"), MAPPING)
    arrays = source.arrays(0)
    stamp = int(arrays.stamps_ns[30])
    first = told(stamp) - told(stamp - NANOSECONDS // 10)
    assert np.allclose(arrays.actions[30, :7], first, atol=1e-9)
    assert np.allclose(arrays.chunks[30, 1, :7], told(stamp + STEP_NS) - told(stamp), atol=1e-9)


def test_a_faster_camera_is_resampled(tmp_path):
    source = open_sources([write(tmp_path / "bag", rate=30)], config(), MAPPING)
    stamps = source.arrays(0).stamps_ns
    grid = stamps[0] + STEP_NS * np.arange(len(stamps))
    assert len(source) == 1 and np.abs(stamps - grid).max() <= NANOSECONDS // 60 + 1
    assert np.array_equal(source.images(0, [7])["static"][0], pixels("/static/image_raw", int(stamps[7])))


def test_a_gap_cuts_the_episode_and_both_pieces_are_one_recording(tmp_path):
    with Script(tmp_path / "bag") as bag:
        bag.text("/instruction", BEGIN, "lift the cube")
        for tick in range(400):
            now = BEGIN + tick * NANOSECONDS // 100
            bag.joints(now, np.append(told(now), 0.0))
            if tick % 5 == 0:
                bag.joints(now, np.append(told(now), 0.0), "/leader/joint_states")
                if not 150 < tick < 250:
                    bag.image("/static/image_raw", now)
    source = open_sources([tmp_path / "bag"], config(), MAPPING)
    assert len(source) == 2 and source.origin(0) == source.origin(1)
    assert [flaw.kind for flaw in source.flaws] == ["gap"] and "1.00 s" in source.flaws[0].text


@pytest.mark.parametrize("compression", [None, CompressionMode.MESSAGE, CompressionMode.FILE])
def test_sqlite_and_compressed_files_give_the_same(tmp_path, compression):
    mcap = open_sources([write(tmp_path / "a", 1.0)], config(), MAPPING)
    sqlite = write(tmp_path / "b", 1.0, plugin=StoragePlugin.SQLITE3, compression=compression)
    other = open_sources([sqlite], config(), MAPPING)
    assert np.array_equal(mcap.arrays(0).actions, other.arrays(0).actions)
    assert np.array_equal(mcap.images(0, [5, 9])["static"], other.images(0, [5, 9])["static"])


def test_compressed_images_and_damaged_ones(tmp_path):
    with Script(tmp_path / "bag") as bag:
        bag.text("/instruction", BEGIN, "lift the cube")
        for tick in range(100):
            now = BEGIN + tick * NANOSECONDS // 100
            bag.joints(now, np.append(told(now), 0.0))
            if tick % 5 == 0:
                bag.joints(now, np.append(told(now), 0.0), "/leader/joint_states")
                bag.png("/static/image_raw/compressed", now, cut=tick == 50)
    source = open_sources([tmp_path / "bag"], config(), MAPPING)
    assert source.length(0) >= 18
    image = source.images(0, [4])["static"][0]
    assert np.array_equal(image, pixels("/static/image_raw/compressed", BEGIN + 4 * STEP_NS))
    with pytest.raises(DataError, match=r"episode 0: an image of camera 'static' is damaged.*exclude"):
        source.images(0, [10])


def test_markers_and_instructions_begin_episodes(tmp_path):
    def also(bag: Script, tick: int, now: int) -> None:
        if tick in (50, 150):
            bag.text("/episode", now, "go")
        if tick == 250:
            bag.text("/instruction", now, "stack the cube")

    source = open_sources([write(tmp_path / "bag", 4.0, also=also)], config(), MAPPING)
    assert [source.arrays(i).instruction for i in range(len(source))] == ["lift the cube"] * 2 + ["stack the cube"]
    assert [source.length(i) for i in (0, 1)] == [20, 20]  # what precedes the first marker is not an episode
    assert len({source.origin(i) for i in range(3)}) == 3
    first = source.arrays(0)
    assert not first.known[-1, 2:].any() and first.known[0].all()  # the next episode's commands are not this one's


def test_trajectories_and_the_motion_itself(tmp_path):
    def also(bag: Script, tick: int, now: int) -> None:
        if tick % 20 == 0:
            times = [now + k * STEP_NS for k in range(1, 30)]
            bag.trajectory(now, times, np.stack([told(t) for t in times]))

    path = write(tmp_path / "bag", commands=False, also=also)
    arrays = open_sources([path], config(), MAPPING).arrays(0)
    stamps = arrays.stamps_ns[4:40]
    assert np.allclose(arrays.actions[4:40, :7], [told(int(t) + STEP_NS) for t in stamps], atol=1e-3)
    motion = {"bag": {"robot": "panda", "topics": {"commands": "motion"}}}
    arrays = open_sources([path], config(), motion).arrays(0)
    lag = NANOSECONDS // 10
    expected = [told(int(t) + STEP_NS - lag) for t in arrays.stamps_ns]
    assert np.allclose(arrays.actions[:, :7], expected, atol=1e-3)
    assert np.allclose(arrays.actions[:, 7], [opening(int(t) + STEP_NS) for t in arrays.stamps_ns], atol=0.51)


def test_end_effector_deltas_and_proprioception(tmp_path):
    pin = pytest.importorskip("pinocchio")
    assert pin
    from robovlms_ros.runtime.kinematics import Kinematics
    from robovlms_ros.runtime.robot import load_robot

    eef = {"space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
           "step_duration": 0.05, "units": {"translation": 1.0, "rotation": 1.0}, "gripper": {"open_value": 1}}
    blocks = {"action": eef, "action_head": {"action_dim": 7}, "proprioception": {"names": ["eef_position", "gripper"]}}
    arrays = open_sources([write(tmp_path / "bag")], config(**blocks), MAPPING).arrays(0)
    forward = Kinematics.for_robot(load_robot("panda")).forward
    for t in (10, 40):
        stamp = int(arrays.stamps_ns[t])
        here, there = forward(told(stamp - NANOSECONDS // 10)), forward(told(stamp))
        assert np.allclose(arrays.actions[t, :3], there[:3, 3] - here[:3, 3], atol=1e-9)
        assert np.allclose(arrays.proprioception[t], [*here[:3, 3], opening(stamp)], atol=1e-6)


def test_poses_from_tf_and_pose_commands(tmp_path):
    pytest.importorskip("pinocchio")
    from robovlms_ros.processing.rotations import matrix_from_vector, quaternion_from_matrix

    def place(now: int) -> tuple[list[float], list[float]]:
        seconds = (now - BEGIN) / NANOSECONDS
        w, x, y, z = quaternion_from_matrix(matrix_from_vector([0.0, 0.0, 0.2 * seconds]))
        return [0.4 + 0.1 * seconds, 0.0, 0.3], [x, y, z, w]

    with Script(tmp_path / "bag") as bag:
        bag.text("/instruction", BEGIN, "lift the cube")
        for tick in range(150):
            now = BEGIN + tick * NANOSECONDS // 100
            bag.transform(now, *place(now))
            if tick % 5 == 0:
                bag.pose(now, *place(now + STEP_NS))
                bag.numbers("/gripper", now, [0.04 * opening(now)])
                bag.image("/static/image_raw", now)
    eef = {"space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
           "step_duration": 0.05, "units": {"translation": 1.0, "rotation": 1.0}, "gripper": {"open_value": 1}}
    blocks = {"action": eef, "action_head": {"action_dim": 7}}
    mapping = {"bag": {"robot": "panda", "topics": {"commands": "/target", "gripper_commands": "/gripper"}}}
    with pytest.raises(DataError, match="episode 0: the policy takes 7 joint positions"):
        open_sources([tmp_path / "bag"], config(**{**blocks, "proprioception": {"names": ["joint_positions"],
                                                                              "joints": 7}}), mapping)
    arrays = open_sources([tmp_path / "bag"], config(**blocks), mapping).arrays(0)
    assert np.allclose(arrays.chunks[3:20, :, :6], [0.005, 0, 0, 0, 0, 0.01], atol=1e-9)


@pytest.mark.parametrize(("written", "cameras", "message"), [
    ({"commands": False}, ("static",), "no topic with commands"),
    ({"cameras": ("static", "wrist"), "offset": 25_000_000}, ("static", "wrist"), "not synchronised.*25 ms"),
    ({"rate": 10}, ("static",), "ran at 10 Hz"),
    ({"instruction": None}, ("static",), "instruction"),
])
def test_refused_with_the_reason(tmp_path, written, cameras, message):
    path = write(tmp_path / "bag", 2.0, **written)
    with pytest.raises(DataError, match=message) as error:
        open_sources([path], config(cameras=cameras), MAPPING)
    assert str(path) in str(error.value)


def test_flaws_that_forbid_training(tmp_path):
    def also(bag: Script, tick: int, now: int) -> None:
        if tick == 52:
            bag.joints(now, np.append(np.full(7, np.nan), 0.0), "/leader/joint_states")

    source = open_sources([write(tmp_path / "nan", also=also)], config(), MAPPING)
    assert [flaw.kind for flaw in source.flaws if flaw.refuse] == ["nan"]
    assert "0.52 s" in source.flaws[0].text
    with Script(tmp_path / "jump") as bag:
        bag.text("/instruction", BEGIN, "lift the cube")
        for begin in (BEGIN, BEGIN - 60 * NANOSECONDS):
            for tick in range(200):
                now = begin + tick * NANOSECONDS // 100
                bag.joints(now, np.append(told(now), 0.0))
                if tick % 5 == 0:
                    bag.joints(now, np.append(told(now), 0.0), "/leader/joint_states")
                    bag.image("/static/image_raw", now)
    source = open_sources([tmp_path / "jump"], config(), MAPPING)
    assert len(source) == 2 and [flaw.kind for flaw in source.flaws if flaw.refuse] == ["clock"]


def test_forked_workers_read_the_same(tmp_path):
    settings = config()
    data = WindowDataset(open_sources([write(tmp_path / "bag", 1.5)], settings, MAPPING), [0], settings)
    data[0]  # the parent has the bag open
    own, theirs = (list(DataLoader(data, 8, num_workers=workers)) for workers in (0, 2))
    for a, b in zip(own, theirs, strict=True):
        assert torch.equal(a["images"]["static"], b["images"]["static"]) and torch.equal(a["actions"], b["actions"])


def test_what_is_not_data_or_not_known(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a rosbag"):
        open_sources([tmp_path / "empty"], config(), MAPPING)
    with pytest.raises(DataError, match="does not exist"):
        open_sources([tmp_path / "nothing"], config(), MAPPING)
    path = write(tmp_path / "bag", 1.0)
    with pytest.raises(ConfigError, match=r"data.bag: unknown key 'robots'.*'robot'"):
        open_sources([path], config(), {"bag": {"robots": "panda"}})
    with pytest.raises(ConfigError, match=r"data.bag.robot is missing"):
        open_sources([path], config())
    with pytest.raises(DataError, match="exclude"):
        open_sources([path], config(), {**MAPPING, "exclude": ["another"]})
    with pytest.raises(DataError, match="no episode is left"):
        open_sources([path], config(), {**MAPPING, "exclude": [f"{path}, episode 0"]})
