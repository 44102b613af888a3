"""sensor_msgs/JointState into RobotState.

Joints are matched by name, checked, kept for a while and interpolated at an image's stamp. A
position
that the arm cannot have is refused: a wrong measurement must not become a command.
"""

import bisect
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import NANOSECONDS, Array, ObservationError, RobotState

SPEED_FACTOR = 2.0
"""Of the speed limit: planning limits lie below the joints' own, and a person may guide the arm."""

SLACK = 0.1
"""rad: encoder noise, late stamps."""

WINDOW_NS = NANOSECONDS
REPEATS = 3
"""Sequence numbers that do not increase within WINDOW_NS before two publishers are assumed; a
restart causes one."""


class ImplausibleJointState(ObservationError):
    """Joint positions that the arm cannot have: outside its limits, or out of reach of the last
    ones."""


@dataclass(frozen=True)
class JointPlausibility:
    """Bounds of plausible positions of one arm: (J,) rad, rad, rad/s, and the margin outside
    (rad)."""

    joints: tuple[str, ...]
    lower: Array
    upper: Array
    speed: Array
    margin: float

    def check(self, positions: Array, stamp_ns: int, last: tuple[int, Array] | None) -> None:
        """Raise ImplausibleJointState with the joint, its position and the reason.

        last: stamp (ns) and positions (J,) of the newest accepted state; None for none.
        """
        outside = np.maximum(self.lower - positions, positions - self.upper)
        worst = int(np.argmax(outside))
        if outside[worst] > self.margin:
            raise ImplausibleJointState(
                f"{self.joints[worst]} at {positions[worst]:.3f} rad is outside its limits "
                f"[{self.lower[worst]:.3f}, {self.upper[worst]:.3f}] by more than max_start_jump = {self.margin:g} "
                "rad. Check the driver, or correct `limits` in the robot's YAML."
            )
        if last is None:
            return
        seconds = (stamp_ns - last[0]) / NANOSECONDS
        reach = SPEED_FACTOR * self.speed * max(seconds, 0.0) + SLACK
        moved = np.abs(positions - last[1])
        worst = int(np.argmax(moved / reach))
        if moved[worst] > reach[worst]:
            raise ImplausibleJointState(
                f"{self.joints[worst]} jumped from {last[1][worst]:.3f} to {positions[worst]:.3f} rad, faster than "
                f"{SPEED_FACTOR:g} times its speed limit of {self.speed[worst]:g} rad/s. Is there a second publisher, "
                "or a glitch of the driver?"
            )


class PublisherCheck:
    """Detects two publishers of the same joints by the middleware's sequence numbers, which count
    per publisher."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._repeats: deque[int] = deque(maxlen=REPEATS)

    def two_publish(self, sequence: int | None, now_ns: int) -> bool:
        """True once the numbers of messages that name the arm's joints keep going back.

        sequence: the message's publication sequence number; None where the middleware gives none.
        """
        if sequence is None:
            return False
        if self._last is not None and sequence <= self._last:
            self._repeats.append(now_ns)
        self._last = sequence
        return len(self._repeats) == REPEATS and 0 <= now_ns - self._repeats[0] <= WINDOW_NS


REST_WINDOW = 0.3
"""s: an arm is at rest that was slow for so long."""

SPEED_STEP = 0.05
"""s between two positions whose difference is a speed: shorter ones measure the encoder's noise."""


class JointStateMessage(Protocol):
    """Fields read from a sensor_msgs/JointState."""

    header: Any
    name: Any
    position: Any
    velocity: Any


class Finger(Protocol):
    """Part of a robot's gripper that is read: its joint's name, and the opening 0..1 at a
    position."""

    @property
    def joint(self) -> str:
        """The joint's name in joint_states."""

    def opening(self, position: float) -> float:
        """0 closed to 1 open."""


@dataclass(frozen=True)
class JointReading:
    """One message's worth of the arm: (J,) positions, and velocities where the driver publishes
    usable ones."""

    stamp_ns: int
    positions: Array
    velocities: Array | None


def stamp_of(message: Any) -> int:
    """A header's stamp in ns."""
    return int(message.header.stamp.sec) * NANOSECONDS + int(message.header.stamp.nanosec)


def read_joints(
    message: JointStateMessage, joints: tuple[str, ...], stamp_ns: int | None = None
) -> JointReading | None:
    """The named joints in our order; None when the message names none of them (it is another
    device's).

    stamp_ns: its time where the header's is not to be used.
    Velocities are optional in the message: where their list has another length or one of ours is
    not finite (a broadcaster publishes NaN for an interface that the hardware lacks), they count as
    not published.

    Raises ObservationError when a joint is missing, names and positions differ in number, or a
    position is not finite.
    """
    index = {name: i for i, name in enumerate(message.name)}
    missing = [joint for joint in joints if joint not in index]
    if len(missing) == len(joints):
        return None
    if missing:
        raise ObservationError(
            f"joint '{missing[0]}' is missing; the message has: {printable(', '.join(message.name))}. "
            "Check `joints` in the robot's YAML and the driver."
        )
    doubles = [joint for joint in joints if list(message.name).count(joint) > 1]
    if doubles:
        raise ObservationError(f"joint '{doubles[0]}' is named more than once: each joint must have one value.")
    rows = [index[joint] for joint in joints]
    positions = _positions(message.position, rows, joints, len(message.name))
    stamp = stamp_of(message) if stamp_ns is None else stamp_ns
    return JointReading(stamp, positions, _velocities(message.velocity, rows, len(message.name)))


def _velocities(values: Any, rows: list[int], names: int) -> Array | None:
    """The velocities of the rows, None where the message holds no usable ones."""
    if len(values) != names:
        return None
    picked = np.array([values[row] for row in rows], dtype=np.float64)
    return picked if np.isfinite(picked).all() else None


def _positions(values: Any, rows: list[int], joints: tuple[str, ...], names: int) -> Array:
    if len(values) != names:
        raise ObservationError(f"{names} joint names but {len(values)} position values: they must be equally many.")
    picked = np.array([values[row] for row in rows], dtype=np.float64)
    for joint, value in zip(joints, picked, strict=True):
        if not math.isfinite(value):
            raise ObservationError(f"position of '{joint}' is {value}, not a finite number.")
    return picked


class JointStateBuffer:
    """The last `span` seconds of one arm's joint states, and of its gripper, which may be another
    publisher's.

    plausibility: checks the arm's positions before they are kept; None accepts every finite one.

    Not thread-safe. A stamp that does not advance is dropped: drivers repeat messages.
    """

    def __init__(
        self,
        joints: tuple[str, ...],
        gripper: Finger | None = None,
        span: float = 2.0,
        plausibility: JointPlausibility | None = None,
    ) -> None:
        self._joints = joints
        self._plausibility = plausibility
        self._gripper = gripper
        self._span_ns = int(span * NANOSECONDS)
        self._readings: deque[JointReading] = deque()
        self._openings: deque[tuple[int, float]] = deque()

    def clear(self) -> None:
        """Forget everything, as after a clock jump."""
        self._readings.clear()
        self._openings.clear()

    def add(self, message: JointStateMessage, stamp_ns: int | None = None) -> bool:
        """Keep the message's joints; True when it moved the arm's newest state on. Raises
        ObservationError.

        stamp_ns: its time where the header's is not to be used.
        """
        stamp = stamp_of(message) if stamp_ns is None else stamp_ns
        if stamp <= 0:
            raise ObservationError("the stamp is zero: the driver must stamp its joint states.")
        if self._gripper is not None and self._gripper.joint in message.name:
            row = list(message.name).index(self._gripper.joint)
            position = _positions(message.position, [row], (self._gripper.joint,), len(message.name))[0]
            if not self._openings or stamp > self._openings[-1][0]:
                self._openings.append((stamp, self._gripper.opening(float(position))))
                _drop_before(self._openings, stamp - self._span_ns, lambda item: item[0])
        reading = read_joints(message, self._joints, stamp)
        if reading is None or (self._readings and stamp <= self._readings[-1].stamp_ns):
            return False
        if self._plausibility is not None:
            newest = self._readings[-1] if self._readings else None
            last = None if newest is None else (newest.stamp_ns, newest.positions)
            self._plausibility.check(reading.positions, reading.stamp_ns, last)
        self._readings.append(reading)
        _drop_before(self._readings, stamp - self._span_ns, lambda item: item.stamp_ns)
        return True

    def latest(self) -> RobotState | None:
        """The newest state, None before the first."""
        if not self._readings:
            return None
        newest = self._readings[-1]
        opening = self._opening_at(newest.stamp_ns)
        return RobotState(newest.stamp_ns, newest.positions, newest.velocities, gripper=opening)

    def speed(self) -> Array:
        """(J,) the greatest speed of the last REST_WINDOW seconds, by positions; infinite where
        they cover too little.

        Velocities are optional in a message, and some drivers publish none or zeros. A joint that
        turns round is slow
        for a moment only: hence the window.
        """
        too_little = np.full(len(self._joints), np.inf)
        if not self._readings:
            return too_little
        begin_ns = self._readings[-1].stamp_ns - round(REST_WINDOW * NANOSECONDS)
        recent = [reading for reading in self._readings if reading.stamp_ns >= begin_ns]
        stamps = np.array([reading.stamp_ns for reading in recent])
        covered = (stamps[-1] - stamps[0]) / NANOSECONDS
        gap = np.diff(stamps, prepend=stamps[0]).max() / NANOSECONDS
        if covered < REST_WINDOW / 2 or gap >= REST_WINDOW / 2:
            return too_little
        fastest = np.zeros(len(self._joints))
        first = 0
        for reading in recent:
            while reading.stamp_ns - recent[first].stamp_ns >= SPEED_STEP * NANOSECONDS:
                seconds = (reading.stamp_ns - recent[first].stamp_ns) / NANOSECONDS
                moved = np.abs(reading.positions - recent[first].positions)
                fastest = np.maximum(fastest, moved / seconds)
                first += 1
        return fastest

    def at(self, stamp_ns: int, tolerance: float) -> RobotState:
        """The state at `stamp_ns`, linear between the two messages around it.

        Up to `tolerance` seconds after the newest message the arm goes on at its velocity, before
        the oldest it is at rest; further away, or in a gap of the messages, ObservationError.
        """
        readings = self._readings
        if not readings:
            raise ObservationError("joint_states: none have come.")
        after = bisect.bisect_left(readings, stamp_ns, key=lambda r: r.stamp_ns)
        low = readings[max(after - 1, 0)]
        high = readings[min(after, len(readings) - 1)]
        gap = min(abs(stamp_ns - low.stamp_ns), abs(high.stamp_ns - stamp_ns)) / NANOSECONDS
        if gap > tolerance:
            raise ObservationError(
                f"joint_states: none within {tolerance:g} s of the image, the nearest is {gap:.3f} s away. "
                "Has the driver stopped, or do camera and driver not share one clock?"
            )
        width = high.stamp_ns - low.stamp_ns
        share = min(max((stamp_ns - low.stamp_ns) / width, 0.0), 1.0) if width else 0.0
        velocities = None
        if low.velocities is not None and high.velocities is not None:
            velocities = low.velocities + share * (high.velocities - low.velocities)
        positions = low.positions + share * (high.positions - low.positions)
        if velocities is not None and stamp_ns > high.stamp_ns:
            positions = positions + velocities * (stamp_ns - high.stamp_ns) / NANOSECONDS
        return RobotState(stamp_ns, positions, velocities, gripper=self._opening_at(stamp_ns))

    def _opening_at(self, stamp_ns: int) -> float | None:
        if not self._openings:
            return None
        stamps = [stamp for stamp, _ in self._openings]
        return float(np.interp(stamp_ns, stamps, [opening for _, opening in self._openings]))


def _drop_before(items: deque[Any], stamp_ns: int, stamp: Any) -> None:
    while items and stamp(items[0]) < stamp_ns:
        items.popleft()
