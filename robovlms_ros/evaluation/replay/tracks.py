"""Recorded motion of a bag as targets at any time, for comparison with a policy's steps.

Measured motion comes from joint states or TF, commanded motion from the command topic. A set point
(pose, joint state, array) holds from its sending until the next one; a policy's step is compared
with the set point sent `lead` seconds before the step's time, one step by default: a command sent
now is to be reached one step later. Trajectories and chunks carry their own times, twists are
integrated from the measured pose. The reference in a trajectory controller's state is the command
at its stamp, linear between messages.
"""

import bisect
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.controller_types import ServoTwist
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.planner import EEF_SPACES
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.rotations import matrix_from_quaternion, matrix_from_vector, pose_of, vector_from_matrix
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, Array, RobotState
from robovlms_ros.evaluation.bags.mapping import SET_POINTS, CommandKind, TopicMapping
from robovlms_ros.evaluation.replay.calibration import Calibration
from robovlms_ros.evaluation.replay.steps import Steps, step_times, steps_of_chunk, steps_of_targets
from robovlms_ros.observations.joint_states import stamp_of

Times = NDArray[np.int64]

GAP_NS = NANOSECONDS // 2


@dataclass(frozen=True)
class Targets:
    """Known targets at n times. joints (n, J) or poses (n, 4, 4), by the source's space;
    valid (n,) bool."""

    joints: Array | None
    poses: Array | None
    valid: NDArray[np.bool_]

    def as_poses(self, kinematics: Kinematics | None) -> Array | None:
        """(n, 4, 4), by forward kinematics where the source holds joints; None without a way."""
        if self.poses is not None or self.joints is None or kinematics is None:
            return self.poses
        return np.stack([kinematics.forward(row) if good else np.full((4, 4), np.nan)
                         for row, good in zip(self.joints, self.valid, strict=True)])


class Held:
    """Values by time: kept in order of time, old ones forgotten."""

    def __init__(self) -> None:
        self.times: list[int] = []
        self.values: list[Any] = []

    def add(self, time_ns: int, value: Any) -> None:
        if not self.times or time_ns > self.times[-1]:
            self.times.append(time_ns)
            self.values.append(value)
            return
        place = bisect.bisect_right(self.times, time_ns)
        self.times.insert(place, time_ns)
        self.values.insert(place, value)

    def trim(self, before_ns: int) -> None:
        """Forget what no time from `before_ns` on needs; one older value stays."""
        keep = max(bisect.bisect_right(self.times, before_ns) - 1, 0)
        if keep > 64:
            del self.times[:keep], self.values[:keep]

    def clear(self) -> None:
        self.times.clear()
        self.values.clear()

    def before(self, time_ns: int) -> tuple[int, Any] | None:
        """The newest (time, value) not after `time_ns`."""
        place = bisect.bisect_right(self.times, time_ns) - 1
        return None if place < 0 else (self.times[place], self.values[place])

    def around(self, time_ns: int) -> tuple[int, Any, int, Any] | None:
        """The (time, value) pairs before and after, None outside what is kept."""
        place = bisect.bisect_left(self.times, time_ns)
        if place < len(self.times) and self.times[place] == time_ns:
            return (time_ns, self.values[place]) * 2  # type: ignore[return-value]
        if place == 0 or place == len(self.times):
            return None
        return self.times[place - 1], self.values[place - 1], self.times[place], self.values[place]


class MotionTrack:
    """The motion that followed: measured joint positions (or tool poses from TF) and gripper
    openings."""

    def __init__(self) -> None:
        self._joints = Held()
        self._poses = Held()
        self._openings = Held()

    def add(self, state: RobotState) -> None:
        if len(state.positions):
            self._joints.add(state.stamp_ns, state.positions)
        elif state.eef_pose is not None:
            self._poses.add(state.stamp_ns, state.eef_pose)
        if state.gripper is not None:
            self._openings.add(state.stamp_ns, state.gripper)

    def clear(self) -> None:
        for held in (self._joints, self._poses, self._openings):
            held.clear()

    def trim(self, before_ns: int) -> None:
        for held in (self._joints, self._poses, self._openings):
            held.trim(before_ns)

    def at(self, times: Times, start: RobotState) -> Targets:
        """The measured arm at each time, linear between messages; unknown across gaps of half a
        second."""
        if self._poses.times:
            found = [_between(self._poses, int(time), pose_between) for time in times]
            poses = np.stack([np.full((4, 4), np.nan) if pose is None else pose for pose in found])
            return Targets(None, poses, np.array([pose is not None for pose in found]))
        rows = [_between(self._joints, int(time)) for time in times]
        width = len(start.positions)
        joints = np.stack([np.full(width, np.nan) if row is None else row for row in rows])
        return Targets(joints, None, np.array([row is not None for row in rows]))

    def gripper(self, times: Times) -> Array:
        """(n,) measured opening, NaN where unknown."""
        rows = [_between(self._openings, int(time)) for time in times]
        return np.array([np.nan if row is None else float(row) for row in rows])


def _between(held: Held, time_ns: int, mix: Callable[[Any, Any, float], Any] | None = None) -> Any | None:
    pair = held.around(time_ns)
    if pair is None or pair[2] - pair[0] > GAP_NS:
        return None
    width = pair[2] - pair[0]
    share = (time_ns - pair[0]) / width if width else 0.0
    return mix(pair[1], pair[3], share) if mix else pair[1] + share * (pair[3] - pair[1])


def pose_between(a: Array, b: Array, share: float) -> Array:
    """The pose, (4, 4), that is `share` of the way from a to b: straight, and turning about one
    axis."""
    pose = a + share * (b - a)
    pose[:3, :3] = a[:3, :3] @ matrix_from_vector(share * vector_from_matrix(a[:3, :3].T @ b[:3, :3]))
    return pose


STALE_NS = NANOSECONDS


@dataclass(frozen=True)
class Plan:
    """One recorded JointTrajectory in force from its arrival. times (N,) ns absolute, positions (N,
    J)."""

    times: Times
    positions: Array
    velocities: Array | None

    def __call__(self, time_ns: int) -> Array:
        if self.velocities is not None and len(self.times) > 1:
            from robovlms_ros.control.trajectory import Spline

            return Spline(self.times, self.positions, self.velocities)(np.array([time_ns]))[0][0]
        return np.array([np.interp(time_ns, self.times, column) for column in self.positions.T])


class CommandTrack:
    """Recorded commands of the arm, and of the gripper where it has some.

    lead_ns: see the module. Raises nothing for a message that does not fit the robot: `unusable`
        counts them.
    """

    def __init__(self, kind: CommandKind, robot: RobotSpec, lead_ns: int) -> None:
        self.kind = kind
        self._robot = robot
        self._lead = lead_ns
        self._held = Held()
        self._openings = Held()
        self._plans: deque[tuple[int, Plan]] = deque()
        self.unusable = 0
        self._read: dict[str, Callable[[Any, int], None]] = {
            "joint_trajectory": self._trajectory, "twist": self._twist, "pose": self._pose,
            "joint_state": self._joint_state, "float64_array": self._array,
            "reference": self._reference,
        }

    @property
    def has_gripper(self) -> bool:
        """True if there are gripper commands."""
        return bool(self._openings.times)

    def clear(self) -> None:
        self._held.clear()
        self._openings.clear()
        self._plans.clear()

    def trim(self, before_ns: int) -> None:
        self._held.trim(before_ns)
        self._openings.trim(before_ns)
        while len(self._plans) > 1 and self._plans[1][0] <= before_ns:
            self._plans.popleft()

    def add(self, message: Any, log_ns: int) -> None:
        """Take one message of the arm's command topic, received at `log_ns`."""
        try:
            self._read[self.kind](message, log_ns)
        except (KeyError, IndexError, ValueError, TypeError):
            self.unusable += 1

    def add_gripper(self, message: Any, log_ns: int) -> None:
        """Take one message of the gripper's command topic: trajectory, joint state, array or
        controller state with its position."""
        gripper = self._robot.gripper
        if gripper is None:
            return
        if hasattr(message, "points"):
            position = message.points[-1].positions[0] if message.points else None
        elif hasattr(message, "position"):
            position = dict(zip(message.name, message.position, strict=False)).get(gripper.joint)
        elif hasattr(message, "joint_names"):
            reference = reference_of(message)
            position = dict(zip(message.joint_names, reference, strict=False)).get(gripper.joint)
        else:
            position = message.data[0] if len(message.data) else None
        if position is None:
            self.unusable += 1
        else:
            self._openings.add(_time(message, log_ns), gripper.opening(float(position)))

    def _trajectory(self, message: Any, log_ns: int) -> None:
        order = [list(message.joint_names).index(joint) for joint in self._robot.joints]
        points = message.points
        begin = stamp_of(message) or log_ns
        times = np.array([begin + p.time_from_start.sec * NANOSECONDS + p.time_from_start.nanosec for p in points])
        positions = np.array([np.asarray(p.positions, dtype=np.float64)[order] for p in points])
        velocities = None
        if all(len(p.velocities) == len(order) for p in points):
            velocities = np.array([np.asarray(p.velocities, dtype=np.float64)[order] for p in points])
        if positions.ndim != 2 or not len(positions):
            raise ValueError("no points")
        self._plans.append((log_ns, Plan(times, positions, velocities)))

    def _reference(self, message: Any, log_ns: int) -> None:
        order = [list(message.joint_names).index(joint) for joint in self._robot.joints]
        positions = reference_of(message)[order]
        if not np.isfinite(positions).all():
            raise ValueError("not finite")
        self._held.add(_time(message, log_ns), positions)

    def _twist(self, message: Any, log_ns: int) -> None:
        linear = message.twist.linear
        angular = message.twist.angular
        numbers = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z], dtype=np.float64)
        controller = self._robot.controller
        if isinstance(controller, ServoTwist) and controller.units == "unitless":
            numbers *= np.repeat([controller.linear_scale, controller.angular_scale], 3)
        in_tool = message.header.frame_id in (self._robot.eef_frame,)
        self._held.add(_time(message, log_ns), (numbers, in_tool))

    def _pose(self, message: Any, log_ns: int) -> None:
        position = message.pose.position
        turn = message.pose.orientation
        rotation = matrix_from_quaternion([turn.w, turn.x, turn.y, turn.z])
        pose = pose_of(rotation, np.array([position.x, position.y, position.z]))
        if not np.isfinite(pose).all():
            raise ValueError("not finite")
        self._held.add(_time(message, log_ns), pose)

    def _joint_state(self, message: Any, log_ns: int) -> None:
        positions = dict(zip(message.name, message.position, strict=True))
        self._held.add(_time(message, log_ns), np.array([positions[joint] for joint in self._robot.joints]))
        gripper = self._robot.gripper
        if gripper is not None and gripper.joint in positions:
            self._openings.add(_time(message, log_ns), gripper.opening(float(positions[gripper.joint])))

    def _array(self, message: Any, log_ns: int) -> None:
        count = len(self._robot.joints)
        numbers = np.asarray(message.data, dtype=np.float64)
        if len(numbers) not in (count, count + 1):
            raise ValueError("another number of joints")
        self._held.add(log_ns, numbers[:count].copy())
        if len(numbers) > count and self._robot.gripper is not None:
            self._openings.add(log_ns, self._robot.gripper.opening(float(numbers[count])))

    def at(self, times: Times, start: RobotState) -> Targets:
        """The targets in force for each time, for motion that starts from `start`."""
        if self.kind == "twist":
            return self._integrated(times, start)
        timed = {"joint_trajectory": self._plan_at, "reference": self._reference_at}
        at = timed.get(self.kind, self._held_at)
        rows = [at(int(t)) for t in times]
        shape = (4, 4) if self.kind == "pose" else (len(self._robot.joints),)
        stacked = np.stack([np.full(shape, np.nan) if row is None else row for row in rows])
        valid = np.array([row is not None for row in rows])
        return Targets(None, stacked, valid) if self.kind == "pose" else Targets(stacked, None, valid)

    def gripper(self, times: Times) -> Array:
        """(n,) commanded opening in force for each time, NaN where none was sent yet."""
        rows = [self._openings.before(int(time) - self._lead) for time in times]
        return np.array([np.nan if row is None else row[1] for row in rows])

    def _plan_at(self, time_ns: int) -> Array | None:
        for arrival, plan in reversed(self._plans):
            if arrival <= time_ns and (plan.times[0] <= time_ns or arrival == self._plans[0][0]):
                return plan(time_ns) if time_ns <= plan.times[-1] + STALE_NS else None
        return None

    def _reference_at(self, time_ns: int) -> Array | None:
        return _between(self._held, time_ns - self._lead)

    def _held_at(self, time_ns: int) -> Array | None:
        time_ns -= self._lead
        found = self._held.before(time_ns)
        return None if found is None or time_ns - found[0] > self._lasts_ns(found[0]) else found[1]

    def _lasts_ns(self, sent_ns: int) -> int:
        """Validity of a set point: until the next one, at the stream's end as long as they
        usually did."""
        times = self._held.times
        if sent_ns < times[-1]:
            return STALE_NS
        return min(STALE_NS, 9 * (times[-1] - times[-2]) // 10) if len(times) > 1 else 0

    def _integrated(self, times: Times, start: RobotState) -> Targets:
        """Velocities in force, summed from the measured pose; a twist is over after half a
        second."""
        if start.eef_pose is None:
            return Targets(None, np.full((len(times), 4, 4), np.nan), np.zeros(len(times), dtype=bool))
        pose = start.eef_pose.copy()
        now = start.stamp_ns
        poses = []
        valid = []
        for time in times:
            edges = [now, *(t for t in self._held.times if now < t < time), int(time)]
            for begin, end in pairwise(edges):
                found = self._held.before(begin)
                if found is not None and begin - found[0] <= GAP_NS:
                    twist, in_tool = found[1]
                    pose = _moved(pose, twist, in_tool, (end - begin) / NANOSECONDS)
            now = int(time)
            newest = self._held.before(now)
            poses.append(pose.copy())
            valid.append(newest is not None and now - newest[0] <= self._lasts_ns(newest[0]))
        return Targets(None, np.stack(poses), np.array(valid))


def reference_of(message: Any) -> Array:
    """(J,) the positions that a JointTrajectoryControllerState commands; empty without any.

    ROS 2 distributions before Humble name the field `desired`; Humble has both.
    """
    found = (getattr(message, name, None) for name in ("reference", "desired"))
    positions = (point.positions for point in found if point is not None)
    return np.asarray(next((row for row in positions if len(row)), ()), dtype=np.float64)


def _time(message: Any, log_ns: int) -> int:
    return (stamp_of(message) if hasattr(message, "header") else 0) or log_ns


def _moved(pose: Array, twist: Array, in_tool: bool, seconds: float) -> Array:
    """`pose` after `seconds` at a constant velocity, in the tool's axes or the base's."""
    shift = twist[:3] * seconds
    turn = matrix_from_vector(twist[3:] * seconds)
    moved = pose.copy()
    moved[:3, 3] += pose[:3, :3] @ shift if in_tool else shift
    moved[:3, :3] = pose[:3, :3] @ turn if in_tool else turn @ pose[:3, :3]
    return moved


@dataclass(frozen=True)
class Answer:
    """A chunk with what it was answered to. variants: label -> the chunk of another instruction or
    a blanked camera.

    camera: where the camera of `image` was.
    """

    chunk: ActionChunk
    start: RobotState
    episode: str
    image: NDArray[np.uint8] | None = None
    variants: tuple[tuple[str, ActionChunk], ...] = ()
    camera: Calibration | None = None


@dataclass
class Tracks:
    """Recorded tracks. commands None: the motion that followed is the reference. chunks: stamp ->
    recorded chunk."""

    motion: MotionTrack
    commands: CommandTrack | None
    chunks: dict[int, ActionChunk]
    by_chunks: bool = False

    @classmethod
    def of(cls, mapping: TopicMapping, robot: RobotSpec, step_duration: float) -> "Tracks":
        """Empty tracks for a bag's topics. step_duration: s, the lead of set points that are given
        none."""
        kind = mapping.command_kind
        commands = None
        if mapping.commands is not None and kind is not None and kind != "action_chunk":
            lead = mapping.command_lead
            if lead is None:
                lead = step_duration if kind in SET_POINTS else 0.0
            commands = CommandTrack(kind, robot, round(lead * NANOSECONDS))
        return cls(MotionTrack(), commands, {}, kind == "action_chunk")

    def reference(self, answer: Answer, kinematics: Kinematics | None) -> Steps | None:
        """The recorded steps for an answer's times; None when nothing is known or the spaces cannot
        be compared."""
        chunk = answer.chunk
        start = answer.start
        times = step_times(chunk.stamp_ns, chunk.spec, chunk.horizon)
        if self.by_chunks:
            return self._from_chunk(answer)
        source = self.commands or self.motion
        targets = source.at(times, start)
        gripper = self.gripper(times)
        if chunk.spec.space in EEF_SPACES:
            poses = targets.as_poses(kinematics)
            return None if poses is None else steps_of_targets(chunk.spec, start, poses, targets.valid, gripper)
        if targets.joints is None:
            return None
        return steps_of_targets(chunk.spec, start, targets.joints, targets.valid, gripper)

    def _from_chunk(self, answer: Answer) -> Steps | None:
        """A recorded chunk of the same observation, in our words."""
        chunk = answer.chunk
        recorded = self.chunk_near(answer.chunk.stamp_ns, answer.chunk.spec.step_duration)
        if recorded is None:
            return None
        theirs = steps_of_chunk(recorded, answer.start)
        if recorded.spec == chunk.spec and recorded.horizon == chunk.horizon:
            return theirs
        targets = theirs.poses if chunk.spec.space in EEF_SPACES else theirs.joints
        if targets is None or abs(recorded.spec.step_duration - chunk.spec.step_duration) > 1e-9:
            return None
        count = min(recorded.horizon, chunk.horizon)
        padded = np.concatenate([targets[:count], np.repeat(targets[count - 1:count], chunk.horizon - count, axis=0)])
        gripper = np.full(chunk.horizon, np.nan)
        gripper[:count] = theirs.gripper[:count]
        return steps_of_targets(chunk.spec, answer.start, padded, np.arange(chunk.horizon) < count, gripper)

    def chunk_near(self, stamp_ns: int, step: float) -> ActionChunk | None:
        """The recorded chunk of this stamp, or the nearest within half a step."""
        if stamp_ns in self.chunks or not self.chunks:
            return self.chunks.get(stamp_ns)
        nearest = min(self.chunks, key=lambda stamp: abs(stamp - stamp_ns))
        return self.chunks[nearest] if abs(nearest - stamp_ns) <= step * NANOSECONDS / 2 else None

    def gripper(self, times: NDArray[np.int64]) -> Array:
        """(n,) openings: commanded where gripper commands were recorded, else measured."""
        if self.commands is not None and self.commands.has_gripper:
            return self.commands.gripper(times)
        return self.motion.gripper(times)
