"""Rosbags as an episode source: numbers in memory, images read from the file by time on
access."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.planner import EEF_SPACES
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.schema import ConfigError, build
from robovlms_ros.core.types import NANOSECONDS, ObservationError, RoboVLMsError
from robovlms_ros.evaluation.bags.mapping import bag_description
from robovlms_ros.evaluation.bags.reader import Bag
from robovlms_ros.evaluation.replay.events import DISCARD, DISCARDED
from robovlms_ros.evaluation.replay.steps import step_times
from robovlms_ros.inference.proprioception import state_vector
from robovlms_ros.observations.images import to_rgb
from robovlms_ros.observations.joint_states import stamp_of
from robovlms_ros.training.data.episodes import DataError, EpisodeArrays, Flaw, Images
from robovlms_ros.training.data.sources.bag_episodes import BagData, BagFrame, BagReader, Piece, Recorded

OPEN_BAGS = 8
RUN_NS = NANOSECONDS


@dataclass(frozen=True)
class BagEpisode:
    """One evenly sampled piece of a recorded episode.

    images: camera -> (T, 2) int64, when the bag received each image and the image's own stamp, ns.
    """

    origin: str
    arrays: EpisodeArrays
    images: dict[str, NDArray[np.int64]]


class OpenBags:
    """The bags that this process has open; a forked or unpickled copy begins with none."""

    def __init__(self) -> None:
        self._bags: OrderedDict[Path, Bag] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def get(self, path: Path) -> Bag:
        """The bag, opened here."""
        if self._process != os.getpid():
            self.__init__()  # type: ignore[misc]
        if path not in self._bags:
            while len(self._bags) >= OPEN_BAGS:
                self._bags.popitem(last=False)[1].__exit__()
            self._bags[path] = Bag(path).__enter__()
        self._bags.move_to_end(path)
        return self._bags[path]


class BagSource:
    """The episodes of one bag. See `EpisodeSource`."""

    def __init__(
        self, path: Path, cameras: tuple[str, ...], rate_hz: float, topics: dict[str, str],
        episodes: Sequence[BagEpisode], flaws: Sequence[Flaw], notes: Sequence[str],
        dropped: Mapping[str, str], encodings: Mapping[str, str], policies: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.cameras = cameras
        self.rate_hz = rate_hz
        self.flaws: Sequence[Flaw] = tuple(flaws)
        self.notes: Sequence[str] = tuple(notes)
        self.accept: Sequence[str] = ()
        self.dropped = dropped
        self.policies = policies
        self._encodings = encodings
        self._topics = topics
        self._episodes = list(episodes)
        self._open = OpenBags()

    @classmethod
    def open(cls, path: Path, config: PolicyConfig, mapping: Mapping[str, Any]) -> "BagSource":
        """Read the bag once. Raises DataError, BagError and ConfigError."""
        assert config.action is not None
        data = build(BagData, mapping, "data.bag")
        name = data.robot or config.action.robot
        if name is None:
            raise ConfigError("data.bag.robot is missing: joint names, tool and gripper of a bag are those of a robot. "
                              "Give a name (panda) or a YAML, or set action.robot.")
        try:
            robot = load_robot(name)
        except RoboVLMsError as error:
            raise ConfigError(f"{'action' if data.robot is None else 'data.bag'}.robot: {error} Give the path of your "
                              "robot's YAML as data.bag.robot.") from error
        states = config.proprioception.names if config.proprioception else ()
        posed = config.action.space in EEF_SPACES or any(state.startswith("eef") for state in states)
        kinematics = None
        if posed:
            source = robot.description_path or bag_description(path, str(robot.description.topic))
            kinematics = Kinematics.for_robot(robot, source)
        reader = BagReader(path, config, data, robot, kinematics)
        reader.read()
        _require_frames(reader)
        left = {recorded.origin: _outcome_text(recorded.outcome) for recorded in reader.recorded
                if recorded.outcome not in data.outcomes}
        reader.flaws = [flaw for flaw in reader.flaws if flaw.where not in left]
        kept_ones = [recorded for recorded in reader.recorded if recorded.origin not in left]
        episodes = [episode for recorded in kept_ones for episode in _episodes(reader, recorded)]
        if kept_ones and not episodes:
            raise DataError(_unknown_actions(reader))
        reader.notes += [f"{count} times: {reason}" for reason, count in reader.lost.items()]
        kept = {episode.origin for episode in episodes}
        dropped = left | {recorded.origin: f"no {reader.horizon} steps in a row of it are known"
                          for recorded in kept_ones if recorded.origin not in kept}
        reader.notes += [f"{name} is left out: {why}" for name, why in dropped.items()]
        return cls(path, config.cameras, 1.0 / config.action.step_duration, reader.topics, episodes, reader.flaws,
                   reader.notes, dropped, reader.encodings, reader.policies)

    def __len__(self) -> int:
        return len(self._episodes)

    def length(self, i: int) -> int:
        return len(self._episodes[i].arrays)

    def origin(self, i: int) -> str:
        return self._episodes[i].origin

    def arrays(self, i: int) -> EpisodeArrays:
        return self._episodes[i].arrays

    def images(self, i: int, steps: Sequence[int] | NDArray[np.int64]) -> Images:
        episode = self._episodes[i]
        found = {}
        for camera in self.cameras:
            places = episode.images[camera][np.asarray(steps, dtype=np.int64)]  # (n, 2)
            pictures = self._pictures(camera, {(int(log), int(stamp)) for log, stamp in places}, episode.origin)
            found[camera] = np.stack([pictures[int(log), int(stamp)] for log, stamp in places])
        return found

    def _pictures(
        self, camera: str, wanted: set[tuple[int, int]], origin: str
    ) -> dict[tuple[int, int], NDArray[np.uint8]]:
        """(log time, stamp) -> image, reading the file near each of the times once."""
        bag = self._open.get(self.path)
        topic = self._topics[camera]
        times = {log for log, _ in wanted}
        found: dict[tuple[int, int], NDArray[np.uint8]] = {}
        for begin, end in _runs(sorted(times)):
            for raw in bag.between({topic}, begin, end):
                message = bag.decode(raw) if raw.log_ns in times else None
                if message is not None and (raw.log_ns, stamp_of(message)) in wanted:
                    try:
                        found[raw.log_ns, stamp_of(message)] = to_rgb(
                            message, encoding=self._encodings.get(camera))
                    except ObservationError as error:
                        raise DataError(f"{origin}: an image of camera '{camera}' is damaged: {error} Exclude the "
                                        f"episode (`data: {{exclude: [...]}}`).") from error
        missing = wanted - found.keys()
        if missing:
            raise DataError(f"{origin}: {len(missing)} images of {topic} that were there when the bag was opened are "
                            "gone. Has the file been changed since?")
        return found


def _outcome_text(outcome: str) -> str:
    if outcome == DISCARD:
        return DISCARDED
    return f"its outcome is {outcome}, which data.bag.outcomes leaves out"


def _runs(times: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of the runs that are no further apart than a second."""
    runs: list[tuple[int, int]] = []
    for time in times:
        if runs and time - runs[-1][1] <= RUN_NS:
            runs[-1] = (runs[-1][0], time)
        else:
            runs.append((time, time))
    return runs


def _episodes(reader: BagReader, recorded: Recorded) -> list[BagEpisode]:
    """The pieces of a recorded episode in which every step has an action; pieces shorter than
    a chunk are left."""
    runs = [run for piece in recorded.pieces for run in _known_runs(reader, piece, recorded.end_ns)]
    if len(runs) == 1:
        # short or not: leaving it out is the user's decision
        return [_episode(reader, recorded, *runs[0])]
    kept = [run for run in runs if run[2] - run[1] >= reader.horizon]
    if len(kept) < len(runs):
        reader.flaws.append(Flaw("short", recorded.origin, f"{len(runs) - len(kept)} pieces of it are shorter than a "
                                 f"chunk of {reader.horizon} steps and left out", "record without gaps"))
    return [_episode(reader, recorded, *run) for run in kept]


def _known_runs(reader: BagReader, piece: Piece, end_ns: int | None) -> list[tuple[Piece, int, int]]:
    """(piece, first, end) of the runs of frames whose next step is known. Steps after the episode's
    end are not."""
    for frame, (_, known) in zip(piece.frames, piece.chunks, strict=True):
        if end_ns is not None:
            known &= step_times(frame.stamp_ns, reader.spec, reader.horizon) <= end_ns
    flags = np.array([known[0] for _, known in piece.chunks], dtype=np.int8)
    edges = np.flatnonzero(np.diff(flags, prepend=0, append=0))
    return [(piece, int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def _episode(reader: BagReader, recorded: Recorded, piece: Piece, first: int, end: int) -> BagEpisode:
    frames = piece.frames[first:end]
    config = reader.config
    chunks = np.stack([values for values, _ in piece.chunks[first:end]])
    known = np.stack([flags for _, flags in piece.chunks[first:end]])
    states = None
    if config.proprioception is not None:
        try:
            states = np.stack([state_vector(config.proprioception, f.state) for f in frames]).astype(np.float64)
        except ObservationError as error:
            place = _without_opening(reader, frames) if "gripper" in config.proprioception.names else ""
            raise DataError(
                f"{recorded.origin}: {error}{place} Record it, or leave it out of proprioception."
            ) from error
    poses = [f.state.eef_pose for f in frames if f.state.eef_pose is not None]
    openings = [f.state.gripper for f in frames if f.state.gripper is not None]
    stamps = np.array([f.stamp_ns for f in frames], dtype=np.int64)
    arrays = EpisodeArrays(
        stamps, chunks[:, 0], states, piece.instruction,
        recorded.origin, chunks, known,
        poses=np.stack(poses) if len(poses) == len(frames) else None,
        openings=np.array(openings) if len(openings) == len(frames) else None,
        takeover=reader.takeover(stamps, recorded.end_ns), outcome=recorded.outcome)
    places = {camera: np.array([(f.images[camera].log_ns, f.images[camera].stamp_ns) for f in frames], dtype=np.int64)
              for camera in config.cameras}
    return BagEpisode(recorded.origin, arrays, places)


def _unknown_actions(reader: BagReader) -> str:
    """The reason why no frame of the bag has a known action."""
    frames = [frame for recorded in reader.recorded for piece in recorded.pieces for frame in piece.frames]
    gripper = reader.robot.gripper
    if gripper is not None and reader.gripper_commands is None and all(frame.state.gripper is None for frame in frames):
        return (
            f"{reader.path}: the gripper's part of every action is unknown: no topic holds gripper commands, and no "
            f"joint state names the gripper's joint '{gripper.joint}'. Set `gripper.joint` in the YAML of robot "
            f"'{reader.robot.name}' to the name in joint_states, record these joint states, or name the commands in "
            "`data: {bag: {topics: {gripper_commands: TOPIC}}}`."
        )
    return (
        f"{reader.path}: {len(frames)} images, but none is followed by a command that says what the arm and its "
        "gripper were told. Was the command topic silent? Its clock another than the cameras'?"
    )


def _without_opening(reader: BagReader, frames: Sequence[BagFrame]) -> str:
    """The number of frames that no joint state of the gripper precedes, empty without one."""
    without = sum(frame.state.gripper is None for frame in frames)
    if not without or reader.robot.gripper is None:
        return ""
    return (
        f" {without} of its {len(frames)} images precede every joint state that names the gripper's joint "
        f"'{reader.robot.gripper.joint}' (`gripper.joint` in the YAML of robot '{reader.robot.name}')."
    )


def _require_frames(reader: BagReader) -> None:
    """Raise DataError when the bag gave too little, with the reason that its stamps show."""
    path = reader.path
    tolerance = reader.data.camera_tolerance
    reference = np.array(sorted(reader.stamps[reader.config.cameras[0]]))
    for camera in reader.config.cameras[1:]:
        apart = _apart(reference, np.array(sorted(reader.stamps[camera])))
        alone = float(np.mean(apart > tolerance)) if len(apart) else 0.0
        if alone > 0.5:
            raise DataError(
                f"{path}: cameras '{reader.config.cameras[0]}' and '{camera}' are not synchronised: {alone:.0%} of "
                f"the images have no partner within {1000 * tolerance:g} ms, they are {1000 * np.median(apart):.0f} ms "
                "apart (median). Trigger the cameras together, stamp them by one clock, or raise "
                "data.bag.camera_tolerance."
            )
        if alone > 0.05:
            reader.flaws.append(Flaw("cameras", str(path), f"{alone:.0%} of the images have no image of '{camera}' "
                                     f"within {1000 * tolerance:g} ms and are left out",
                                     "trigger the cameras together, or raise data.bag.camera_tolerance"))
    interval = float(np.median(np.diff(reference))) / NANOSECONDS if len(reference) > 1 else 0.0
    if interval > 1.25 * reader.spec.step_duration:
        raise DataError(
            f"{path}: camera '{reader.config.cameras[0]}' ran at {1 / interval:.3g} Hz, the policy takes a step every "
            f"{reader.spec.step_duration:g} s ({1 / reader.spec.step_duration:.3g} Hz). Record faster, or set "
            "action.step_duration (and model.history_step) to what was recorded."
        )
    if not reader.recorded:
        reasons = "; ".join(f"{count} times: {reason}" for reason, count in reader.lost.items())
        if not len(reference):
            reasons = "the image topics hold no usable image. " + reasons
        reasons = f"{reasons.rstrip('. ')}." if reasons else "It holds no images."
        raise DataError(f"{path}: no step to train on. {reasons} Is the instruction missing "
                        "(`data: {bag: {instruction: TEXT}}`), were joint states recorded?")


def _apart(reference: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) s from each time to the nearest of the others; infinite where there are none."""
    if not len(others):
        return np.full(len(reference), np.inf)
    place = np.searchsorted(others, reference)
    low = others[np.maximum(place - 1, 0)]
    high = others[np.minimum(place, len(others) - 1)]
    return np.minimum(np.abs(reference - low), np.abs(high - reference)) / NANOSECONDS
