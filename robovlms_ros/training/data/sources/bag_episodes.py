"""Messages of one rosbag to episodes, in one pass, by the objects of `robovlms eval`.

Observations come as in the live node (cameras paired by stamp, joint states interpolated at the
image). Each
is followed by the chunk of actions that evaluation would compare a policy with: training and
evaluation agree about the meaning of a recorded command. Frames are kept on an even grid until
their episode is known, their images by time.
"""

import io
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.schema import require
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, ObservationError, RobotState
from robovlms_ros.evaluation.bags.mapping import (
    BagCamera,
    Stamps,
    TopicsConfig,
    detect,
    encodings_of,
    unreadable_states,
)
from robovlms_ros.evaluation.bags.reader import Bag, ClockJump, RawMessage
from robovlms_ros.evaluation.replay.events import (
    CommandEvent,
    Event,
    JointStateEvent,
    ObservationEvent,
    RecordedChunkEvent,
    Restart,
    SourceEvent,
)
from robovlms_ros.evaluation.replay.observations import BagObservations
from robovlms_ros.evaluation.replay.steps import step_times
from robovlms_ros.evaluation.replay.tracks import Answer, Held, Tracks, reference_of
from robovlms_ros.observations.images import check_pixels, image_to_rgb
from robovlms_ros.observations.joint_states import stamp_of
from robovlms_ros.training.data.episodes import UNKNOWN, Array, DataError, Flaw, time_to_takeover

OUTCOMES = ("success", "failure", UNKNOWN)
"""Outcomes of episodes that can be trained on."""


@dataclass(frozen=True)
class Picture:
    """An image that was seen and not kept."""

    log_ns: int
    stamp_ns: int


class WatchedBag(Bag):
    """A bag that knows which message is being looked at."""

    current: RawMessage

    def messages(self, topics: set[str] | None = None) -> Iterator[RawMessage | ClockJump]:
        for message in super().messages(topics):
            if isinstance(message, RawMessage):
                self.current = message
            yield message


@dataclass(frozen=True)
class BagFrame:
    """One observation: its stamp, the arm at that instant, where its images are."""

    stamp_ns: int
    state: RobotState
    images: dict[str, Picture]


@dataclass
class Piece:
    """Frames one step apart; chunks (n, D) and which of their steps are known, in the order of the
    frames."""

    instruction: str
    frames: list[BagFrame] = field(default_factory=list)
    chunks: list[tuple[Array, NDArray[np.bool_]]] = field(default_factory=list)


@dataclass
class Recorded:
    """One recorded episode. number: of its events. end_ns: when the next one began; None for the
    last. outcome: a mark of success, failure or discard, else UNKNOWN."""

    origin: str
    number: int
    pieces: list[Piece] = field(default_factory=list)
    end_ns: int | None = None
    outcome: str = UNKNOWN


class Grid:
    """Takes frames at the camera's rate and puts the nearest on each place of an even grid, piece
    by piece."""

    def __init__(self, step_ns: int, tolerance_ns: int) -> None:
        self._step_ns = step_ns
        self._tolerance_ns = tolerance_ns
        self._last: BagFrame | None = None
        self._place_ns = 0

    def restart(self) -> None:
        """Begin a new piece."""
        self._last = None

    def take(self, frame: BagFrame) -> tuple[list[BagFrame], int]:
        """The frames that the new one settles, and the ns that were missing before it: above 0, it
        begins a piece."""
        last = self._last
        self._last = frame
        if last is None:
            self._place_ns = frame.stamp_ns + self._step_ns
            return [frame], 0
        settled: list[BagFrame] = []
        while frame.stamp_ns >= self._place_ns:
            best = min((last, frame), key=lambda f: abs(f.stamp_ns - self._place_ns))
            if abs(best.stamp_ns - self._place_ns) > self._tolerance_ns:
                missing = frame.stamp_ns - last.stamp_ns
                self._place_ns = frame.stamp_ns + self._step_ns
                return [*settled, frame], missing
            settled.append(best)
            self._place_ns += self._step_ns
        return settled, 0


def numbers_of(message: Any) -> Array:
    """Numbers of a command in one row; empty for a message without any."""
    if hasattr(message, "points"):
        return np.concatenate([np.asarray(p.positions, dtype=np.float64) for p in message.points] or [np.empty(0)])
    if hasattr(message, "position"):
        return np.asarray(message.position, dtype=np.float64)
    if hasattr(message, "joint_names"):
        return reference_of(message)
    if hasattr(message, "twist"):
        parts = (message.twist.linear, message.twist.angular)
        return np.array([getattr(part, axis) for part in parts for axis in "xyz"])
    if hasattr(message, "pose"):
        return np.array([getattr(message.pose.position, axis) for axis in "xyz"])
    return np.asarray(getattr(message, "data", ()), dtype=np.float64)


SETTLED_NS = 2 * NANOSECONDS
"""So long after a chunk's last step everything that bears on it has been recorded."""


@dataclass(frozen=True)
class BagData:
    """The `data.bag` block of a training YAML.

    robot: whose joints and tool they are (a name or a YAML); None is `action.robot`. topics: as in
        an evaluation YAML; `commands: motion` learns the motion that followed, for recordings
        without commands. instruction: for bags without one, or instead of theirs. camera_tolerance,
        joint_states_tolerance: s, as the node's parameters.
    stamps: `bag` times images by their reception in the bag, for recordings whose images are
        stamped zero.
    camera: by name, as the node's `camera.NAME.encoding`.
    outcomes: of the episodes to train on, some of OUTCOMES; discarded ones are always left out.
    frame_tolerance: s by which an image may miss its place on the training rate's grid; None is
        half a step. An episode is cut where no image is near enough.
    """

    robot: str | None = None
    topics: TopicsConfig = field(default_factory=TopicsConfig)
    instruction: str = ""
    camera_tolerance: float = 0.02
    joint_states_tolerance: float = 0.05
    frame_tolerance: float | None = None
    stamps: Stamps = "header"
    camera: dict[str, BagCamera] = field(default_factory=dict)
    outcomes: tuple[str, ...] = ("success", UNKNOWN)

    def __post_init__(self) -> None:
        allowed = bool(self.outcomes) and set(self.outcomes) <= set(OUTCOMES)
        require(allowed, "data.bag.outcomes", list(self.outcomes), f"some of {', '.join(OUTCOMES)}")
        for name in ("camera_tolerance", "joint_states_tolerance", "frame_tolerance"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 10, f"data.bag.{name}", value, "above 0 and at most 10 s")


class BagReader:
    """Reads one bag; afterwards `episodes`, `flaws` and `notes` hold the result."""

    def __init__(self, path: Path, config: PolicyConfig, data: BagData, robot: RobotSpec, kinematics: Any) -> None:
        assert config.action is not None
        self.path = path
        self.config = config
        self.data = data
        self.robot = robot
        self.kinematics = kinematics
        self.spec: ActionSpec = config.action.spec
        self.horizon = config.model.action_chunk_size
        self.step_ns = round(self.spec.step_duration * NANOSECONDS)
        tolerance = data.frame_tolerance
        self._grid = Grid(self.step_ns, self.step_ns // 2 if tolerance is None else round(tolerance * NANOSECONDS))
        self.flaws: list[Flaw] = []
        self.notes: list[str] = []
        self.recorded: list[Recorded] = []
        self.stamps: dict[str, list[int]] = {name: [] for name in config.cameras}
        self.lost: Counter[str] = Counter()
        self._open: Recorded | None = None
        self._waiting: deque[tuple[Piece, BagFrame]] = deque()
        self._begin_ns: int | None = None
        self._has_begin_markers = False
        self._drivers = Held()  # True from a person's first command on, False from the hand-over
        self._taken = False
        self._commanded = False

    def read(self) -> None:
        """One pass. Raises DataError, BagError and ConfigError."""
        bag = WatchedBag(self.path)
        with bag:
            mapping, lines = detect(bag, self.data.topics, self.config.cameras, self.robot)
            if mapping.commands is None and self.data.topics.commands != "motion":
                raise DataError(self._no_commands(bag))
            self.topics = mapping.cameras
            self.gripper_commands = mapping.gripper_commands
            self._cameras = {topic: name for name, topic in mapping.cameras.items()}
            self._tracks = Tracks.of(mapping, self.robot, self.spec.step_duration)
            self._human = mapping.human
            data = self.data
            self.encodings = encodings_of(bag, mapping, data.camera, "data.bag.camera")
            inputs = BagObservations(
                bag,
                mapping,
                self.robot,
                self.kinematics,
                self.config.cameras,
                data.instruction,
                data.camera_tolerance,
                data.joint_states_tolerance,
                decode=lambda message, encoding: self._look(bag.current, message, encoding),
                stamps=data.stamps,
                encodings=self.encodings,
            )
            for event in inputs.events():
                self._take(event)
            self._settle(None)
            self.notes += [*lines, *bag.notes, *inputs.notes]
            self.lost += inputs.lost
            self.policies = tuple(inputs.policies)
        if self._tracks.commands is not None and self._tracks.commands.unusable:
            count = self._tracks.commands.unusable
            topic = mapping.commands
            self.notes.append(f"{count} messages of {topic} do not fit {self.robot.name} and are left out")

    def _no_commands(self, bag: Bag) -> str:
        have = ", ".join(sorted(bag.topics)) or "none"
        return (
            f"{self.path}: no topic with commands for {self.robot.name} was recorded, so nothing says what the arm was "
            f"told; topics there: {have}. Record the controller's command topic or its `controller_state` "
            "(`robovlms record` does), name it in `data: {bag: {topics: {commands: TOPIC}}}`, or train on the motion "
            f"that followed with `commands: motion`. {unreadable_states(bag)}".rstrip()
        )

    def _look(self, raw: RawMessage, message: Any, encoding: str | None) -> Picture:
        """Check an image as far as that is quick, and store its position."""
        if hasattr(message, "format"):
            try:
                with Image.open(io.BytesIO(bytes(message.data)), formats=("JPEG", "PNG")) as image:
                    check_pixels(*image.size)
            except ObservationError:
                raise
            except Exception as error:  # damaged bytes raise anything in a decoder
                raise ObservationError(f"the compressed image is neither JPEG nor PNG: {printable(error)}") from error
        else:
            image_to_rgb(message, encoding=encoding)
        stamp = stamp_of(message)
        self.stamps[self._cameras[raw.topic]].append(raw.log_ns if self.data.stamps == "bag" else stamp)
        return Picture(raw.log_ns, stamp)

    def _take(self, event: Event) -> None:
        tracks = self._tracks
        if isinstance(event, JointStateEvent):
            tracks.motion.add(event.state)
        elif isinstance(event, CommandEvent):
            self._told(event)
        elif isinstance(event, RecordedChunkEvent):
            tracks.chunks[event.chunk.stamp_ns] = event.chunk
        elif isinstance(event, SourceEvent):
            self._drive(event)
        elif isinstance(event, Restart):
            self._restart(event)
        elif isinstance(event, ObservationEvent):
            self._see(event)
        self._settle(event.now_ns if isinstance(event, ObservationEvent | JointStateEvent) else 0)

    def _drive(self, event: SourceEvent) -> None:
        if event.person and not event.commands and self._tracks.by_chunks:
            raise DataError(
                f"{self.path}: a person took over, and data.bag.topics.commands names the policy's "
                "chunks: they are not what the person commanded. Name the topic of the arm's "
                "commands, or `motion`."
            )
        self._commanded = event.commands or not self._human
        if not event.commands:
            self._taken = event.person
        if not event.person:
            self._drivers.add(event.since_ns, False)
        if self._tracks.commands is None:
            self._correct(event.since_ns)

    def _correct(self, now_ns: int) -> None:
        """The arm has a new command, the person's where one drives and has commanded. Before it the
        policy's last plan goes on, or a stop."""
        if self._taken and self._commanded:
            self._drivers.add(now_ns, True)
            self._taken = False

    def takeover(self, stamps_ns: NDArray[np.int64], end_ns: int | None) -> Array | None:
        """(T,) as EpisodeArrays; None for a bag without a control source. end_ns: the
        episode's."""
        drivers = self._drivers
        if not drivers.times:
            return None
        found = [drivers.before(int(stamp)) for stamp in stamps_ns]
        person = np.array([driver is not None and driver[1] for driver in found])
        pairs = zip(drivers.times, drivers.values, strict=True)
        begins = [t for t, drives in pairs if drives and (end_ns is None or t <= end_ns)]
        seconds = (stamps_ns - stamps_ns[0]) / NANOSECONDS
        begun = np.array([(t - int(stamps_ns[0])) / NANOSECONDS for t in begins])
        return time_to_takeover(seconds, person, begun)

    def _told(self, event: CommandEvent) -> None:
        if not event.gripper:
            self._correct(event.now_ns)
        commands = self._tracks.commands
        if commands is None:
            return
        if not np.isfinite(numbers_of(event.message)).all():
            origin = self._open.origin if self._open else str(self.path)
            self.flaws.append(Flaw(
                "nan", origin, f"a command {self._seconds(event.now_ns):.2f} s into the bag holds numbers that are not "
                "finite", "repair what publishes the commands, or exclude the episode", refuse=True))
            return
        (commands.add_gripper if event.gripper else commands.add)(event.message, event.now_ns)

    def _seconds(self, now_ns: int) -> float:
        return (now_ns - (self._begin_ns or now_ns)) / NANOSECONDS

    def _restart(self, event: Restart) -> None:
        if event.judges:
            for recorded in self.recorded:
                if recorded.number >= event.since:
                    recorded.outcome = event.mark
        elif event.reason.startswith("episode marker") and not event.mark:
            self._on_begin_marker()
        if self._open is not None:
            self._open.end_ns = None if event.jump else event.now_ns
            if event.jump and "jumped back" in event.reason:
                self.flaws.append(Flaw(
                    "clock", self._open.origin, f"{event.reason} after {self._seconds(self._newest_ns):.2f} s",
                    "record with one clock (a simulator's reset in the middle of a recording does this), or exclude "
                    "the episode", refuse=True))
        self._open = None
        self._grid.restart()
        if event.jump:
            self._settle(None)
            for track in (self._tracks.motion, self._tracks.commands):
                if track is not None:
                    track.clear()
            self._tracks.chunks.clear()

    def _on_begin_marker(self) -> None:
        """Forget the unmarked episodes that precede the first marker that begins one."""
        if self._has_begin_markers:
            return
        self._has_begin_markers = True
        before = [recorded for recorded in self.recorded if recorded.outcome == UNKNOWN]
        images = sum(len(piece.frames) for recorded in before for piece in recorded.pieces)
        if images:
            self.lost["images before the first episode marker"] += images
        self.recorded = [recorded for recorded in self.recorded if recorded not in before]
        origins = {recorded.origin for recorded in before}
        self.flaws = [flaw for flaw in self.flaws if flaw.where not in origins]

    def _see(self, seen: ObservationEvent) -> None:
        observation = seen.observation
        self._newest_ns = seen.now_ns
        self._begin_ns = seen.now_ns if self._begin_ns is None else self._begin_ns
        assert observation.state is not None
        if self._open is None:
            self._open = Recorded(f"{self.path}, episode {len(self.recorded)}", seen.episode)
            self._open.pieces.append(Piece(observation.instruction))
            self.recorded.append(self._open)
        frame = BagFrame(observation.stamp_ns, observation.state, dict(observation.images))  # type: ignore[arg-type]
        frames, missing_ns = self._grid.take(frame)
        for settled in frames:
            if missing_ns and settled is frame:
                self.flaws.append(Flaw(
                    "gap", self._open.origin, f"no image for {missing_ns / NANOSECONDS:.2f} s, "
                    f"{self._seconds(seen.now_ns):.2f} s into the bag: the episode is cut there",
                    "record images with fewer losses, or raise data.bag.frame_tolerance"))
                self._open.pieces.append(Piece(observation.instruction))
            piece = self._open.pieces[-1]
            piece.frames.append(settled)
            self._waiting.append((piece, settled))

    def _settle(self, now_ns: int | None) -> None:
        """Find the chunks of the frames that lie far enough back (None: of all), and forget what
        none needs."""
        reach = self.horizon * self.step_ns + SETTLED_NS
        while self._waiting and (now_ns is None or self._waiting[0][1].stamp_ns + reach < now_ns):
            piece, frame = self._waiting.popleft()
            piece.chunks.append(self._chunk(piece, frame))
        if now_ns and self._waiting:
            before = self._waiting[0][1].stamp_ns - SETTLED_NS
            self._tracks.motion.trim(before)
            if self._tracks.commands is not None:
                self._tracks.commands.trim(before)
            chunks = self._tracks.chunks
            while chunks and next(iter(chunks)) < before:
                del chunks[next(iter(chunks))]

    def _chunk(self, piece: Piece, frame: BagFrame) -> tuple[Array, NDArray[np.bool_]]:
        """(n, D) what evaluation compares a policy with at this frame, and which steps of it are
        known."""
        empty = np.zeros((self.horizon, len(self.spec.names)))
        chunk = ActionChunk(frame.stamp_ns, empty, self.spec, piece.instruction, "recorded")
        steps = self._tracks.reference(Answer(chunk, frame.state, ""), self.kinematics)
        if steps is None:
            return empty, np.zeros(self.horizon, dtype=bool)
        values = steps.values.copy()
        measured = self._tracks.motion.gripper(step_times(frame.stamp_ns, self.spec, self.horizon))
        values[:, -1] = np.where(np.isnan(values[:, -1]), measured, values[:, -1])
        known = steps.valid & np.isfinite(values).all(axis=1)
        return np.where(known[:, None], values, 0.0), known
