"""Disagreement between a policy that does not command the arm and the commanded motion.

A shadow chunk is compared once its first COMPARED_AFTER seconds are past: its positions then with
those that were commanded. No clock is read.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.trajectory import Array, Spline
from robovlms_ros.core.types import NANOSECONDS, JointPlan

COMPARED_AFTER = 0.5
"""s from a chunk's stamp to the instant that is compared; a shorter chunk's last step."""

MOST_WAITING = 64
"""Chunks that wait for their instant; the oldest is dropped beyond."""


@dataclass(frozen=True)
class Disagreement:
    """The distance of a shadow chunk from the commanded motion at one instant.

    stamp_ns: the chunk's. joints: (J,) rad, the chunk's position minus the commanded one. tool: m
    between both tool positions, None without kinematics.
    """

    policy_id: str
    stamp_ns: int
    joints: Array
    tool: float | None


class ShadowComparison:
    """Shadow chunks that wait for the instant at which they are compared. Not thread safe."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, JointPlan]] = deque(maxlen=MOST_WAITING)

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def add(self, plan: JointPlan) -> None:
        """Take a shadow chunk's plan."""
        assert plan.chunk is not None
        instant_ns = plan.chunk.stamp_ns + round(COMPARED_AFTER * NANOSECONDS)
        self._waiting.append((min(instant_ns, int(plan.times_ns[-1])), plan))

    def due(
        self,
        now_ns: int,
        commanded: Callable[[int], tuple[Array, Array] | None],
        kinematics: Kinematics | None,
    ) -> list[Disagreement]:
        """The disagreements whose instant is past; a chunk without a commanded motion has none.

        commanded: positions and velocities (J,) at a time (ns).
        """
        found = []
        waiting = list(self._waiting)
        self._waiting.clear()
        for instant_ns, plan in waiting:
            if instant_ns > now_ns:
                self._waiting.append((instant_ns, plan))
                continue
            there = commanded(instant_ns)
            if there is None:
                continue
            assert plan.chunk is not None
            curve = Spline(plan.times_ns, plan.positions, plan.velocities)
            shadow = curve(np.array([instant_ns]))[0][0]
            tool = None
            if kinematics is not None:
                apart = kinematics.forward(shadow) - kinematics.forward(there[0])
                tool = float(np.linalg.norm(apart[:3, 3]))
            found.append(
                Disagreement(plan.chunk.policy_id, plan.chunk.stamp_ns, shadow - there[0], tool)
            )
        return found
