"""Action chunks to one continuous motion that a stock joint_trajectory_controller follows without a
step.

The targets of several chunks become one: a temporal ensemble, or the mean of those that agree with
the newest. Steps beyond the acceleration limits are smoothed, as little changed as possible.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from robovlms_ros.control.robot import JointLimits
from robovlms_ros.control.schedule import ScheduleConfig, ScheduleRefused
from robovlms_ros.control.stops import come_to_rest, move_slowly, shortest_stop, stop_within
from robovlms_ros.control.trajectory import (
    Array,
    JointBounds,
    Spline,
    Stamps,
    bounds_of,
    curve_of,
    cut,
    followed_by,
)
from robovlms_ros.control.trajectory_shape import bridgeable, bridged
from robovlms_ros.core.types import (
    NANOSECONDS,
    JointPlan,
    RobotState,
    TrajectoryCommand,
    TrajectoryShape,
)

SETTLING = 0.15  # s after a chunk's end in which its distance from the newest becomes constant
WINDOW = 0.3  # s after the splice over which two chunks are compared
NOISE_FLOOR = 0.002  # rad or m: disagreements below a few times this are never ignored as noise
# in standard deviations: full weight up to the first, none from the second
AGREES = 2.0
DISAGREES = 4.0
MEMORY_CHUNKS = 8
MEMORY_PAIRS = 9


@dataclass(frozen=True)
class Track:
    """One chunk's targets over absolute time, and the stamp of the observation it answers."""

    stamp_ns: int
    spline: Spline


def temporal_ensemble(tracks: list[Track], times_ns: Stamps, decay: float) -> tuple[Array, Array]:
    """Positions, velocities (M, J) of ACT's mean (arXiv:2304.13705): weight exp(-decay * i), i = 0
    for the oldest."""
    weights = np.exp(-decay * np.arange(len(tracks)))
    covered = np.stack([times_ns <= track.spline.end_ns for track in tracks])  # (K, M)
    shares = covered * weights[:, None]
    shares /= shares.sum(axis=0)
    samples = [track.spline(times_ns) for track in tracks]
    positions = sum(share[:, None] * position for share, (position, _) in zip(shares, samples, strict=True))
    velocities = sum(share[:, None] * velocity for share, (_, velocity) in zip(shares, samples, strict=True))
    return np.asarray(positions), np.asarray(velocities)


@dataclass(frozen=True)
class Agreement:
    """The mean of the chunks that still agree with the newest one, the younger counting more.

    Chunks of one policy disagree by noise around a common intent: a mean over them is closer to the
    intent than any of them, and moves less. A changed intent differs by more than the noise: then
    only the chunks that share it count. The noise is measured per joint, from how far successive
    chunks lay apart recently.

    memory: age in s at which a chunk counts 1/e. apart: (J,) distances of the last pairs of
        successive chunks.
    """

    memory: float
    apart: tuple[Array, ...] = ()

    def mean(self, tracks: list[Track], times_ns: Stamps) -> tuple[Array, Array, "Agreement"]:
        """Positions and velocities (M, J) at times (M,), which every track covers, and what was
        learned of the noise.

        tracks: oldest first, the newest last.
        """
        *older, newest = tracks
        positions, velocities = newest.spline(times_ns)
        if not older:
            return positions, velocities, self
        samples = [track.spline(times_ns) for track in older]
        offsets = np.stack([sample[0] for sample in samples]) - positions  # (K, M, J)
        slopes = np.stack([sample[1] for sample in samples]) - velocities
        near = times_ns <= times_ns[0] + round(WINDOW * NANOSECONDS)
        distances = np.abs(offsets[:, near].mean(axis=1))  # (K, J)
        learned = replace(self, apart=(*self.apart, distances[-1])[-MEMORY_PAIRS:])
        ages = np.array([newest.stamp_ns - track.stamp_ns for track in older]) / NANOSECONDS
        # (K, J)
        weights = np.exp(-ages / self.memory)[:, None] * _agreeing(distances / learned.noise())
        weights /= 1.0 + weights.sum(axis=0)
        positions = positions + np.einsum("kj,kmj->mj", weights, offsets)
        velocities = velocities + np.einsum("kj,kmj->mj", weights, slopes)
        return positions, velocities, learned

    def noise(self) -> Array:
        """Standard deviation (J,) of the distance between two chunks of one intent."""
        # 0.6745: median of |x| of a normal distribution, in standard deviations.
        return np.maximum(np.median(np.stack(self.apart), axis=0) / 0.6745, NOISE_FLOOR)


def _agreeing(distances: Array) -> Array:
    """1 up to AGREES standard deviations, 0 from DISAGREES on, smooth in between."""
    x = np.clip((distances - AGREES) / (DISAGREES - AGREES), 0.0, 1.0)
    return 1 - x * x * (3 - 2 * x)


def extended(older: list[Track], newest: Track, begin_ns: int) -> list[Track]:
    """The older tracks from about begin_ns on, each continued past its end at a constant distance
    from the newest."""
    if not older:
        return []
    new = newest.spline
    ends, end_slopes = new(np.array([track.spline.end_ns for track in older]))  # (K, J) each
    result = []
    for track, end, end_slope in zip(older, ends, end_slopes, strict=True):
        old = track.spline
        first = max(0, int(np.searchsorted(old.times_ns, begin_ns)) - 1)
        later = int(np.searchsorted(new.times_ns, old.end_ns, side="right"))
        distance = old.positions[-1] - end
        drift = old.velocities[-1] - end_slope
        seconds = (new.times_ns[later:, None] - old.end_ns) / NANOSECONDS
        # the distance stops growing without a corner
        left = 1 - np.clip(seconds / SETTLING, 0.0, 1.0)
        spline = Spline(
            np.concatenate([old.times_ns[first:], new.times_ns[later:]]),
            np.concatenate(
                [old.positions[first:], new.positions[later:] + distance + drift * SETTLING / 3 * (1 - left**3)]
            ),
            np.concatenate([old.velocities[first:], new.velocities[later:] + drift * left**2]),
        )
        result.append(Track(track.stamp_ns, spline))
    return result


# of the acceleration limit: the rest is for joining the running plan, and for the cubics between
# steps
SHARE = 0.4
PASSES = 40


def within_acceleration(curve: Spline, acceleration: Array) -> Spline:
    """The curve with its corners and its jitter rounded where they exceed the limits
    (J,), rad/s^2.

    Around each step that does, steps move towards their neighbours' mean (binomial smoothing) until
    it does not. All joints move together, so that the path keeps its shape; everything else stays
    as it is. Steps are taken as evenly spaced, and the first one never moves.
    """
    if len(curve.times_ns) < 3 or not np.isfinite(acceleration).all():
        return curve
    step = float(np.diff(curve.times_ns).mean()) / NANOSECONDS
    positions = curve.positions.copy()
    allowed = SHARE * acceleration * step**2
    for _ in range(PASSES):
        bends = np.diff(positions, n=2, axis=0)  # (N - 2, J)
        sharp = np.logical_or.reduce(np.abs(bends) > allowed, axis=1)
        if not sharp.any():
            break
        near = sharp.copy()
        near[1:] |= sharp[:-1]
        near[:-1] |= sharp[1:]
        positions[1:-1][near] += bends[near] / 4
        if near[-1]:
            positions[-1] -= bends[-1] / 4
    changed = np.flatnonzero((positions != curve.positions).any(axis=1))
    if not len(changed):
        return curve
    velocities = curve.velocities.copy()
    begin = max(1, changed[0] - 1)
    end = min(len(positions) - 1, changed[-1] + 2)
    velocities[begin:end] = (positions[begin + 1 : end + 1] - positions[begin - 1 : end - 1]) / (2 * step)
    velocities[-1] = (positions[-1] - positions[-2]) / step
    return Spline(curve.times_ns, positions, velocities)


def joining_time(gap: Array, drift: Array, acceleration: Array, shortest: float) -> float:
    """Seconds in which a gap (J,) and a difference of velocity (J,) can be taken back within SHARE
    of the limits (J,).

    For an offset that falls as gap (1 - a)^3 (1 + 3 a) + drift T / 3 (1 - (1 - a)^3): at first by
    12 gap / T^2 + 2 drift / T. At least `shortest`, at most four times that.
    """
    # s^2, s
    near = 12 * np.abs(gap) / (SHARE * acceleration)
    slow = np.abs(drift) / (SHARE * acceleration)
    needed = float(np.max(slow + np.sqrt(slow**2 + near), initial=0.0))
    return min(max(shortest, needed), 4 * shortest)


MIN_GAP_NS = 5_000_000  # between the splice and the first step after it
# between points: joining the running plan bends the motion between slow steps
MAX_GAP_NS = 50_000_000
HOLD_NS = 2 * NANOSECONDS
"""A stop stays at its end for so long: a controller drops a trajectory that is wholly past when it
arrives, so what a late stop changes must be when the arm stops, not whether."""

REST_LEAD_NS = 250_000_000
"""From now to the begin of a motion that leaves rest without hurry."""


@dataclass(frozen=True)
class _Memory:
    """Memory of the recent chunks: their tracks, their instruction, their noise, and how far
    they reach."""

    tracks: tuple[Track, ...]
    instruction: str | None
    agreement: Agreement
    covered_until_ns: int


class ChunkScheduler:
    """The running plan of one arm, and the message that replaces it when a chunk arrives.

    joints: their names, in the order of every (..., J) array.
    limits: keep joins and stops within acceleration and position limits, and round the corners of
        chunks (blend).
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
        """Forget chunks and running plan: the next chunk starts at the measured state (activation,
        new episode)."""
        self._running: Spline | None = None
        self.forget_chunks()

    def forget_chunks(self) -> None:
        """Let no earlier chunk count any more; the running plan stays, so that the motion stays
        continuous."""
        self._memory = _Memory((), None, Agreement(self.config.memory), 0)
        self._proposed = self._memory

    @property
    def lead_ns(self) -> int:
        """The configured lead: how far ahead of now the running plan is left as it is."""
        return self._lead_ns

    @property
    def covered_until_ns(self) -> int:
        """Until when the running plan follows the policy's steps; after it the arm comes to rest.
        0: no plan."""
        return self._memory.covered_until_ns

    def commanded(self, t_ns: int) -> tuple[Array, Array] | None:
        """Positions and velocities (J,) of the running plan at a time; None before the first
        command."""
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
        """The message that continues the running plan with a chunk; the running plan itself waits
        for `commit`.

        lead_ns: in place of the configured lead, for a message that takes longer to compute. Raises
        ScheduleRefused when every step is past or a value is not finite.
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
        steps = len(usable)
        if not plan.smooth:
            at_most = {"first": 1, "receding": self.config.execute_steps}
            steps = at_most.get(self.config.strategy, steps)
        knots_ns = _knots(splice_ns, plan.times_ns[usable[:steps]])
        future = self._join(running, self._tracks(plan, splice_ns), knots_ns)
        instruction = None if plan.chunk is None else plan.chunk.instruction
        self._proposed = replace(self._proposed, instruction=instruction, covered_until_ns=int(knots_ns[-1]))
        whole = come_to_rest(future, self.config.stop_time, self._executable())
        return self._message(running, whole, now_ns, splice_ns - now_ns)

    def commit(self, command: TrajectoryCommand) -> None:
        """Take the command that was sent (clamped, perhaps) as the running plan."""
        self._memory = self._proposed
        self._running = curve_of(command)

    def smooth_stop(
        self,
        now_ns: int,
        speed_scaling: float = 1.0,
        shortest: bool = False,
        lead_ns: int | None = None,
    ) -> TrajectoryCommand:
        """A stop along the running plan, within the acceleration limits; it is the running plan
        from now on.

        No measurement enters: a wrong or old one would turn the stop into a jump. The message lasts
        HOLD_NS longer than the stop. speed_scaling: as in `stop_within`. shortest: within the
        limits, whatever stop_time is. lead_ns: from now to its begin, None for the configured one.
        Raises ScheduleRefused when no motion is commanded.
        """
        lead_ns = self._lead_ns if lead_ns is None else lead_ns
        running = self._running_at(now_ns)
        if running is None:
            raise ScheduleRefused("no motion is commanded: there is nothing to stop.")
        splice_ns = now_ns + lead_ns
        self.forget_chunks()
        if shortest:
            stop = shortest_stop(running, splice_ns, self._executable(), speed_scaling)
        else:
            duration = self.config.stop_time
            stop = stop_within(running, splice_ns, duration, self._executable(), speed_scaling)
        still = Spline(np.array([stop.end_ns + HOLD_NS]), stop.positions[-1:], stop.velocities[-1:])
        command = self._message(running, followed_by(stop, still), now_ns, lead_ns)
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
        # At rest there is no hurry, and a message that arrives after its motion began is a jump.
        lead_ns = max(self._lead_ns, REST_LEAD_NS)
        splice_ns = now_ns + lead_ns
        self.forget_chunks()
        end = np.clip(positions, self._bounds.lower, self._bounds.upper)
        begin = running(np.array([splice_ns]))[0][0]
        back = move_slowly(splice_ns, begin, end, self._executable(), share)
        still = Spline(np.array([back.end_ns + HOLD_NS]), back.positions[-1:], back.velocities[-1:])
        command = self._message(running, followed_by(back, still), now_ns, lead_ns)
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
        """The plan's steps as a curve that begins at the observation's stamp, one step before the
        first."""
        curve = Spline(plan.times_ns, plan.positions, plan.velocities)
        if self.config.strategy == "blend" and not plan.smooth:
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
        """The target from the splice (the first knot) on, and the way onto it from the running
        plan."""
        strategy = self.config.strategy
        agreement = self._memory.agreement
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
            gap = start - positions[0]
            drift = start_velocity - velocities[0]
            duration = joining_time(gap[0], drift[0], self._bounds.acceleration, self.config.fade_time)
            a = np.clip(seconds / duration, 0.0, 1.0)
            offset = gap + drift * duration / 3 * (1 - (1 - a) ** 3)
            share = (1 - a) ** 3 * (1 + 3 * a)
            slope = -12 * a * (1 - a) ** 2 / duration
            velocities = velocities + share * drift * (1 - a) ** 2 + slope * offset
            positions = positions + share * offset
        positions[0], velocities[0] = start[0], start_velocity[0]
        return Spline(knots_ns, positions, velocities)

    def _message(
        self, running: Spline, future: Spline, now_ns: int, lead_ns: int
    ) -> TrajectoryCommand:
        """The running plan's points from the last two past ones up to the splice, then the
        future."""
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
    """The splice and the steps, with points in between where they lie further apart than
    MAX_GAP_NS."""
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
