"""From a bag's messages to what the live node would have seen: observations, measured states,
instructions, resets.

The conversions, the pairing of cameras and the interpolation of joint states are the node's own
objects, fed in the order in which the bag received its messages.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import (
    NANOSECONDS,
    Observation,
    ObservationError,
    RobotState,
    RoboVLMsError,
)
from robovlms_ros.evaluation.bags.chunks import chunk_of_message
from robovlms_ros.evaluation.bags.mapping import Stamps, TopicMapping
from robovlms_ros.evaluation.bags.reader import Bag, ClockJump, RawMessage
from robovlms_ros.evaluation.replay.calibration import Calibration, RecordedCamera, TransformTree
from robovlms_ros.evaluation.replay.events import (
    DISCARD,
    DISCARDED,
    MARKS,
    CommandEvent,
    Event,
    JointStateEvent,
    LeftOut,
    ObservationEvent,
    RawMessageEvent,
    RecordedChunkEvent,
    Restart,
    SourceEvent,
)
from robovlms_ros.evaluation.replay.executor import plain_reason
from robovlms_ros.evaluation.replay.tracks import pose_between
from robovlms_ros.observations.camera_sync import FrameSync, SyncedFrame
from robovlms_ros.observations.images import to_rgb
from robovlms_ros.observations.joint_states import JointStateBuffer, stamp_of

JUMP_NS = NANOSECONDS
OTHER_CLOCK_NS = 5 * NANOSECONDS
TELEPORT = 0.15  # rad
TF_KEPT = 64
BY_RECEPTION = "For this recording, `stamps: bag` takes the time at which the bag received each message."
# images at a recording's beginning and end that have no partner, and nobody misses
PAIRING_EDGE = 2


class _Rate:
    """Number and rate of images: over the time that they cover, gaps of seconds left
    out."""

    def __init__(self) -> None:
        self.count = 0
        self._steps = 0
        self._time = 0
        self._last = 0

    def add(self, stamp_ns: int) -> None:
        step = stamp_ns - self._last
        self._last = stamp_ns
        if self.count and 0 < step < NANOSECONDS:
            self._steps = self._steps + 1
            self._time = self._time + step
        self.count += 1

    @property
    def rate(self) -> float:
        """Hz; 0 when there were fewer than two."""
        return self._steps * NANOSECONDS / self._time if self._time else 0.0


@dataclass
class BagObservations:
    """The node's ears for a bag. instruction: until the bag has one.

    camera_tolerance, state_tolerance: s, as the node's `camera_tolerance` and
        `joint_states_tolerance`.
    stamps: `header`, or `bag`: an image is timed by its reception in the bag, and so are joint
        states and transforms whose own stamp is zero. A recording without usable stamps is readable
        so; transport delays stay in the times.
    calibration: of the reference camera; None takes the bag's own camera_info and TF.
    encodings: camera -> encoding of its raw images, in place of the messages' own.
    discarded: when the bag received the messages that begin episodes to leave out, ns; 0 is the
        bag's beginning.
    decode: function of an image message and its `encoding` (None for the message's own); returns
        the pixels or their substitute; raises ObservationError for an unusable message.
    lost: reasons why messages or observations could not be used, with counts.
    notes: what is unusual about the bag's clocks, one sentence each.
    policies: ids of the policies whose chunks were recorded, in order.
    left_out: the discarded episodes, in order.
    """

    bag: Bag
    mapping: TopicMapping
    robot: RobotSpec
    kinematics: Kinematics | None
    cameras: tuple[str, ...]
    instruction: str = ""
    camera_tolerance: float = 0.02
    state_tolerance: float = 0.05
    everything: bool = False
    max_instruction: int = 500
    decode: Callable[..., Any] = to_rgb
    calibration: Calibration | None = None
    stamps: Stamps = "header"
    encodings: Mapping[str, str] = field(default_factory=dict)
    discarded: frozenset[int] = frozenset()
    lost: Counter[str] = field(default_factory=Counter)
    instructions: list[str] = field(default_factory=list)
    policies: dict[str, None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._frames = FrameSync(self.cameras, self.camera_tolerance)
        self._joints = JointStateBuffer(self.robot.joints, self.robot.gripper)  # type: ignore[arg-type]
        self._tree = TransformTree()
        self._camera = RecordedCamera(self._tree, self.robot.base_frame)
        self._tool: deque[RobotState] = deque(maxlen=TF_KEPT)
        self._names = {topic: name for name, topic in self.mapping.cameras.items()}
        self._fixed = self.instruction
        self._episode = 0
        self._begun = 0  # number of the episode that a marker or an instruction began
        self._over = False  # a mark ended it
        self._log_ns = 0  # of the present message
        self.begun_ns = 0  # of the message that began the episode
        if self.begun_ns in self.discarded:
            self.left_out.append(LeftOut("the bag's beginning", DISCARDED))
        self._has_begin_markers = False
        self._echoed = ""
        self._paused = False
        self._stamp = 0
        self._newest: RobotState | None = None
        self._offset: int | None = None
        self._told = False
        self._seen = {name: _Rate() for name in self.cameras}
        self._paired = 0
        self._received: Counter[str] = Counter()

    def events(self) -> Iterator[Event]:
        """Everything of interest in the order of reception."""
        topics = self.mapping.topics()
        for raw in self.bag.messages(None if self.everything else topics):
            if isinstance(raw, ClockJump):
                self.lost["the bag's clock jumped back; what comes after is another episode, judged by itself"] += 1
                yield self._restart(raw.to_ns, "the bag's clock jumped back", jump=True)
                continue
            self._log_ns = raw.log_ns
            if self.everything:
                yield RawMessageEvent(raw)
            if raw.topic in topics:
                message = self.bag.decode(raw)
                if message is not None:
                    yield from self._take(raw.topic, message, self._time(raw, message))
        if self._camera.missing and self.calibration is None:
            self.notes.append(self._camera.missing)
        self._note_unpaired()
        self._note_reception()

    def _note_reception(self) -> None:
        """Note the messages that were timed by their reception."""
        if self.stamps != "bag":
            return
        counts = ", ".join(f"{count} {name}" for name, count in self._received.items()) or "no message"
        self.notes.append(
            f"stamps: bag: {counts} timed by reception in the bag, not by the sender's stamp. Images may be late by "
            "their transport, so predictions are compared with a slightly later motion."
        )

    def _note_unpaired(self) -> None:
        """Note the number of images of the reference camera without an image of the others, and the
        cameras' rates."""
        images = self._seen[self.cameras[0]].count
        unpaired = images - self._paired
        if len(self.cameras) == 1 or unpaired <= PAIRING_EDGE:
            return
        rates = ", ".join(f"{name} {self._seen[name].rate:.1f} Hz" for name in self.cameras)
        self.notes.append(
            f"{unpaired} of {images} images of camera '{self.cameras[0]}' are left out: no image of every other camera "
            f"within {1000 * self.camera_tolerance:.0f} ms (camera_tolerance). The cameras: {rates}."
        )

    def _time(self, raw: RawMessage, message: Any) -> int:
        """Reception time of the message, on the clock of the stamps: a recorder's clock may be
        another."""
        stamped = raw.topic in self._names and self.stamps == "header"
        if self._offset is None and (stamped or raw.topic == self.mapping.joint_states):
            stamp = stamp_of(message)
            if stamp <= 0 and self.stamps == "bag":
                self._offset = 0
            elif stamp > 0:
                apart = raw.log_ns - stamp
                self._offset = apart if abs(apart) > OTHER_CLOCK_NS else 0
                if self._offset:
                    seconds = f"{abs(apart) / NANOSECONDS:.0f} s"
                    self.notes.append(
                        f"the bag's own times and the messages' stamps are {seconds} apart: they are on different "
                        "clocks; the stamps' clock is used."
                    )
        return raw.log_ns - (self._offset or 0)

    def _take(self, topic: str, message: Any, now_ns: int) -> Iterator[Event]:
        mapping = self.mapping
        if topic in self._names:
            yield from self._on_image(self._names[topic], message, now_ns)
        elif topic == mapping.joint_states:
            yield from self._on_joints(message, now_ns)
        elif topic in mapping.tf:
            yield from self._on_transforms(message, now_ns)
        elif topic == mapping.camera_info:
            self._camera.inform(message)
        elif topic == mapping.instruction and not self._fixed:
            self._told = True
            yield from self._on_instruction(message.data.strip(), now_ns)
        elif topic == mapping.episodes:
            yield self._on_marker(message.data, now_ns)
        elif topic == mapping.status:
            yield from self._on_status(message, now_ns)
        elif topic == mapping.control_source:
            since_ns = min(stamp_of(message) or now_ns, now_ns)  # a latched message comes late
            yield SourceEvent(now_ns, since_ns, message.source == "human")
        elif topic in mapping.human:
            yield SourceEvent(now_ns, now_ns, True, commands=True)
        if topic == mapping.commands and mapping.command_kind != "action_chunk":
            yield CommandEvent(now_ns, message, gripper=False)
        if topic == mapping.gripper_commands:
            yield CommandEvent(now_ns, message, gripper=True)
        if topic in (mapping.chunks, mapping.commands) and hasattr(message, "dimension_names"):
            try:
                chunk = chunk_of_message(message)
                self.policies[chunk.policy_id] = None
                if not any(episode.covers(chunk.stamp_ns) for episode in self.left_out):
                    yield RecordedChunkEvent(now_ns, chunk)
            except (RoboVLMsError, AttributeError, TypeError, ValueError) as error:
                # A bag carries its own definition of the message, of any release of this package.
                self.lost[f"{topic}: {printable(error)}"] += 1

    def _on_image(self, camera: str, message: Any, now_ns: int) -> Iterator[Event]:
        try:
            stamp = self._image_stamp(message, now_ns)
            image = self.decode(message, encoding=self.encodings.get(camera))
        except ObservationError as error:
            self.lost[f"camera '{camera}': {error}"] += 1
            return
        if camera == self.cameras[0]:
            self._camera.see(message.header.frame_id, image.shape[1] if hasattr(image, "shape") else 0)
            if stamp < self._stamp - JUMP_NS:
                yield self._restart(now_ns, "the camera's stamps jumped back", jump=True)
            elif stamp <= self._stamp:
                self.lost[f"camera '{camera}': images out of order; they are left out, as the node does."] += 1
            self._stamp = max(stamp, self._stamp) if stamp >= self._stamp - JUMP_NS else stamp
        self._seen[camera].add(stamp)
        for frames in self._frames.add(camera, SyncedFrame(stamp, image)):
            self._paired += 1
            yield from self._observe(frames.stamp_ns, frames.images, now_ns)

    def _image_stamp(self, message: Any, now_ns: int) -> int:
        """ns, an image's time. Raises ObservationError where it has none."""
        if self.stamps == "bag":
            if self._offset is None and self.mapping.joint_states is not None:
                # The first stamped joint state shows whether the recorder's clock is another.
                raise ObservationError("images before the first joint state.")
            self._received["images"] += 1
            return now_ns
        stamp = stamp_of(message)
        if stamp <= 0:
            raise ObservationError(f"the stamp is zero: the camera's driver must stamp its images. {BY_RECEPTION}")
        return stamp

    def _reception(self, message: Any, now_ns: int) -> int | None:
        """ns where a joint state is to be timed by its reception, else None. Raises
        ObservationError."""
        if stamp_of(message) > 0:
            return None
        if self.stamps == "header":
            raise ObservationError(f"the stamp is zero: the driver must stamp its joint states. {BY_RECEPTION}")
        self._received["joint states"] += 1
        return now_ns

    def _observe(self, stamp_ns: int, images: Any, now_ns: int) -> Iterator[Event]:
        if not self.instruction:
            self.lost["images before the first instruction, for which the node waits"] += 1
            return
        if self._paused:
            self.lost["images while the node was paused"] += 1
            return
        if self._over:
            self.lost["images between the end of an episode and the next one's beginning"] += 1
            return
        if self.begun_ns in self.discarded:
            self.left_out[-1].add(stamp_ns)
            return
        try:
            state = self.state_at(stamp_ns)
        except ObservationError as error:
            self.lost[plain_reason(str(error))] += 1
            return
        camera = self.calibration or self._camera.calibration()
        yield ObservationEvent(now_ns, Observation(stamp_ns, images, self.instruction, state), self._episode, camera)

    def state_at(self, stamp_ns: int) -> RobotState:
        """The arm at an image's stamp. Raises ObservationError."""
        if self.mapping.joint_states is None and self.mapping.tf:
            return self._tool_at(stamp_ns)
        return self._complete(self._joints.at(stamp_ns, self.state_tolerance))

    def _on_transforms(self, message: Any, now_ns: int) -> Iterator[Event]:
        self._tree.add(message)
        found = self._tree.pose(self.robot.base_frame, self.robot.eef_frame)
        if self.mapping.joint_states is not None or found is None:
            return
        stamp, pose = found
        state = RobotState(stamp or now_ns, np.empty(0), None, pose)
        if not self._tool or state.stamp_ns > self._tool[-1].stamp_ns:
            self._tool.append(state)
            yield JointStateEvent(now_ns, state)

    def _tool_at(self, stamp_ns: int) -> RobotState:
        """The tool between the transforms around a stamp, as joint states are; raises
        ObservationError."""
        if not self._tool:
            frames = f"{self.robot.base_frame} to {self.robot.eef_frame}"
            raise ObservationError(f"TF has no transform from {frames} yet")
        for older, newer in pairwise(self._tool):
            if older.stamp_ns <= stamp_ns <= newer.stamp_ns:
                share = (stamp_ns - older.stamp_ns) / (newer.stamp_ns - older.stamp_ns)
                assert older.eef_pose is not None and newer.eef_pose is not None
                return RobotState(stamp_ns, np.empty(0), None, pose_between(older.eef_pose, newer.eef_pose, share))
        nearest = min(self._tool, key=lambda state: abs(state.stamp_ns - stamp_ns))
        if abs(nearest.stamp_ns - stamp_ns) > self.state_tolerance * NANOSECONDS:
            raise ObservationError(f"TF: none within {self.state_tolerance} s of the image")
        return replace(nearest, stamp_ns=stamp_ns)

    def _complete(self, state: RobotState) -> RobotState:
        if self.kinematics is None:
            return state
        return replace(state, eef_pose=self.kinematics.forward(state.positions))

    def _on_joints(self, message: Any, now_ns: int) -> Iterator[Event]:
        try:
            advanced = self._joints.add(message, self._reception(message, now_ns))
        except ObservationError as error:
            self.lost[f"joint states: {error}"] += 1
            return
        state = self._joints.latest()
        if not advanced or state is None:
            return
        if self._put_elsewhere(state):
            self.lost["the arm was somewhere else all at once; what was recorded before is not compared with"] += 1
            yield self._restart(now_ns, "the arm was put elsewhere", forget=False, jump=True)
        self._newest = state
        yield JointStateEvent(now_ns, state)

    def _put_elsewhere(self, state: RobotState) -> bool:
        """True if the arm moved as no arm can: a simulator's reset, or another recording."""
        before = self._newest
        if before is None or state.stamp_ns - before.stamp_ns > NANOSECONDS:
            return False
        moved = np.abs(state.positions - before.positions)
        possible = 3 * np.array(self.robot.limits.velocity) * (state.stamp_ns - before.stamp_ns) / NANOSECONDS
        return bool((moved > np.maximum(possible, TELEPORT)).any())

    def _on_marker(self, text: str, now_ns: int) -> Restart:
        restart = self._restart(now_ns, f"episode marker: {text}")
        self._over = text in MARKS
        if self._over:
            return replace(restart, mark=text, since=self._begun)
        self._begin(text)
        self._has_begin_markers = True
        return restart

    def _begin(self, name: str) -> None:
        """Make the present message the beginning of the episode that the next marks judge."""
        self._begun = self._episode
        self.begun_ns = self._log_ns
        if self.begun_ns in self.discarded:
            self.left_out.append(LeftOut(name, DISCARDED))

    def _on_instruction(self, text: str, now_ns: int) -> Iterator[Event]:
        # Where markers begin episodes, an instruction after a mark precedes the next marker.
        begins = self._over and not self._has_begin_markers
        if text == self.instruction and not begins:
            return
        if not text or len(text) > self.max_instruction:
            self.lost["instructions that are empty or too long, which the node refuses"] += 1
            self.instruction = ""
            return
        if text not in self.instructions:
            self.instructions.append(text)
        first = not self.instruction
        self.instruction = text
        if not first:
            yield self._restart(now_ns, f"instruction: {text}", forget=False)
        if not self._has_begin_markers:
            self._begin(text)
            self._over = False

    def _on_status(self, message: Any, now_ns: int) -> Iterator[Event]:
        paused = message.state in ("paused", "inactive")
        if self._paused and not paused:
            yield self._restart(now_ns, "the node went on after a pause")
        self._paused = paused
        # The node's parameters may have given it the instruction. Where a topic does, status only
        # echoes it, late.
        echoed = message.instruction.strip()
        if not self._told and not self._fixed and echoed and echoed != self._echoed:
            yield from self._on_instruction(echoed, now_ns)
        self._echoed = echoed

    def _restart(self, now_ns: int, reason: str, forget: bool = True, jump: bool = False) -> Restart:
        if forget and jump:
            self._frames.clear()
            self._joints.clear()
            self._tool.clear()
            self._stamp = 0
            self._newest = None
        self._episode += 1
        return Restart(now_ns, reason, self._episode, forget, jump)


def discarded_episodes(
    path: Path, mapping: TopicMapping, robot: RobotSpec, instruction: str = ""
) -> frozenset[int]:
    """`discarded` of BagObservations: the episodes of a bag whose last mark is DISCARD.

    A mark may follow its episode at any time, and another one may replace it: the marks of the
    whole bag are read before its images. instruction: as for BagObservations.
    """
    if mapping.episodes is None:
        return frozenset()
    outcomes: dict[int, str] = {}
    marks = TopicMapping(
        cameras={}, joint_states=None, instruction=mapping.instruction, commands=None,
        command_kind=None, gripper_commands=None, command_lead=None, chunks=None,
        episodes=mapping.episodes, status=mapping.status)
    with Bag(path) as bag:
        observations = BagObservations(bag, marks, robot, None, ("none",), instruction)
        for event in observations.events():
            if isinstance(event, Restart) and event.judges:
                outcomes[observations.begun_ns] = event.mark
    return frozenset(begun_ns for begun_ns, mark in outcomes.items() if mark == DISCARD)
