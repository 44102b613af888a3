"""Chunks become one uninterrupted motion that a stock joint_trajectory_controller follows without a step.

Every command begins with the last points of our own previous plan, already past, so that a
controller that forgets the old trajectory when a new one arrives neither blends from the measured
state nor jumps; one that blends is sent another shape (`trajectory_shape`). A chunk is placed by the
stamp of its observation, its past steps are dropped, and the arm moves from the running plan onto it.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from robovlms_ros.control.blending import (
    MEMORY_CHUNKS,
    Agreement,
    Track,
    extended,
    temporal_ensemble,
)
from robovlms_ros.control.limits import JointBounds, bounds_of, cut
from robovlms_ros.control.robot import JointLimits
from robovlms_ros.control.schedule import ScheduleConfig, ScheduleRefused
from robovlms_ros.control.smoothing import joining_time, within_acceleration
from robovlms_ros.control.spline import Array, Spline, Stamps, curve_of, followed_by
from robovlms_ros.control.stopping import (
    come_to_rest,
    move_slowly,
    shortest_stop,
    stop_within,
)
from robovlms_ros.control.trajectory_shape import bridgeable, bridged
from robovlms_ros.core.types import (
    NANOSECONDS,
    JointPlan,
    RobotState,
    TrajectoryCommand,
    TrajectoryShape,
)

MIN_GAP_NS = 5_000_000  # between the splice and the first step after it
MAX_GAP_NS = 50_000_000  # between points: joining the running plan bends the motion between slow steps
HOLD_NS = 2 * NANOSECONDS
"""A stop stays at its end for so long: a controller drops a trajectory that is wholly past when it arrives, so what a
late stop changes must be when the arm stops, not whether."""


@dataclass(frozen=True)
class _Memory:
    """What is remembered of the chunks: their tracks, their instruction, their noise, and how far they reach."""

    tracks: tuple[Track, ...]
    instruction: str | None
    agreement: Agreement
    covered_until_ns: int


class ChunkScheduler:
    """The running plan of one arm, and the message that replaces it when a chunk arrives.

    joints: their names, in the order of every (..., J) array.
    limits: keep joins and stops within acceleration and position limits, and round the corners of chunks (blend).
    shape: of the commands that follow; it may be changed at any time.
    """

    shape: TrajectoryShape = "self_splice"

    def __init__(
        self, joints: tuple[str, ...], config: ScheduleConfig | None = None, limits: JointLimits | None = None
    ) -> None:
        self.joints = tuple(joints)
        self.config = config or ScheduleConfig()
        self._bounds = bounds_of(limits, len(self.joints))
        self._lead_ns = round(self.config.lead * NANOSECONDS)
        self.reset()

    def reset(self) -> None:
        """Forget chunks and running plan: the next chunk starts at the measured state (activation, new episode)."""
        self._running: Spline | None = None
        self.forget_chunks()

    def forget_chunks(self) -> None:
        """Let no earlier chunk count any more; the running plan stays, so that the motion stays continuous."""
        self._memory = _Memory((), None, Agreement(self.config.memory), 0)
        self._proposed = self._memory

    @property
    def lead_ns(self) -> int:
        """The configured lead: how far ahead of now the running plan is left as it is."""
        return self._lead_ns

    @property
    def covered_until_ns(self) -> int:
        """Until when the running plan follows the policy's steps; after it the arm comes to rest. 0: no plan."""
        return self._memory.covered_until_ns

    def commanded(self, t_ns: int) -> tuple[Array, Array] | None:
        """Positions and velocities (J,) of the running plan at a time; None before the first command."""
        if self._running is None:
            return None
        positions, velocities = self._running(np.array([t_ns]))
        return positions[0], velocities[0]

    def update(self, plan: JointPlan, now_ns: int, measured: RobotState) -> TrajectoryCommand:
        """`propose` and `commit` in one: for a caller that sends whatever comes out."""
        command = self.propose(plan, now_ns, measured)
        self.commit(command)
        return command

    def propose(
        self, plan: JointPlan, now_ns: int, measured: RobotState, lead_ns: int | None = None
    ) -> TrajectoryCommand:
        """The message that continues the running plan with a chunk; the running plan itself waits for `commit`.

        lead_ns: in place of the configured lead, for a message that takes longer to compute. Raises ScheduleRefused
        when every step is past or a value is not finite.
        """
        _check_finite("plan positions", plan.positions)
        _check_finite("plan velocities", plan.velocities)
        _check_finite("measured positions", measured.positions)
        if len(plan.times_ns) == 0 or np.any(np.diff(plan.times_ns) <= 0):
            raise ScheduleRefused(f"a plan of {len(plan.times_ns)} steps: needs steps that strictly increase in time.")
        splice_ns = now_ns + (self._lead_ns if lead_ns is None else lead_ns)
        running = self._running_at(now_ns) or _at_rest(measured.positions, now_ns, splice_ns)
        usable = np.flatnonzero(plan.times_ns > splice_ns + MIN_GAP_NS)
        if not len(usable):
            late = (splice_ns - int(plan.times_ns[-1])) / NANOSECONDS
            raise ScheduleRefused(
                f"the chunk's last step was due {late:.3f} s before it could start: inference takes longer than the "
                "horizon covers. Use a longer horizon or a faster policy."
            )
        steps = {"first": 1, "receding": self.config.execute_steps}.get(self.config.strategy, len(usable))
        knots_ns = _knots(splice_ns, plan.times_ns[usable[:steps]])
        future = self._join(running, self._tracks(plan, splice_ns), knots_ns)
        instruction = None if plan.chunk is None else plan.chunk.instruction
        self._proposed = replace(self._proposed, instruction=instruction, covered_until_ns=int(knots_ns[-1]))
        whole = come_to_rest(future, self.config.stop_time, self._executable())
        return self._message(running, whole, now_ns, splice_ns - now_ns)

    def commit(self, command: TrajectoryCommand) -> None:
        """What was really sent (clamped, perhaps) is the running plan from now on."""
        self._memory = self._proposed
        self._running = curve_of(command)

    def smooth_stop(
        self, now_ns: int, speed_scaling: float = 1.0, shortest: bool = False
    ) -> TrajectoryCommand:
        """A stop along the running plan, within the acceleration limits; it is the running plan from now on.

        No measurement enters: a wrong or old one would turn the stop into a jump. The message lasts HOLD_NS longer
        than the stop. speed_scaling: as in `stop_within`. shortest: within the limits, whatever
        stop_time is. Raises ScheduleRefused when no motion is commanded.
        """
        running = self._running_at(now_ns)
        if running is None:
            raise ScheduleRefused("no motion is commanded: there is nothing to stop.")
        splice_ns = now_ns + self._lead_ns
        self.forget_chunks()
        if shortest:
            stop = shortest_stop(running, splice_ns, self._executable(), speed_scaling)
        else:
            duration = self.config.stop_time
            stop = stop_within(running, splice_ns, duration, self._executable(), speed_scaling)
        still = Spline(np.array([stop.end_ns + HOLD_NS]), stop.positions[-1:], stop.velocities[-1:])
        command = self._message(running, followed_by(stop, still), now_ns, self._lead_ns)
        self.commit(command)
        return command

    def move_back(self, positions: Array, now_ns: int, share: float) -> TrajectoryCommand:
        """A slow motion from the running plan, at rest, to (J,) rad; the running plan from now on.

        share: as in `move_slowly`. Raises ScheduleRefused while the running plan moves, and where
        there is none.
        """
        running = self._running_at(now_ns)
        if running is None or np.ptp(cut(running, now_ns).positions, axis=0).max() > 0:
            raise ScheduleRefused("the commanded motion is not at rest: it is not moved back.")
        _check_finite("target positions", positions)
        splice_ns = now_ns + self._lead_ns
        self.forget_chunks()
        end = np.clip(positions, self._bounds.lower, self._bounds.upper)
        begin = running(np.array([splice_ns]))[0][0]
        back = move_slowly(splice_ns, begin, end, self._executable(), share)
        still = Spline(np.array([back.end_ns + HOLD_NS]), back.positions[-1:], back.velocities[-1:])
        command = self._message(running, followed_by(back, still), now_ns, self._lead_ns)
        self.commit(command)
        return command

    def resume(self, commanded: Spline | None) -> None:
        """Take up a commanded motion as the running plan; None for none."""
        self._running = commanded

    def _executable(self) -> JointBounds:
        """The bounds within which the controller's own way onto a command stays inside the
        limits."""
        return self._bounds if self.shape == "self_splice" else bridgeable(self._bounds)

    def _running_at(self, now_ns: int) -> Spline | None:
        """The running plan, unless the clock jumped back to before it."""
        return self._running if self._running is not None and self._running.times_ns[0] <= now_ns else None

    def _tracks(self, plan: JointPlan, splice_ns: int) -> list[Track]:
        """The chunks that may count, oldest first: of one instruction, the plan's own last."""
        stamp_ns = int(plan.times_ns[0]) if plan.chunk is None else plan.chunk.stamp_ns
        newest = Track(stamp_ns, self._curve(plan, stamp_ns))
        instruction = None if plan.chunk is None else plan.chunk.instruction
        if instruction != self._memory.instruction:
            return [newest]
        older = [old for old in self._memory.tracks if old.stamp_ns < stamp_ns][-(MEMORY_CHUNKS - 1) :]
        return [*(extended(older, newest, splice_ns) if self.config.strategy == "blend" else older), newest]

    def _curve(self, plan: JointPlan, stamp_ns: int) -> Spline:
        """The plan's steps as a curve that begins at the observation's stamp, one step before the first."""
        curve = Spline(plan.times_ns, plan.positions, plan.velocities)
        if self.config.strategy == "blend":
            curve = within_acceleration(curve, self._bounds.acceleration)
        if stamp_ns >= plan.times_ns[0]:
            return curve
        seconds = (plan.times_ns[0] - stamp_ns) / NANOSECONDS
        return Spline(
            np.concatenate([[stamp_ns], curve.times_ns]),
            np.concatenate([curve.positions[:1] - seconds * curve.velocities[:1], curve.positions]),
            np.concatenate([curve.velocities[:1], curve.velocities]),
        )

    def _join(self, running: Spline, tracks: list[Track], knots_ns: Stamps) -> Spline:
        """The target from the splice (the first knot) on, and the way onto it from the running plan."""
        strategy, agreement = self.config.strategy, self._memory.agreement
        if strategy == "blend":
            positions, velocities, agreement = agreement.mean(tracks, knots_ns)
        elif strategy == "ensemble":
            positions, velocities = temporal_ensemble(tracks, knots_ns, self.config.ensemble_decay)
        else:
            positions, velocities = tracks[-1].spline(knots_ns)
        self._proposed = replace(self._memory, tracks=tuple(tracks), agreement=agreement)
        start, start_velocity = running(knots_ns[:1])
        seconds = (knots_ns - knots_ns[0])[:, None] / NANOSECONDS  # (M, 1)
        if strategy == "fade":
            a = np.clip(seconds / self.config.fade_time, 0.0, 1.0)
            offset = start - positions[0]
            velocities = velocities - offset * 6 * a * (1 - a) / self.config.fade_time
            positions = positions + offset * (1 - a) ** 2 * (1 + 2 * a)
        elif strategy == "blend":
            gap, drift = start - positions[0], start_velocity - velocities[0]
            duration = joining_time(gap[0], drift[0], self._bounds.acceleration, self.config.fade_time)
            a = np.clip(seconds / duration, 0.0, 1.0)
            offset = gap + drift * duration / 3 * (1 - (1 - a) ** 3)
            share, slope = (1 - a) ** 3 * (1 + 3 * a), -12 * a * (1 - a) ** 2 / duration
            velocities = velocities + share * drift * (1 - a) ** 2 + slope * offset
            positions = positions + share * offset
        positions[0], velocities[0] = start[0], start_velocity[0]
        return Spline(knots_ns, positions, velocities)

    def _message(
        self, running: Spline, future: Spline, now_ns: int, lead_ns: int
    ) -> TrajectoryCommand:
        """The running plan's points from the last two past ones up to the splice, then the future."""
        begin = max(0, int(np.searchsorted(running.times_ns, now_ns, side="right")) - 2)
        past = Spline(running.times_ns[begin:], running.positions[begin:], running.velocities[begin:])
        whole = followed_by(past, future)
        if self.shape == "replacement":
            whole = bridged(whole, now_ns, lead_ns)
        times = (whole.times_ns - whole.times_ns[0]) / NANOSECONDS
        return TrajectoryCommand(
            int(whole.times_ns[0]),
            self.joints,
            times,
            whole.positions,
            whole.velocities,
            shape=self.shape,
        )


def _at_rest(positions: Array, begin_ns: int, end_ns: int) -> Spline:
    both = np.stack([positions, positions]).astype(np.float64)
    return Spline(np.array([begin_ns, end_ns]), both, np.zeros_like(both))


def _knots(splice_ns: int, steps_ns: Stamps) -> Stamps:
    """The splice and the steps, with points in between where they lie further apart than MAX_GAP_NS."""
    corners = np.concatenate([[splice_ns], steps_ns])
    if np.diff(corners).max() <= MAX_GAP_NS:
        return corners
    parts = [
        np.linspace(begin, end, math.ceil((end - begin) / MAX_GAP_NS), endpoint=False)
        for begin, end in pairwise(corners)
    ]
    return np.round(np.concatenate([*parts, corners[-1:]])).astype(np.int64)


def _check_finite(name: str, values: Array) -> None:
    if not np.all(np.isfinite(values)):
        where = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ScheduleRefused(f"{name}{where} is not finite: nothing is sent. Look at the policy or the joint states.")
