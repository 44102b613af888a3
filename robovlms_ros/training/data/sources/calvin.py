"""CALVIN-format folders (https://github.com/mees/calvin, `dataset`): one .npz a step, language
beside them.

`auto_lang_ann.npy` in `lang_annotations`, or else in a folder `lang_*` of one language model, names
the episodes (first and last step, both included) and their instructions; without it,
`ep_start_end_ids.npy` does, and the instruction has to be given. Relative actions are the robot's
own: 1 is 0.02 m or 0.05 rad, and 1 opens the gripper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.caps import MAX_ARRAY_BYTES, MAX_EPISODE_STEPS, MAX_EPISODES
from robovlms_ros.core.file_boundary import file_boundary, require_file
from robovlms_ros.core.rotations import matrix_from, vector_from_matrix
from robovlms_ros.core.schema import ConfigError, build, require
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.training.data.episodes import Array, DataError, EpisodeArrays, Flaw, Images
from robovlms_ros.training.data.sources.restricted_pickle import read_objects

RELATIVE = np.array([0.02, 0.02, 0.02, 0.05, 0.05, 0.05])  # m, rad
OPEN_WIDTH = 0.08  # m, between the fingers
JOINTS = slice(7, 14)
ANNOTATIONS = "auto_lang_ann.npy"
REMEDY = "Download or unpack the folder again."


def annotation_files(path: Path) -> list[Path]:
    """The annotation files of a CALVIN folder, the one to use first."""
    found = sorted(path.glob(f"lang_*/{ANNOTATIONS}"))
    return sorted(found, key=lambda file: file.parent.name != "lang_annotations")


@dataclass(frozen=True)
class CalvinData:
    """The `data.calvin` block of a training YAML.

    cameras: the policy's camera name -> key in the .npz; by default a name with `wrist`, `hand` or
        `gripper` in it is `rgb_gripper`, every other `rgb_static`. rate_hz: of the recording.
        rotation: of the three angles in the data.
    instruction: for folders without annotations.
    """

    cameras: dict[str, str] = field(default_factory=dict)
    rate_hz: float = 30.0
    rotation: Literal["euler_xyz_extrinsic", "euler_xyz_intrinsic"] = "euler_xyz_extrinsic"
    instruction: str = ""

    def __post_init__(self) -> None:
        require(0 < self.rate_hz <= 1000, "data.calvin.rate_hz", self.rate_hz, "above 0 and at most 1000 Hz")


class CalvinSource:
    """The episodes of one CALVIN folder (`training` or `validation`). See `EpisodeSource`. Nothing
    is held in memory.

    Raises DataError and ConfigError.
    """

    def __init__(self, path: Path, config: PolicyConfig, mapping: Mapping[str, Any]) -> None:
        data = build(CalvinData, mapping, "data.calvin")
        assert config.action is not None
        self.path = path
        self.cameras = config.cameras
        self.rate_hz = data.rate_hz
        self.flaws: Sequence[Flaw] = ()
        self.accept: Sequence[str] = ()
        self.dropped: Mapping[str, str] = {}
        self._action = config.action
        self._proprioception = config.proprioception
        self._rotation = data.rotation
        self._key = self._action_key(config)
        self._spans, self._instructions = self._episodes(data)
        self._origins = _united(self._spans)
        self._keys = {name: data.cameras.get(name) or _default_key(name) for name in config.cameras}
        self.notes: Sequence[str] = (
            *(f"camera '{name}': {key}" for name, key in self._keys.items()),
            f"actions: {self._key}, {data.rate_hz:g} Hz",
            f"instructions: {self._words}",
        )
        self._check_first()

    def _action_key(self, config: PolicyConfig) -> str:
        action = self._action
        if action.space == "eef_delta" and action.frame == "base" and action.rotation == self._rotation:
            return "rel_actions"
        if action.space == "eef_pose" and action.rotation == self._rotation:
            return "actions"
        raise ConfigError(
            f"action: space '{action.space}', frame '{action.frame}', rotation '{action.rotation}' with {self.path}: a "
            f"CALVIN folder holds eef_delta in the base frame and eef_pose, both with {self._rotation}."
        )

    def _episodes(self, data: CalvinData) -> tuple[NDArray[np.int64], list[str]]:
        """(E, 2) first and last steps, and their instructions."""
        files = annotation_files(self.path)
        self._words = f"{files[0].parent.name}/{files[0].name}" if files else "data.calvin.instruction"
        if files:
            annotations = files[0]
            table = read_objects(annotations)
            try:
                spans = np.array([tuple(span) for span in table["info"]["indx"]], dtype=np.int64)
                texts = [str(text) for text in table["language"]["ann"]]
            except Exception as error:  # whatever the file holds in place of the two lists
                raise DataError(
                    f"{annotations}: not CALVIN's annotations (info.indx, language.ann): "
                    f"{printable(repr(error))}.") from error
        else:
            ends = self.path / "ep_start_end_ids.npy"
            require_file(DataError, ends, MAX_ARRAY_BYTES, "MAX_ARRAY_BYTES")
            with file_boundary(DataError, ends, REMEDY):
                spans = np.asarray(np.load(ends, allow_pickle=False)).astype(np.int64)
                if spans.ndim != 2:
                    raise DataError(f"{ends}: an array of shape {spans.shape}: must be (episodes, 2).")
            texts = [data.instruction] * len(spans)
            if not data.instruction:
                raise DataError(f"{self.path}: no lang_annotations/{ANNOTATIONS} nor lang_*/{ANNOTATIONS}, so nothing "
                                "says what was done. Give `data: {calvin: {instruction: TEXT}}`.")
        if len(spans) != len(texts) or not len(spans) or spans.shape[1:] != (2,) or (spans[:, 1] < spans[:, 0]).any():
            raise DataError(f"{self.path}: {len(texts)} instructions for episodes of shape {spans.shape}: must be one "
                            "for each (first, last), first not after last.")
        if len(spans) > MAX_EPISODES or (spans < 0).any() or (spans > 10**9).any():
            raise DataError(f"{self.path}: episodes name steps {spans.min()} to {spans.max()}: must be 0 to 10^9, and "
                            f"at most {MAX_EPISODES} episodes (MAX_EPISODES).")
        longest = int((spans[:, 1] - spans[:, 0]).max()) + 1
        if longest > MAX_EPISODE_STEPS:
            raise DataError(f"{self.path}: an episode of {longest} steps, at most {MAX_EPISODE_STEPS} are read "
                            "(MAX_EPISODE_STEPS).")
        return spans, texts

    def _check_first(self) -> None:
        with self._step(int(self._spans[0, 0])) as step:
            wanted = [*self._keys.values(), self._key, *(["robot_obs"] if self._proprioception else [])]
            missing = [key for key in wanted if key not in step]
            if missing:
                have = printable(", ".join(sorted(step)), 300)
                raise DataError(f"{self.path}: no '{missing[0]}' in its steps; they hold {have}. "
                                f"{self._missing_remedy(missing[0])}")

    def _missing_remedy(self, key: str) -> str:
        if key == "robot_obs":
            return "The measured state is in it: leave `proprioception` out of the policy's configuration."
        if key == self._key:
            relative = key == "rel_actions"
            space = "eef_pose" if relative else "eef_delta"
            other = "actions" if relative else "rel_actions"
            return (f"The {'relative' if relative else 'absolute'} actions are in it. Take a release of the data with "
                    f"them, or set `action.space: {space}` where '{other}' is there.")
        return "Give the camera's key: `data: {calvin: {cameras: {NAME: KEY}}}`."

    def __len__(self) -> int:
        return len(self._spans)

    def length(self, i: int) -> int:
        return int(self._spans[i, 1] - self._spans[i, 0]) + 1

    def origin(self, i: int) -> str:
        first, last = self._origins[i]
        return f"{self.path}, steps {first} to {last}"

    def _step(self, index: int) -> Any:
        path = self.path / f"episode_{index:07d}.npz"
        try:
            require_file(DataError, path, MAX_ARRAY_BYTES, "MAX_ARRAY_BYTES")
            step = np.load(path, allow_pickle=False)
            size = sum(entry.file_size for entry in step.zip.infolist())
        except Exception as error:  # damaged bytes raise anything in the reader
            raise DataError(f"{path}: a step of the episode is missing or damaged ({printable(error)}). "
                            f"{REMEDY}") from error
        if size > MAX_ARRAY_BYTES:
            step.close()
            raise DataError(f"{path}: {size} bytes uncompressed, at most {MAX_ARRAY_BYTES} are read (MAX_ARRAY_BYTES).")
        return step

    def arrays(self, i: int) -> EpisodeArrays:
        actions = []
        states = []
        for index in range(self._spans[i, 0], self._spans[i, 1] + 1):
            with self._step(index) as step:
                actions.append(self._taken(step, self._key, index))
                if self._proprioception is not None:
                    states.append(self._state(self._taken(step, "robot_obs", index)))
        stamps = np.round(np.arange(len(actions)) * NANOSECONDS / self.rate_hz).astype(np.int64)
        values = np.array(actions, dtype=np.float64)
        if self._key == "rel_actions":
            values[:, :6] *= RELATIVE
        values[:, 6] = (values[:, 6] > 0).astype(np.float64)
        proprioception = np.array(states) if states else None
        return EpisodeArrays(stamps, values, proprioception, self._instructions[i], self.origin(i))

    def _taken(self, step: Any, key: str, index: int) -> Array:
        size = {"robot_obs": 15}.get(key, 7)
        with file_boundary(DataError, f"{self.path}: step {index}: '{key}'", REMEDY):
            values = np.asarray(step[key], dtype=np.float64)
        if values.ndim != 1 or len(values) < size or (key == self._key and len(values) > size):
            raise DataError(f"{self.path}: step {index}: '{key}' has shape {values.shape}: must be ({size},).")
        return values

    def _state(self, robot: Array) -> Array:
        """The policy's proprioception out of robot_obs: tcp position, tcp angles, width, seven
        joints, gripper."""
        assert self._proprioception is not None
        parts = {"eef_position": robot[0:3], "gripper": np.clip(robot[6:7] / OPEN_WIDTH, 0, 1),
                 "joint_positions": robot[JOINTS],
                 "eef_rotation_vector": vector_from_matrix(matrix_from(robot[3:6], self._rotation))}
        return np.concatenate([np.ravel(parts[name]) for name in self._proprioception.names])

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        found: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in self.cameras}
        for number in np.asarray(steps, dtype=np.int64):
            index = int(self._spans[i, 0] + number)
            with self._step(index) as step:
                for name, key in self._keys.items():
                    with file_boundary(DataError, f"{self.path}: step {index}: '{key}'", REMEDY):
                        image: Any = step[key] if key in step else np.empty(0)
                    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                        raise DataError(f"{self.path}: step {index}: '{key}' is {image.shape} {image.dtype}: must be "
                                        "(H, W, 3) uint8 RGB.")
                    if found[name] and found[name][0].shape != image.shape:
                        raise DataError(f"{self.path}: step {index}: '{key}' is {image.shape}, others of the episode "
                                        f"{found[name][0].shape}.")
                    found[name].append(image)
        return {name: np.stack(images) for name, images in found.items()}


def _united(spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """(E, 2) the first and last step of what each span overlaps with: annotated pieces of one
    recording."""
    united = spans.copy()
    group: list[int] = []
    for i in np.argsort(spans[:, 0], kind="stable"):
        if group and spans[i, 0] > united[group[0], 1]:
            group = []
        group.append(int(i))
        united[group] = spans[group].min(), spans[group].max()
    return united


def _default_key(camera: str) -> str:
    return "rgb_gripper" if any(word in camera for word in ("wrist", "hand", "gripper")) else "rgb_static"
