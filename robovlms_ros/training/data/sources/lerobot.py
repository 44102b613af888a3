"""LeRobot dataset folders of version 3 (https://huggingface.co/docs/lerobot/lerobot-dataset-v3) and
version 2, without LeRobot.

`meta/info.json` names the features, the rate and the files; `meta/episodes` maps each episode to
its rows and which part of which video an episode is; `meta/tasks` holds the instructions. Version 2
has a table and videos for each episode.
Tables are read by pyarrow, videos by PyAV.

A frame's image is found by its number, at `from_timestamp + frame_index / fps` of the video, and
never by the recorded timestamp, which may come from another clock than the video's. The recorded
timestamps serve the checks of gaps.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.lerobot_units import calibrated_ranges, motor_names
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.file_boundary import file_boundary
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.observations.images import check_pixels
from robovlms_ros.training.data.episodes import (
    UNKNOWN,
    Array,
    DataError,
    EpisodeArrays,
    Flaw,
    Images,
    time_to_takeover,
)
from robovlms_ros.training.data.sources.lerobot_data import (
    BOTH_READINGS,
    is_percent_or_degrees,
    read_block,
    state_columns,
)
from robovlms_ros.training.data.sources.lerobot_metadata import (
    OUTCOME,
    REMEDY,
    SUCCESS,
    InterruptedTableError,
    column_names,
    feature_width,
    interruption_flaw,
    is_downloaded,
    path_inside,
    read_episodes,
    read_info,
    read_table,
    read_tasks,
)
from robovlms_ros.training.data.sources.tick_grid import grid_flaws, seen_units
from robovlms_ros.training.data.sources.video import VideoFrames

BEYOND = 0.25
CLOCK_TOLERANCE = 0.005
"""s by which a timestamp may differ from frame_index / fps without a note."""
STATE_EPISODES = 4
"""Episodes whose states show the recording's unit."""
LISTED = 8
"""Missing files that a message names."""


class LeRobotSource:
    """The episodes of one dataset folder. See `EpisodeSource`. Raises DataError and ConfigError."""

    def __init__(self, path: Path, config: PolicyConfig, mapping: Mapping[str, Any]) -> None:
        assert config.action is not None
        self.path = path
        self.cameras = config.cameras
        self.accept: Sequence[str] = ()
        self.dropped: Mapping[str, str] = {}
        self._states = config.proprioception
        self._info = read_info(path)
        self.rate_hz = float(self._info["fps"])
        self._features: dict[str, Any] = self._info["features"]
        self._data, unit_notes = read_block(mapping, config, self._features, path)
        self._keys = {name: self._camera(name) for name in config.cameras}
        self._columns(config)
        self._tasks = read_tasks(path, self._info)
        videos = [key for key in self._keys.values() if self._is_video(key)]
        self._episodes, flaws = read_episodes(path, self._info, videos)
        self.robot_type = str(self._info.get("robot_type") or "")
        self._video = VideoFrames(0.5 / self.rate_hz)
        flaws += [*self._drop_without_video(videos), *self._drop_without_table(), *self._clock_flaws()]
        if self._data.units != "si":
            found, pose = self._compare_states(config)
            flaws += found
            unit_notes += pose
        self.flaws: Sequence[Flaw] = flaws
        if not self._episodes:
            raise DataError(f"{path}: no episode can be read. " + " ".join(f"{flaw.text}." for flaw in flaws))
        self.notes: Sequence[str] = (*(f"camera '{name}': {key}" for name, key in self._keys.items()),
                                     f"actions: {self._data.action}, {self.rate_hz:g} Hz, robot "
                                     f"{printable(self.robot_type) or 'not named'}, LeRobot "
                                     f"{printable(self._info['codebase_version'])}",
                                     *(unit_notes or self._unit_note(config)))

    def _unit_note(self, config: PolicyConfig) -> list[str]:
        """Both readings of the numbers of an arm that LeRobot records in either."""
        assert config.action is not None
        if not is_percent_or_degrees(self.robot_type) or config.action.space.startswith("eef"):
            return []
        data = self._data
        seen = ""
        if data.state in self._features and self._episodes:
            seen = seen_units(self._sample_of_states(), [str(i) for i in range(feature_width(
                self.path, self._features, data.state))])
        return [f"LeRobot records the joints of {printable(self.robot_type)} as {BOTH_READINGS}; here scale = "
                f"{list(data.scale)}, offset = {list(data.offset)}",
                *([f"the measured states are {seen}"] if seen else [])]

    def _compare_states(self, config: PolicyConfig) -> tuple[list[Flaw], list[str]]:
        """Contradictions between the declared units and the measured states, and a note of the pose
        in which the recording begins."""
        data = self._data
        if data.state not in self._features or not self._episodes:
            return [], []
        robot = load_robot(str(data.robot or config.action.robot))  # type: ignore[union-attr]
        motors = motor_names(robot)
        try:
            columns = state_columns(self._features, data, motors, self.path)
        except DataError as error:
            return [], [f"the measured states were not compared with the units: {error}"]
        states = self._sample_of_states()
        if max(columns) >= states.shape[1]:
            return [], []  # `_proprioception` raises it, with the columns
        states = states[:, columns]
        flaws = grid_flaws(states, motors, data.units, calibrated_ranges(robot), str(self.path))
        if not len(states):
            return flaws, []
        begin = self._in_si(states[0, : len(robot.joints)])
        angles = zip(robot.joints, begin, strict=True)
        pose = ", ".join(f"{joint} {angle:.3f}" for joint, angle in angles)
        note = f"the first frame's state is {pose} rad: the driver's joint_states in that pose"
        return flaws, [note]

    def _sample_of_states(self) -> Array:
        """(N, width) recorded states of the first episodes that can be read."""
        found = []
        for i in range(min(len(self._episodes), STATE_EPISODES)):
            try:
                found.append(self._matrix(self._rows(i, [self._data.state]), self._data.state, i))
            except DataError:
                continue  # `arrays` raises it again, for the episode that is read
        return np.concatenate(found) if found else np.empty((0, feature_width(
            self.path, self._features, self._data.state)))

    def _drop_without_video(self, videos: Sequence[str]) -> list[Flaw]:
        """Leave out the episodes whose video files are missing; one flaw with the list."""
        kept: list[dict[str, Any]] = []
        missing: dict[str, None] = {}  # in order
        dropped: list[str] = []
        present: dict[Path, bool] = {}
        for episode in self._episodes:
            paths = [self._video_path(episode, key) for key in videos]
            for path in paths:
                if path not in present:
                    present[path] = is_downloaded(path)
            absent = [path for path in paths if not present[path]]
            if not absent:
                kept.append(episode)
                continue
            missing.update(dict.fromkeys(str(path.relative_to(self.path)) for path in absent))
            dropped.append(self._name(episode))
        self._episodes = kept
        self.dropped = {**self.dropped, **dict.fromkeys(dropped, "its video files are missing or Git LFS pointers")}
        if not missing:
            return []
        names = list(missing)
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        text = (f"{len(names)} video files are missing or Git LFS pointers, {len(dropped)} episodes need them: "
                f"{', '.join(names[:LISTED])}{more}")
        remedy = ("download them (`git lfs pull`, or the data set again), or train on the other episodes with "
                  "`data: {accept: [missing]}`")
        return [Flaw("missing", str(self.path), text, remedy, True, tuple(dropped))]

    def _drop_without_table(self) -> list[Flaw]:
        """Leave out the episodes whose data file has no footer; one flaw for each file."""
        interrupted: dict[Path, str] = {}
        lost: dict[Path, list[str]] = {}
        checked: set[Path] = set()
        kept: list[dict[str, Any]] = []
        for episode in self._episodes:
            path = self._data_path(episode)
            if path not in checked:
                checked.add(path)
                try:
                    column_names(path)
                except InterruptedTableError as error:
                    interrupted[path] = str(error)
                except DataError:
                    pass  # `arrays` raises it again, for the episode that is read
            if path in interrupted:
                lost.setdefault(path, []).append(self._name(episode))
            else:
                kept.append(episode)
        self._episodes = kept
        flaws = []
        for path, names in lost.items():
            why = f"the recording of {path.name} was interrupted"
            self.dropped = {**self.dropped, **dict.fromkeys(names, why)}
            flaws.append(interruption_flaw(self.path, interrupted[path], len(names), tuple(names)))
        return flaws

    def _clock_flaws(self) -> list[Flaw]:
        """A note where timestamps are not frame_index / fps."""
        worst = 0.0
        places: list[str] = []
        for path, names in self._by_file().items():
            try:
                table = read_table(path, ["episode_index", "frame_index", "timestamp"])
                with file_boundary(DataError, path, REMEDY):
                    stamps = table["timestamp"].to_numpy().astype(np.float64)
                    apart = np.abs(stamps - table["frame_index"].to_numpy() / self.rate_hz)
                    episodes = table["episode_index"].to_numpy()
                    wrong = set(episodes[apart > CLOCK_TOLERANCE].tolist())
                    worst = max(worst, float(apart[np.isfinite(apart)].max(initial=0.0)) if wrong else 0.0)
            except DataError:
                continue  # `arrays` raises it again, for the episode that is read
            places += [name for number, name in names.items() if number in wrong]
        if not places:
            return []
        where = places[0] if len(places) == 1 else f"{self.path}, {len(places)} episodes"
        text = (f"timestamps differ from frame_index / fps by up to {1000 * worst:.0f} ms: the images are found by "
                "frame_index, the timestamps are of another clock than the video's")
        remedy = f"check that the arm was recorded at {self.rate_hz:g} Hz"
        return [Flaw("timestamps", where, text, remedy, episodes=tuple(places))]

    def _by_file(self) -> dict[Path, dict[int, str]]:
        """Data file -> the episodes in it, number -> name."""
        files: dict[Path, dict[int, str]] = {}
        for episode in self._episodes:
            files.setdefault(self._data_path(episode), {})[episode["episode_index"]] = self._name(episode)
        return files

    def _data_path(self, episode: Mapping[str, Any]) -> Path:
        return self._file(episode, "data", "data_path")

    def _video_path(self, episode: Mapping[str, Any], key: str) -> Path:
        return self._file(episode, f"videos/{key}", "video_path", video_key=key)

    def _file(self, episode: Mapping[str, Any], part: str, name: str, **fields: Any) -> Path:
        """A file of the episode. Version 2 calls the numbers of chunk and file otherwise."""
        chunk = episode[f"{part}/chunk_index"]
        file = episode[f"{part}/file_index"]
        fields |= {"chunk_index": chunk, "file_index": file}
        fields |= {"episode_chunk": chunk, "episode_index": file}
        return path_inside(self.path, name, self._info.get(name), **fields)

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
        data = self._data
        arm_dims = config.action_head.action_dim - 1
        if data.action not in self._features:
            raise DataError(f"{self.path}: no feature '{data.action}' with actions."
                            f"{did_you_mean(data.action, self._features)} `data: {{lerobot: {{action: FEATURE}}}}`.")
        width = feature_width(self.path, self._features, data.action)
        self._gripper = data.gripper % width
        self._arm = list(data.arm) or [i for i in range(width) if i != self._gripper]
        if len(self._arm) != arm_dims or not all(0 <= i < width for i in self._arm):
            names = self._features[data.action].get("names")
            raise DataError(f"{self.path}: '{data.action}' has {width} columns ({names}), {len(self._arm)} of them "
                            f"taken for the arm; the policy has {arm_dims} and the gripper. Set data.lerobot.arm and "
                            ".gripper.")
        for name in ("scale", "offset"):
            count = len(getattr(data, name))
            if count not in (1, arm_dims):
                raise ConfigError(f"data.lerobot.{name} has {count} numbers: must be 1 or {arm_dims}.")
        joints = len(data.proprioception.get("joint_positions", ()))
        if joints and not {len(data.scale), len(data.offset)} <= {1, joints}:
            raise ConfigError(
                f"data.lerobot.proprioception.joint_positions has {joints} columns, scale {len(data.scale)} and offset "
                f"{len(data.offset)} numbers: must be 1 or {joints}."
            )
        for name in self._states.names if self._states else ():
            if name not in data.proprioception:
                raise ConfigError(f"data.lerobot.proprioception.{name} is missing: the policy takes it; say which "
                                  f"columns of '{data.state}' it is, of "
                                  f"{self._features.get(data.state, {}).get('names')}.")

    def __len__(self) -> int:
        return len(self._episodes)

    def length(self, i: int) -> int:
        return int(self._episodes[i]["length"])

    def _name(self, episode: Mapping[str, Any]) -> str:
        return f"{self.path}, episode {episode['episode_index']}"

    def origin(self, i: int) -> str:
        return self._name(self._episodes[i])

    def _rows(self, i: int, columns: list[str]) -> Any:
        """The episode's rows of the data table, by frame. Raises DataError unless frames count from
        0."""
        episode = self._episodes[i]
        path = self._data_path(episode)
        table = read_table(path, [*columns, "frame_index"], episode["episode_index"])
        if len(table) != episode["length"]:
            raise DataError(f"{path}: {len(table)} rows of {self.origin(i)}, meta/episodes says {episode['length']}.")
        with file_boundary(DataError, path, REMEDY):
            table = table.sort_by("frame_index")
            frames = table["frame_index"].to_numpy()
        if not np.array_equal(frames, np.arange(len(table))):
            raise DataError(
                f"{path}: frame_index of {self.origin(i)} goes from {frames[0]} to {frames[-1]}: must count from 0 to "
                f"{len(table) - 1}, for images are found by it."
            )
        return table

    def _matrix(self, table: Any, name: str, i: int) -> Array:
        """(T, width) the numbers of a feature."""
        with file_boundary(DataError, f"{self.origin(i)}, column '{name}'", REMEDY):
            return np.stack(table[name].to_pylist()).astype(np.float64).reshape(len(table), -1)

    def arrays(self, i: int) -> EpisodeArrays:
        data = self._data
        states = [data.state] if self._states else []
        flags = [name for name in (data.intervention, SUCCESS) if name in self._features]
        table = self._rows(i, [data.action, "timestamp", "task_index", *states, *flags])
        recorded = self._matrix(table, data.action, i)
        if recorded.shape[1] <= max(*self._arm, self._gripper):
            raise DataError(f"{self.origin(i)}: '{data.action}' has {recorded.shape[1]} columns in the table, "
                            "meta/info.json names more.")
        arm = self._in_si(recorded[:, self._arm])
        actions = np.column_stack([arm, self._opening(recorded[:, self._gripper])])
        with file_boundary(DataError, self.origin(i), REMEDY):
            tasks = set(table["task_index"].to_pylist())
            seconds = table["timestamp"].to_numpy().astype(np.float64)
        if len(tasks) != 1:
            raise DataError(f"{self.origin(i)} holds {len(tasks)} tasks: an episode has one instruction. Split it, or "
                            "exclude it.")
        task = tasks.pop()
        if task not in self._tasks:
            raise DataError(f"{self.origin(i)}: task_index {task} is not in meta/tasks.")
        if not (np.abs(seconds) < 1e9).all():
            raise DataError(f"{self.origin(i)}: a timestamp is {seconds[np.argmax(~(np.abs(seconds) < 1e9))]} s: must "
                            "be a number of seconds from the episode's beginning.")
        stamps = np.round(seconds * NANOSECONDS).astype(np.int64)
        proprioception = self._proprioception(table, i) if self._states else None
        takeover = None
        outcome = self._episodes[i].get(OUTCOME)
        if outcome not in ("success", "failure"):  # other tools leave it empty
            outcome = UNKNOWN
        if SUCCESS in flags and self._matrix(table, SUCCESS, i).any():
            outcome = "success"
        if data.intervention in flags:
            person = self._matrix(table, data.intervention, i)[:, 0] > 0.5
            times = np.arange(len(person)) / self.rate_hz
            takeover = time_to_takeover(times, person, times[person])
        return EpisodeArrays(stamps, actions, proprioception, self._tasks[task], self.origin(i),
                             robot_type=self.robot_type, takeover=takeover, outcome=outcome)

    def _in_si(self, numbers: Array) -> Array:
        return numbers * np.array(self._data.scale) + np.array(self._data.offset)

    def _opening(self, numbers: Array) -> Array:
        data = self._data
        opening = (numbers - data.gripper_closed) / (data.gripper_open - data.gripper_closed)
        if np.mean((opening < -BEYOND) | (opening > 1 + BEYOND)) > 0.05:
            remedy = "set data.lerobot.gripper_closed and .gripper_open"
            if data.units != "si":
                remedy = "set closed_position and open_position of the gripper in the robot's YAML (docs/so101.md)"
            raise DataError(
                f"{self.path}: the gripper's numbers go from {numbers.min():g} to {numbers.max():g}, closed is said to "
                f"be {data.gripper_closed:g} and open {data.gripper_open:g}: {remedy}."
            )
        return np.clip(opening, 0.0, 1.0)

    def _proprioception(self, table: Any, i: int) -> Array:
        assert self._states is not None
        data = self._data
        state = self._matrix(table, data.state, i)
        parts = []
        for name in self._states.names:
            columns = list(data.proprioception[name])
            if not all(-state.shape[1] <= column < state.shape[1] for column in columns):
                raise ConfigError(f"data.lerobot.proprioception.{name} = {columns}: '{data.state}' of {self.path} has "
                                  f"{state.shape[1]} columns.")
            values = state[:, columns]
            if name == "joint_positions":
                values = self._in_si(values)
            parts.append(self._opening(values) if name == "gripper" else values)
        return np.column_stack(parts)

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        steps = np.asarray(steps, dtype=np.int64)
        if len(steps) and not 0 <= steps.min() <= steps.max() < self.length(i):
            raise DataError(f"{self.origin(i)}: steps {steps.min()} to {steps.max()} of {self.length(i)}.")
        stored = [key for key in self._keys.values() if not self._is_video(key)]
        table = self._rows(i, stored) if stored else None
        episode = self._episodes[i]
        found = {}
        for name, key in self._keys.items():
            if self._is_video(key):
                times = steps / self.rate_hz + episode[f"videos/{key}/from_timestamp"]
                found[name] = self._video.at(self._video_path(episode, key), list(times))
            else:
                assert table is not None
                with file_boundary(DataError, f"{self.origin(i)}, images '{key}'", REMEDY):
                    pictures = table[key].take(steps).to_pylist()
                    found[name] = np.stack([self._picture(picture, key, i) for picture in pictures])
        return found

    def _picture(self, stored: Any, key: str, i: int) -> NDArray[np.uint8]:
        """An image in the table: encoded bytes, or a path inside the folder."""
        try:
            data = stored["bytes"] or path_inside(self.path, f"path of '{key}'", stored["path"]).read_bytes()
            with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
                check_pixels(*image.size)
                return np.asarray(image.convert("RGB"))
        except DataError:
            raise
        except Exception as error:  # damaged bytes raise anything in a decoder
            reason = printable(str(error), 200).rstrip(".")
            raise DataError(f"{self.origin(i)}: an image of '{key}' does not decode: {reason}.") from error
