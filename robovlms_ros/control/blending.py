"""How the targets of several chunks become one: a temporal ensemble, or the mean of those that agree."""

from dataclasses import dataclass, replace

import numpy as np

from robovlms_ros.control.spline import Array, Spline, Stamps
from robovlms_ros.core.types import NANOSECONDS

SETTLING = 0.15  # s after a chunk's end in which its distance from the newest becomes constant
WINDOW = 0.3  # s after the splice over which two chunks are compared
NOISE_FLOOR = 0.002  # rad or m: disagreements below a few times this are never ignored as noise
AGREES, DISAGREES = 2.0, 4.0  # in standard deviations: full weight up to the first, none from the second
MEMORY_CHUNKS = 8
MEMORY_PAIRS = 9


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


@dataclass(frozen=True)
class Agreement:
    """The mean of the chunks that still agree with the newest one, the younger counting more.

    Chunks of one policy disagree by noise around a common intent: a mean over them is closer to the intent than any
    of them, and moves less. A changed intent differs by more than the noise: then only the chunks that share it
    count. The noise is measured per joint, from how far successive chunks lay apart recently.

    memory: age in s at which a chunk counts 1/e. apart: (J,) distances of the last pairs of successive chunks.
    """

    memory: float
    apart: tuple[Array, ...] = ()

    def mean(self, tracks: list[Track], times_ns: Stamps) -> tuple[Array, Array, "Agreement"]:
        """Positions and velocities (M, J) at times (M,), which every track covers, and what was learned of the noise.

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
        weights = np.exp(-ages / self.memory)[:, None] * _agreeing(distances / learned.noise())  # (K, J)
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
    """The older tracks from about begin_ns on, each continued past its end at a constant distance from the newest."""
    if not older:
        return []
    new = newest.spline
    ends, end_slopes = new(np.array([track.spline.end_ns for track in older]))  # (K, J) each
    result = []
    for track, end, end_slope in zip(older, ends, end_slopes, strict=True):
        old = track.spline
        first = max(0, int(np.searchsorted(old.times_ns, begin_ns)) - 1)
        later = int(np.searchsorted(new.times_ns, old.end_ns, side="right"))
        distance, drift = old.positions[-1] - end, old.velocities[-1] - end_slope
        seconds = (new.times_ns[later:, None] - old.end_ns) / NANOSECONDS
        left = 1 - np.clip(seconds / SETTLING, 0.0, 1.0)  # the distance stops growing without a corner
        spline = Spline(
            np.concatenate([old.times_ns[first:], new.times_ns[later:]]),
            np.concatenate(
                [old.positions[first:], new.positions[later:] + distance + drift * SETTLING / 3 * (1 - left**3)]
            ),
            np.concatenate([old.velocities[first:], new.velocities[later:] + drift * left**2]),
        )
        result.append(Track(track.stamp_ns, spline))
    return result
