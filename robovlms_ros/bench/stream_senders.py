"""Ways of sending chunks to a joint_trajectory_controller: the usual ones, and this package's
scheduler."""

from collections.abc import Callable

import numpy as np

from robovlms_ros.control.schedule import ScheduleConfig, ScheduleRefused, Strategy
from robovlms_ros.control.scheduler import ChunkScheduler
from robovlms_ros.control.trajectory import Stamps
from robovlms_ros.control.trajectory_controller_model import TrajectoryMessage, TrajectoryPoint
from robovlms_ros.control.trajectory_shape import wire_form
from robovlms_ros.core.types import JointPlan, RobotState, TrajectoryCommand, TrajectoryShape

Message = TrajectoryMessage | TrajectoryCommand

LEAD_NS = 20_000_000


class Sender:
    """Converter of chunks to messages; the base sends nothing.

    covered_until_ns: until when the policy's steps reach in what was sent last. shape: of the
    trajectories that the controller continues smoothly, where the sender cares.
    """

    def __init__(self, joints: tuple[str, ...]) -> None:
        self.joints = joints
        self.covered_until_ns = 0
        self.shape: TrajectoryShape = "self_splice"

    def on_chunk(self, plan: JointPlan, now_ns: int, measured: RobotState) -> Message | None:
        """The message sent when a chunk is ready."""
        return None

    def on_tick(self, now_ns: int) -> Message | None:
        """The message sent in between; called in every cycle of the controller."""
        return None

    def _message(self, stamp_ns: int, times_ns: Stamps, plan: JointPlan, velocities: bool = False) -> TrajectoryMessage:
        """The last len(times_ns) steps of a plan, at those times after the stamp."""
        first = len(plan.times_ns) - len(times_ns)
        slopes = plan.velocities.copy()
        slopes[-1] = 0.0
        points = tuple(
            TrajectoryPoint(int(t), plan.positions[i], slopes[i] if velocities else ())
            for i, t in enumerate(times_ns, start=first)
        )
        return TrajectoryMessage(stamp_ns, self.joints, points)


class OnePointPerTick(Sender):
    """At the policy's rate, the newest chunk's step for now as one point that is due at once."""

    def __init__(self, joints: tuple[str, ...]) -> None:
        super().__init__(joints)
        self._plan: JointPlan | None = None
        self._begin_ns = self._step_ns = self._count = 0

    def on_chunk(self, plan: JointPlan, now_ns: int, measured: RobotState) -> Message | None:
        """Keeps the plan."""
        if self._plan is None:
            self._begin_ns = now_ns
            self._step_ns = round((plan.times_ns[-1] - plan.times_ns[0]) / (len(plan.times_ns) - 1))
        self._plan = plan
        self.covered_until_ns = int(plan.times_ns[-1])
        return None

    def on_tick(self, now_ns: int) -> Message | None:
        """One point, when it is time for the next."""
        plan = self._plan
        if plan is None or now_ns < self._begin_ns + self._count * self._step_ns:
            return None
        self._count += 1
        step = min(int(np.searchsorted(plan.times_ns, now_ns, side="right")), len(plan.times_ns) - 1)
        return TrajectoryMessage(0, self.joints, (TrajectoryPoint(0, plan.positions[step]),))


class WholeChunkNow(Sender):
    """The whole chunk's positions with a zero stamp: it starts when it arrives, a latency too
    late."""

    def on_chunk(self, plan: JointPlan, now_ns: int, measured: RobotState) -> Message | None:
        """The chunk."""
        stamp_ns = _stamp(plan)
        self.covered_until_ns = int(plan.times_ns[-1]) - stamp_ns + now_ns
        return self._message(0, plan.times_ns - stamp_ns, plan)


class WholeChunkStamped(Sender):
    """The whole chunk's positions, stamped with the image's time: the controller skips what is
    past."""

    def on_chunk(self, plan: JointPlan, now_ns: int, measured: RobotState) -> Message | None:
        """The chunk."""
        stamp_ns = _stamp(plan)
        self.covered_until_ns = int(plan.times_ns[-1])
        return self._message(stamp_ns, plan.times_ns - stamp_ns, plan)


class FutureSteps(Sender):
    """The steps that are not yet due, with velocities: the controller blends from its pre-state to
    the first."""

    def on_chunk(self, plan: JointPlan, now_ns: int, measured: RobotState) -> Message | None:
        """The chunk's future."""
        future = plan.times_ns[plan.times_ns > now_ns + LEAD_NS]
        if not len(future):
            return None
        stamp_ns = _stamp(plan)
        self.covered_until_ns = int(plan.times_ns[-1])
        return self._message(stamp_ns, future - stamp_ns, plan, velocities=True)


class Scheduled(Sender):
    """This package's scheduler with one of its strategies."""

    def __init__(self, joints: tuple[str, ...], strategy: Strategy) -> None:
        super().__init__(joints)
        self._scheduler = ChunkScheduler(joints, ScheduleConfig(strategy))

    def on_chunk(self, plan: JointPlan, now_ns: int, measured: RobotState) -> Message | None:
        """The scheduler's message; None for a chunk that is wholly past."""
        self._scheduler.shape = self.shape
        try:
            message = wire_form(self._scheduler.update(plan, now_ns, measured), now_ns)
        except ScheduleRefused:
            return None
        finally:
            self.covered_until_ns = self._scheduler.covered_until_ns
        return message


def _scheduled(strategy: Strategy) -> Callable[[tuple[str, ...]], Sender]:
    return lambda joints: Scheduled(joints, strategy)


def _stamp(plan: JointPlan) -> int:
    assert plan.chunk is not None
    return plan.chunk.stamp_ns


NAIVE: dict[str, Callable[[tuple[str, ...]], Sender]] = {
    "one_point_per_tick": OnePointPerTick,
    "whole_chunk_now": WholeChunkNow,
    "whole_chunk_stamped": WholeChunkStamped,
    "future_steps": FutureSteps,
}
SENDERS = NAIVE | {name: _scheduled(name) for name in ("first", "receding", "ensemble", "fade", "blend")}  # type: ignore[arg-type]
DEFAULT = ScheduleConfig().strategy
