"""What the recorded robot was told: as targets at any time, from its command topic.

A set point (pose, joint state, array) holds from when it was sent until the next one; what a policy's step is compared
with was sent `lead` seconds before the step's time, one step by default: a command sent now is what to reach one step
later. Trajectories and chunks carry their own times, twists are integrated from the measured pose.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from robovlms_ros.control.controller_types import ServoTwist
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.rotations import matrix_from_quaternion, matrix_from_vector
from robovlms_ros.core.types import NANOSECONDS, RobotState
from robovlms_ros.evaluation.bags.mapping import CommandKind
from robovlms_ros.evaluation.replay.reference import GAP_NS, Array, Held, Targets, Times
from robovlms_ros.observations.joint_states import stamp_of

STALE_NS = NANOSECONDS


@dataclass(frozen=True)
class Plan:
    """One recorded JointTrajectory in force from its arrival. times (N,) ns absolute, positions (N, J)."""

    times: Times
    positions: Array
    velocities: Array | None

    def __call__(self, time_ns: int) -> Array:
        if self.velocities is not None and len(self.times) > 1:
            from robovlms_ros.control.spline import Spline

            return Spline(self.times, self.positions, self.velocities)(np.array([time_ns]))[0][0]
        return np.array([np.interp(time_ns, self.times, column) for column in self.positions.T])


class CommandTrack:
    """Recorded commands of the arm, and of the gripper where it has some.

    lead_ns: see the module. Raises nothing for a message that does not fit the robot: `unusable` counts them.
    """

    def __init__(self, kind: CommandKind, robot: RobotSpec, lead_ns: int) -> None:
        self.kind, self._robot, self._lead = kind, robot, lead_ns
        self._held, self._openings = Held(), Held()
        self._plans: deque[tuple[int, Plan]] = deque()
        self.unusable = 0
        self._read: dict[str, Callable[[Any, int], None]] = {
            "joint_trajectory": self._trajectory, "twist": self._twist, "pose": self._pose,
            "joint_state": self._joint_state, "float64_array": self._array,
        }

    @property
    def has_gripper(self) -> bool:
        """Whether gripper commands have come."""
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
        """Take one message of the gripper's command topic: trajectory, joint state or array with its position."""
        gripper = self._robot.gripper
        if gripper is None:
            return
        if hasattr(message, "points"):
            position = message.points[-1].positions[0] if message.points else None
        elif hasattr(message, "position"):
            position = dict(zip(message.name, message.position, strict=False)).get(gripper.joint)
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

    def _twist(self, message: Any, log_ns: int) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        numbers = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z], dtype=np.float64)
        controller = self._robot.controller
        if isinstance(controller, ServoTwist) and controller.units == "unitless":
            numbers *= np.repeat([controller.linear_scale, controller.angular_scale], 3)
        in_tool = message.header.frame_id in (self._robot.eef_frame,)
        self._held.add(_time(message, log_ns), (numbers, in_tool))

    def _pose(self, message: Any, log_ns: int) -> None:
        position, turn = message.pose.position, message.pose.orientation
        pose = np.eye(4)
        pose[:3, :3] = matrix_from_quaternion([turn.w, turn.x, turn.y, turn.z])
        pose[:3, 3] = position.x, position.y, position.z
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
        rows = [self._plan_at(int(t)) if self.kind == "joint_trajectory" else self._held_at(int(t) - self._lead)
                for t in times]
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

    def _held_at(self, time_ns: int) -> Array | None:
        found = self._held.before(time_ns)
        return None if found is None or time_ns - found[0] > self._lasts_ns(found[0]) else found[1]

    def _lasts_ns(self, sent_ns: int) -> int:
        """How long a set point speaks for: until the next one, at the stream's end as long as they usually did."""
        times = self._held.times
        if sent_ns < times[-1]:
            return STALE_NS
        return min(STALE_NS, 9 * (times[-1] - times[-2]) // 10) if len(times) > 1 else 0

    def _integrated(self, times: Times, start: RobotState) -> Targets:
        """Velocities in force, summed from the measured pose; a twist is over after half a second."""
        if start.eef_pose is None:
            return Targets(None, np.full((len(times), 4, 4), np.nan), np.zeros(len(times), dtype=bool))
        pose, now = start.eef_pose.copy(), start.stamp_ns
        poses, valid = [], []
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


def _time(message: Any, log_ns: int) -> int:
    return (stamp_of(message) if hasattr(message, "header") else 0) or log_ns


def _moved(pose: Array, twist: Array, in_tool: bool, seconds: float) -> Array:
    """`pose` after `seconds` at a constant velocity, in the tool's axes or the base's."""
    shift, turn = twist[:3] * seconds, matrix_from_vector(twist[3:] * seconds)
    moved = pose.copy()
    moved[:3, 3] += pose[:3, :3] @ shift if in_tool else shift
    moved[:3, :3] = pose[:3, :3] @ turn if in_tool else turn @ pose[:3, :3]
    return moved
