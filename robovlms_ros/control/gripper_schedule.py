"""Chunks' openings to few gripper commands: a mean over the recent chunks, hysteresis, and a
shortest time between two changes."""

import numpy as np

from robovlms_ros.control.controller_types import GripperBase
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.control.scheduler import MEMORY_CHUNKS
from robovlms_ros.core.types import NANOSECONDS, JointPlan


class GripperSwitch:
    """Open or closed. A new side is taken beyond the gripper's thresholds, at most once per `dwell`
    seconds."""

    def __init__(self, gripper: GripperBase) -> None:
        self._gripper = gripper
        self.reset()

    def reset(self) -> None:
        """Forget the side: the next opening beyond a threshold decides it."""
        self.opening: float | None = None
        self._changed_ns = 0

    def update(self, wanted: float, now_ns: int) -> float | None:
        """The opening to command now, 1.0 or 0.0, for the policy's `wanted` 0 to 1; None until it
        was ever decided."""
        gripper = self._gripper
        if gripper.close_below < wanted < gripper.open_above:
            return self.opening
        side = 1.0 if wanted >= gripper.open_above else 0.0
        rested = self.opening is None or abs(now_ns - self._changed_ns) >= gripper.dwell * NANOSECONDS
        if side != self.opening and rested:
            self.opening = side
            self._changed_ns = now_ns
        return self.opening


class OpeningSchedule:
    """The opening that the executed chunks want at a time.

    A chunk that stays on one side of the gripper's thresholds decides alone: its intent is clear.
    In one that changes sides the moment is uncertain: a policy that infers at every image may put
    the closing at its second step again and again, and the newest chunk alone would never close.
    Then the policy's recent chunks of the instruction are averaged, by their age as for the arm,
    where the strategy averages (blend, ensemble).

    gripper: None for an arm without one; nothing is wanted then.
    """

    def __init__(self, config: ScheduleConfig, gripper: GripperBase | None) -> None:
        self._config = config
        self._gripper = gripper
        self._plans: tuple[JointPlan, ...] = ()

    def forget(self) -> None:
        """Let no chunk count any more."""
        self._plans = ()

    def add(self, plan: JointPlan) -> None:
        """Count a plan that was sent; one without openings makes the others count no more."""
        if plan.gripper is None or self._gripper is None:
            self._plans = ()
            return
        kept = MEMORY_CHUNKS if self._config.strategy in ("blend", "ensemble") else 1
        older = [old for old in self._plans if _precedes(old, plan)]
        self._plans = (*older, plan)[-kept:]

    def wanted(self, t_ns: int) -> float | None:
        """The opening, 0 closed to 1 open, at a time; None without a plan.

        The step under way counts; the newest chunk's last opening stays after it.
        """
        if not self._plans:
            return None
        newest = self._plans[-1]
        assert newest.gripper is not None and self._gripper is not None
        step = _step(newest, t_ns)
        ahead = newest.gripper[step:]
        closes = ahead.min() <= self._gripper.close_below
        opens = ahead.max() >= self._gripper.open_above
        if not (closes and opens):
            return float(ahead[0])
        plans = [plan for plan in self._plans if t_ns <= plan.times_ns[-1]]
        openings = [plan.gripper[_step(plan, t_ns)] for plan in plans if plan.gripper is not None]
        return float(np.average(openings, weights=self._weights(plans)))

    def _weights(self, plans: list[JointPlan]) -> list[float]:
        if self._config.strategy == "ensemble":
            return [float(np.exp(-self._config.ensemble_decay * i)) for i in range(len(plans))]
        newest_ns = _stamp(plans[-1])
        ages = [(newest_ns - _stamp(plan)) / NANOSECONDS for plan in plans]
        return [float(np.exp(-age / self._config.memory)) for age in ages]


def _step(plan: JointPlan, t_ns: int) -> int:
    return min(int(np.searchsorted(plan.times_ns, t_ns)), len(plan.times_ns) - 1)


def _stamp(plan: JointPlan) -> int:
    return int(plan.times_ns[0]) if plan.chunk is None else plan.chunk.stamp_ns


def _precedes(old: JointPlan, new: JointPlan) -> bool:
    return _intent(old) == _intent(new) and _stamp(old) < _stamp(new)


def _intent(plan: JointPlan) -> tuple[str, str] | None:
    """Policy and instruction: a mean over two of them is the intent of neither."""
    return None if plan.chunk is None else (plan.chunk.policy_id, plan.chunk.instruction)
