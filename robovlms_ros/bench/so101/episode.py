"""A scripted episode of an SO-101, as LeRobot records it: percent or degrees of a calibrated arm.

The numbers are made as LeRobot's motor bus makes them, from whole ticks, and not by the inverse of
this package's conversion.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import yaml
from numpy.typing import NDArray

from robovlms_ros.bench.so101.picture import ArmPicture
from robovlms_ros.config.policy import PolicyConfig, config_from_mapping
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import read_mapping
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.types import NANOSECONDS, Array
from robovlms_ros.training.data.episodes import EpisodeArrays, Flaw, Images
from robovlms_ros.training.data.lerobot_export import LeRobotExport

RATE = 30
INSTRUCTION = "pick up the red cube and put it in the box"
CAMERA = "front"
TURN = 4096
LAG = 0.05  # s, of the servos
JAW_LAG = 0.12
DRIVER_ZERO = 2048
CALIBRATION = MappingProxyType(
    {
        "shoulder_pan": (745, 3391),
        "shoulder_lift": (866, 3160),
        "elbow_flex": (905, 3112),
        "wrist_flex": (851, 3165),
        "wrist_roll": (0, 4095),
        "gripper": (2021, 3407),
    }
)
"""Motor -> range_min, range_max of a made-up arm, whose middles differ from the driver's zero."""
OPEN = 1.0  # rad
CLOSED = -0.04
START = (0.0, -1.0, 1.0, 0.8, 0.0)
MOVES = (
    (0.3, 2.5, (0.5, -0.2, 0.5, 0.9, 0.3)),
    (2.3, 3.6, (0.55, -0.12, 0.45, 0.95, 0.3)),
    (3.4, 5.2, (0.1, -0.9, 0.9, 0.7, -0.2)),
    (5.0, 6.8, (-0.6, -0.3, 0.5, 0.9, -0.4)),
    (6.6, 7.6, (-0.65, -0.25, 0.45, 0.9, -0.4)),
    (7.4, 9.0, (-0.3, -1.0, 1.0, 0.8, 0.0)),
)
"""Begin and end (s), and the configuration (rad) at the end."""
JAW = ((0.0, OPEN), (2.9, CLOSED), (7.0, OPEN))
"""Since when (s) the gripper is commanded to a position (rad)."""
SECONDS = 9.4


@dataclass(frozen=True)
class ScriptedEpisode:
    """commanded, measured: (T, 6) rad of the motors, the gripper last, at RATE."""

    commanded: Array
    measured: Array


def scripted_episode() -> ScriptedEpisode:
    """The whole motion; the arm follows its commands with a lag."""
    times = np.arange(0.0, SECONDS, 1 / RATE)
    arm = np.tile(np.array(START), (len(times), 1))
    here = np.array(START)
    for begin, end, target in MOVES:
        share = np.clip((times - begin) / (end - begin), 0.0, 1.0)
        smooth = share**3 * (10 - 15 * share + 6 * share**2)
        arm += smooth[:, None] * (np.array(target) - here)
        here = np.array(target)
    jaw = np.select(
        [times >= since for since, _ in JAW[::-1]], [position for _, position in JAW[::-1]]
    )
    commanded = np.column_stack([arm, jaw])
    measured = commanded.copy()
    share = 1 - np.exp(-1 / RATE / np.array([LAG] * 5 + [JAW_LAG]))
    for t in range(1, len(times)):
        measured[t] = measured[t - 1] + share * (commanded[t - 1] - measured[t - 1])
    return ScriptedEpisode(commanded, measured)


def as_recorded(radians: Array, units: str) -> Array:
    """(T, 6) numbers that LeRobot reads of motors at these angles of the driver."""
    ticks = np.rint(radians * TURN / (2 * np.pi)) + DRIVER_ZERO
    columns = []
    for column, (motor, (low, high)) in zip(ticks.T, CALIBRATION.items(), strict=True):
        within = (np.clip(column, low, high) - low) / (high - low)
        if motor == "gripper":
            columns.append(100 * within)
        elif units == "percent":
            columns.append(200 * within - 100)
        else:
            columns.append((column - (low + high) / 2) * 360 / (TURN - 1))
    return np.column_stack(columns)


def write_calibration(path: Path) -> None:
    """LeRobot's calibration file of the made-up arm."""
    motors = {
        name: {
            "id": i + 1,
            "drive_mode": 0,
            "homing_offset": 0,
            "range_min": low,
            "range_max": high,
        }
        for i, (name, (low, high)) in enumerate(CALIBRATION.items())
    }
    path.write_text(json.dumps(motors, indent=4), encoding="utf-8")


def write_robot(folder: Path) -> Path:
    """The shipped SO-101 with the made-up arm's calibration, and a driver whose zeros are not the
    ranges' middles."""
    write_calibration(folder / "my_arm.json")
    shipped = share_directory() / "config" / "robots"
    robot = read_mapping(shipped / "so101.yaml")
    robot["description"]["file"] = str(shipped / "so101.urdf")
    robot["gripper"] |= {"open_position": OPEN, "closed_position": CLOSED}
    robot["lerobot"] = {"calibration": "my_arm.json", "zero": [DRIVER_ZERO]}
    path = folder / "my_so101.yaml"
    path.write_text(yaml.safe_dump(robot), encoding="utf-8")
    return path


class ScriptedRecording:
    """The scripted episode, repeated, as an episode source of LeRobot's numbers. See
    `EpisodeSource`."""

    cameras: tuple[str, ...] = (CAMERA,)
    rate_hz = float(RATE)
    flaws: Sequence[Flaw] = ()
    notes: Sequence[str] = ()
    accept: Sequence[str] = ()
    dropped: Mapping[str, str] = MappingProxyType({})

    def __init__(self, robot: RobotSpec, units: str, episodes: int) -> None:
        self._episode = scripted_episode()
        self._units = units
        self._count = episodes
        self._picture = ArmPicture(robot)

    def __len__(self) -> int:
        return self._count

    def length(self, i: int) -> int:
        return len(self._episode.commanded)

    def origin(self, i: int) -> str:
        return f"scripted, episode {i}"

    def arrays(self, i: int) -> EpisodeArrays:
        stamps = np.round(np.arange(self.length(i)) * NANOSECONDS / RATE).astype(np.int64)
        commanded = as_recorded(self._episode.commanded, self._units)
        measured = as_recorded(self._episode.measured, self._units)
        return EpisodeArrays(
            stamps, commanded, measured, INSTRUCTION, self.origin(i), robot_type="so101_follower"
        )

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        jaw = np.clip((self._episode.measured[:, -1] - CLOSED) / (OPEN - CLOSED), 0.0, 1.0)
        pictures = [
            self._picture.draw(self._episode.measured[t, :-1], float(jaw[t])) for t in steps
        ]
        return {CAMERA: np.stack(pictures)}


def write_folder(folder: Path, robot: RobotSpec, units: str, episodes: int = 1) -> None:
    """A LeRobot folder of version 3 with LeRobot's names of an SO-101."""
    names = [f"{motor}.pos" for motor in CALIBRATION]
    source = ScriptedRecording(robot, units, episodes)
    LeRobotExport(source, _recorded_as(names), images="video").write(folder, log=lambda line: None)
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info["features"]["observation.state"]["names"] = names
    write_json(path, info)


def _recorded_as(names: list[str]) -> PolicyConfig:
    """A configuration that names the recorded numbers."""
    action = {
        "space": "joint_position",
        "frame": "base",
        "rotation": "rotation_vector",
        "composition": "chained",
        "step_duration": 1 / RATE,
        "units": {"joint": 1.0},
        "names": names,
        "gripper": {"open_value": 1},
    }
    return config_from_mapping(
        {
            "model": {"backbone": "paligemma", "history_length": 1, "action_chunk_size": 2},
            "cameras": [CAMERA],
            "action_head": {"action_dim": len(names)},
            "action": action,
            "proprioception": {"names": ["joint_positions", "gripper"], "joints": len(names) - 1},
        }
    )
