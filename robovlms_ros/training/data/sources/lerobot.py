"""LeRobot dataset folders of version 3 (https://huggingface.co/docs/lerobot/lerobot-dataset-v3), without LeRobot.

`meta/info.json` names the features, the rate and the files; `meta/episodes` says which rows and which part of which
video an episode is; `meta/tasks.parquet` holds the instructions. Tables are read by pyarrow, videos by PyAV.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.config import PolicyConfig
from robovlms_ros.schema import ConfigError, build, did_you_mean
from robovlms_ros.training.data.episodes import Array, DataError, EpisodeArrays, Flaw, Images
from robovlms_ros.training.data.sources.video import VideoFrames
from robovlms_ros.types import NANOSECONDS

INDEX = "__index_level_0__"
BEYOND = 0.25


@dataclass(frozen=True)
class LeRobotData:
    """The `data.lerobot` block of a training YAML.

    cameras: the policy's camera name -> feature; by default the feature whose last part has that name.
    action: the feature with the recorded actions, in the policy's `action.space`. arm, gripper: its columns; by default
        the last is the gripper's and the others the arm's. scale: SI units per recorded number of the arm, one for all
        or one each (degrees: 0.017453). gripper_closed, gripper_open: recorded numbers of a closed and an open gripper.
    state: the feature with the measured state; proprioception: name -> its columns, for the names that the policy
        takes. Joint positions take `scale`, the gripper its own numbers, poses are metres and radians.
    """

    cameras: dict[str, str] = field(default_factory=dict)
    action: str = "action"
    arm: tuple[int, ...] = ()
    gripper: int = -1
    scale: tuple[float, ...] = (1.0,)
    gripper_closed: float = 0.0
    gripper_open: float = 1.0
    state: str = "observation.state"
    proprioception: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gripper_closed == self.gripper_open:
            raise ConfigError(f"data.lerobot: gripper_closed and gripper_open are both {self.gripper_open:g}: must "
                              "differ.")


class LeRobotSource:
    """The episodes of one dataset folder. See `EpisodeSource`. Raises DataError and ConfigError."""

    def __init__(self, path: Path, config: PolicyConfig, mapping: Mapping[str, Any]) -> None:
        self._data = build(LeRobotData, mapping, "data.lerobot")
        assert config.action is not None
        self.path, self.cameras = path, config.cameras
        self.flaws: Sequence[Flaw] = ()
        self.accept: Sequence[str] = ()
        self._states = config.proprioception
        self._info = _read_info(path)
        self.rate_hz = float(self._info["fps"])
        step = config.action.step_duration
        if abs(step * self.rate_hz - 1) > 0.01:
            raise ConfigError(f"action.step_duration = {step:g} s, {path} was recorded at {self.rate_hz:g} Hz: must be "
                              f"{1 / self.rate_hz:.4g}. Its actions are from frame to frame.")
        self._features: dict[str, Any] = self._info["features"]
        self._keys = {name: self._camera(name) for name in config.cameras}
        self._columns(config)
        self._tasks = _read_tasks(path)
        self._episodes = _read_episodes(path, [key for key in self._keys.values() if self._is_video(key)])
        self._video = VideoFrames(0.5 / self.rate_hz)
        self._times: dict[int, Array] = {}  # of the frames of an episode, s
        self.notes: Sequence[str] = (*(f"camera '{name}': {key}" for name, key in self._keys.items()),
                                     f"actions: {self._data.action}, {self.rate_hz:g} Hz, robot "
                                     f"{self._info.get('robot_type') or 'not named'}")

    def _is_video(self, key: str) -> bool:
        return bool(self._features[key]["dtype"] == "video")

    def _camera(self, name: str) -> str:
        pictures = [key for key, feature in self._features.items() if feature.get("dtype") in ("video", "image")]
        key = self._data.cameras.get(name)
        if key is None:
            key = next((key for key in pictures if key.rsplit(".", 1)[-1] == name), None)
            key = pictures[0] if key is None and len(pictures) == len(self.cameras) == 1 else key
        if key not in pictures:
            raise DataError(f"{self.path}: no images for the policy's camera '{name}'"
                            f"{f' ({key})' if key else ''}; image features there: {', '.join(pictures) or 'none'}. Say "
                            f"which it is: `data: {{lerobot: {{cameras: {{{name}: FEATURE}}}}}}`.")
        return key

    def _columns(self, config: PolicyConfig) -> None:
        """Settle which columns are what. Raises DataError and ConfigError."""
        data, arm_dims = self._data, config.action_head.action_dim - 1
        if data.action not in self._features:
            raise DataError(f"{self.path}: no feature '{data.action}' with actions."
                            f"{did_you_mean(data.action, self._features)} `data: {{lerobot: {{action: FEATURE}}}}`.")
        width = int(np.prod(self._features[data.action]["shape"]))
        self._gripper = data.gripper % width
        self._arm = list(data.arm) or [i for i in range(width) if i != self._gripper]
        if len(self._arm) != arm_dims or max(self._arm) >= width:
            names = self._features[data.action].get("names")
            raise DataError(f"{self.path}: '{data.action}' has {width} columns ({names}), {len(self._arm)} of them "
                            f"taken for the arm; the policy has {arm_dims} and the gripper. Set data.lerobot.arm and "
                            ".gripper.")
        if len(data.scale) not in (1, arm_dims):
            raise ConfigError(f"data.lerobot.scale has {len(data.scale)} numbers: must be 1 or {arm_dims}.")
        for name in self._states.names if self._states else ():
            if name not in data.proprioception:
                raise ConfigError(f"data.lerobot.proprioception.{name} is missing: the policy takes it; say which "
                                  f"columns of '{data.state}' it is, of "
                                  f"{self._features.get(data.state, {}).get('names')}.")

    def __len__(self) -> int:
        return len(self._episodes)

    def length(self, i: int) -> int:
        return int(self._episodes[i]["length"])

    def origin(self, i: int) -> str:
        return f"{self.path}, episode {self._episodes[i]['episode_index']}"

    def _rows(self, i: int, columns: list[str]) -> Any:
        """The episode's rows of the data table, by frame."""
        import pyarrow.parquet as parquet

        episode = self._episodes[i]
        path = self.path / self._info["data_path"].format(
            chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"])
        try:
            table = parquet.read_table(path, columns=[*columns, "frame_index"],
                                       filters=[("episode_index", "=", episode["episode_index"])])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: cannot be read ({error}). Is it a Git LFS pointer?") from error
        if len(table) != episode["length"]:
            raise DataError(f"{path}: {len(table)} rows of {self.origin(i)}, meta/episodes says {episode['length']}.")
        return table.sort_by("frame_index")

    def arrays(self, i: int) -> EpisodeArrays:
        data = self._data
        states = [data.state] if self._states else []
        table = self._rows(i, [data.action, "timestamp", "task_index", *states])
        recorded = np.stack(table[data.action].to_pylist()).astype(np.float64).reshape(len(table), -1)
        arm = recorded[:, self._arm] * np.array(data.scale)
        actions = np.column_stack([arm, self._opening(recorded[:, self._gripper])])
        tasks = set(table["task_index"].to_pylist())
        if len(tasks) != 1:
            raise DataError(f"{self.origin(i)} holds {len(tasks)} tasks: an episode has one instruction. Split it, or "
                            "exclude it.")
        stamps = np.round(table["timestamp"].to_numpy().astype(np.float64) * NANOSECONDS).astype(np.int64)
        proprioception = self._proprioception(table) if self._states else None
        return EpisodeArrays(stamps, actions, proprioception, self._tasks[tasks.pop()], self.origin(i))

    def _opening(self, numbers: Array) -> Array:
        data = self._data
        opening = (numbers - data.gripper_closed) / (data.gripper_open - data.gripper_closed)
        if np.mean((opening < -BEYOND) | (opening > 1 + BEYOND)) > 0.05:
            raise DataError(
                f"{self.path}: the gripper's numbers go from {numbers.min():g} to {numbers.max():g}, closed is said to "
                f"be {data.gripper_closed:g} and open {data.gripper_open:g}: set data.lerobot.gripper_closed and "
                ".gripper_open."
            )
        return np.clip(opening, 0.0, 1.0)

    def _proprioception(self, table: Any) -> Array:
        assert self._states is not None
        data = self._data
        state = np.stack(table[data.state].to_pylist()).astype(np.float64).reshape(len(table), -1)
        parts = []
        for name in self._states.names:
            values = state[:, list(data.proprioception[name])]
            if name == "joint_positions":
                values = values * np.array(data.scale)
            parts.append(self._opening(values) if name == "gripper" else values)
        return np.column_stack(parts)

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        steps = np.asarray(steps, dtype=np.int64)
        stored = [key for key in self._keys.values() if not self._is_video(key)]
        if stored or i not in self._times:
            table = self._rows(i, ["timestamp", *stored])
            self._times[i] = table["timestamp"].to_numpy().astype(np.float64)
        times = self._times[i][steps]
        found = {}
        for name, key in self._keys.items():
            if self._is_video(key):
                episode = self._episodes[i]
                path = self.path / self._info["video_path"].format(
                    video_key=key, chunk_index=episode[f"videos/{key}/chunk_index"],
                    file_index=episode[f"videos/{key}/file_index"])
                found[name] = self._video.at(path, list(times + episode[f"videos/{key}/from_timestamp"]))
            else:
                pictures = table[key].take(steps).to_pylist()
                found[name] = np.stack([self._picture(picture, key, i) for picture in pictures])
        return found

    def _picture(self, stored: Any, key: str, i: int) -> NDArray[np.uint8]:
        """An image in the table: encoded bytes, or a path beside the folder."""
        try:
            data = stored["bytes"] or (self.path / stored["path"]).read_bytes()
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, KeyError, TypeError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.origin(i)}: an image of '{key}' does not decode: {error}.") from error


def _read_info(path: Path) -> dict[str, Any]:
    """meta/info.json of a version 3 folder. Raises DataError."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DataError(f"{path}: LeRobot's tables are read by pyarrow, which is not installed: pip install "
                        "pyarrow.") from error
    file = path / "meta" / "info.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version, needed = str(info["codebase_version"]), ("fps", "features", "data_path")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not LeRobot's description of a dataset ({error!r}).") from error
    if not version.startswith("v3."):
        raise DataError(f"{path}: LeRobot dataset of version {version}: must be v3. LeRobot's converter makes one: "
                        "python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=...")
    missing = [name for name in needed if name not in info]
    if missing:
        raise DataError(f"{file}: no '{missing[0]}'.")
    return info


def _read_tasks(path: Path) -> dict[int, str]:
    """task index -> instruction; the texts are the table's pandas index, or a column `task`."""
    import pyarrow.parquet as parquet

    file = path / "meta" / "tasks.parquet"
    try:
        table = parquet.read_table(file)
        texts = table[INDEX if INDEX in table.column_names else "task"].to_pylist()
        return {int(number): str(text) for number, text in zip(table["task_index"].to_pylist(), texts, strict=True)}
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as the table of tasks ({error}).") from error


def _read_episodes(path: Path, videos: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of meta/episodes in order, without their statistics."""
    import pyarrow.parquet as parquet

    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"videos/{key}/{name}" for key in videos for name in ("chunk_index", "file_index", "from_timestamp")]
    rows: list[dict[str, Any]] = []
    for file in sorted((path / "meta" / "episodes").rglob("*.parquet")):
        try:
            rows += parquet.read_table(file, columns=columns).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{file}: cannot be read as a table of episodes ({error}).") from error
        if rows and len(rows[-1]) != len(columns):
            missing = sorted(set(columns) - rows[-1].keys())
            raise DataError(f"{file}: no column '{missing[0]}'.")
    if not rows:
        raise DataError(f"{path}: meta/episodes holds no episode.")
    return sorted(rows, key=lambda row: row["episode_index"])
