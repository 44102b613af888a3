"""How the targets of several chunks become one: a temporal ensemble, or the mean of those that agree."""

from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from robovlms_ros.runtime.spline import Array, Spline, Stamps
from robovlms_ros.types import NANOSECONDS

WINDOW = 0.3  # s after the splice over which two chunks are compared
NOISE_FLOOR = 0.002  # rad or m: disagreements below a few times this are never ignored as noise
AGREES, DISAGREES = 2.0, 4.0  # in standard deviations: full weight up to the first, none from the second
MEMORY_CHUNKS = 8


@dataclass(frozen=True)
class Track:
    """One chunk's targets over absolute time, and the stamp of the observation it answers."""

    stamp_ns: int
    spline: Spline


def temporal_ensemble(tracks: list[Track], times_ns: Stamps, decay: float) -> tuple[Array, Array]:
    """Positions, velocities (M, J) of ACT's mean (arXiv:2304.13705): weight exp(-decay * i), i = 0 for the oldest."""
    weights = np.exp(-decay * np.arange(len(tracks)))
    covered = np.stack([times_ns <= track.spline.end_ns for track in tracks])  # (K, M)
    shares = covered * weights[:, None]
    shares /= shares.sum(axis=0)
    samples = [track.spline(times_ns) for track in tracks]
    positions = sum(share[:, None] * position for share, (position, _) in zip(shares, samples, strict=True))
    velocities = sum(share[:, None] * velocity for share, (_, velocity) in zip(shares, samples, strict=True))
    return np.asarray(positions), np.asarray(velocities)


class Agreement:
    """The mean of the chunks that still agree with the newest one, the younger counting more.

    Chunks of one policy disagree by noise around a common intent: a mean over them is closer to the intent than any
    of them, and moves less. A changed intent differs by more than the noise: then only the chunks that share it
    count. The noise is measured per joint, from how far successive chunks lay apart recently.
    """

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self._apart: deque[Array] = deque(maxlen=9)

    def forget(self) -> None:
        self._apart.clear()

    def learn(self, tracks: list[Track], splice_ns: int) -> None:
        """Take in how far the two newest chunks lie apart from the splice on."""
        if len(tracks) > 1:
            self._apart.append(np.abs(_difference(tracks[-1].spline, tracks[-2].spline, splice_ns)))

    def mean(self, tracks: list[Track], times_ns: Stamps) -> tuple[Array, Array]:
        """Positions and velocities (M, J) at times (M,), which every track covers (see `extended`)."""
        newest = tracks[-1]
        positions, velocities = newest.spline(times_ns)
        total = np.ones(positions.shape[1])
        offset, slope = np.zeros_like(positions), np.zeros_like(positions)
        for track in tracks[:-1]:
            weight = self._weight(track, newest, int(times_ns[0]))  # (J,)
            position, velocity = track.spline(times_ns)
            offset += weight * (position - positions)
            slope += weight * (velocity - velocities)
            total += weight
        return positions + offset / total, velocities + slope / total

    def _weight(self, track: Track, newest: Track, splice_ns: int) -> Array:
        age = (newest.stamp_ns - track.stamp_ns) / NANOSECONDS
        # 0.6745: median of |x| of a normal distribution, in standard deviations.
        noise = np.maximum(np.median(self._apart, axis=0) / 0.6745, NOISE_FLOOR)
        apart = np.abs(_difference(newest.spline, track.spline, splice_ns)) / noise
        x = np.clip((apart - AGREES) / (DISAGREES - AGREES), 0.0, 1.0)
        return np.asarray(np.exp(-age / self.memory) * (1 - x * x * (3 - 2 * x)))


def extended(track: Track, newest: Track) -> Track:
    """The track, continued past its own end at a constant distance from the newest one."""
    old, new = track.spline, newest.spline
    later = new.times_ns > old.end_ns
    if not later.any():
        return track
    distance = old.positions[-1] - new(old.times_ns[-1:])[0][0]
    return replace(
        track,
        spline=Spline(
            np.concatenate([old.times_ns, new.times_ns[later]]),
            np.concatenate([old.positions, new.positions[later] + distance]),
            np.concatenate([old.velocities, new.velocities[later]]),
        ),
    )


def _difference(a: Spline, b: Spline, begin_ns: int) -> Array:
    """Mean signed difference (J,) over the window after begin_ns that both cover."""
    end_ns = max(begin_ns, min(a.end_ns, b.end_ns, begin_ns + round(WINDOW * NANOSECONDS)))
    times_ns = np.linspace(begin_ns, end_ns, 5).astype(np.int64)
    return np.asarray((a(times_ns)[0] - b(times_ns)[0]).mean(axis=0))
