"""Plausibility checks on joint states before use: a wrong measurement must not become a command."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import NANOSECONDS, ObservationError

Array = NDArray[np.float64]

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
