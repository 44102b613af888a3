"""Steps that ask for more than the acceleration limits are rounded; nothing else changes.

- a corner is rounded around itself only, within the limits; jitter disappears; the first step stays;
- what is within the limits comes back as it was, and so does everything where no limits are known;
- joining takes longer for a larger gap, within its bounds, and its first acceleration keeps half the limit.
"""

import numpy as np
import pytest

from robovlms_ros.control.scheduler import joining_time, within_acceleration
from robovlms_ros.control.trajectory import Spline, central_differences
from robovlms_ros.core.types import NANOSECONDS

LIMIT = np.array([6.0, 6.0])
STEP = 0.05


def curve(positions):
    times_ns = np.round((1 + np.arange(len(positions))) * STEP * NANOSECONDS).astype(np.int64)
    return Spline(times_ns, positions, central_differences(times_ns, positions))


def accelerations(spline):
    """At both ends of every cubic segment, (2, N - 1, J)."""
    h = np.diff(spline.times_ns)[:, None] / NANOSECONDS
    slope, v0, v1 = np.diff(spline.positions, axis=0) / h, spline.velocities[:-1], spline.velocities[1:]
    return np.stack([(6 * slope - 4 * v0 - 2 * v1) / h, (-6 * slope + 2 * v0 + 4 * v1) / h])


def test_a_corner_is_rounded_around_itself():
    t = STEP * np.arange(40)
    sharp = curve(np.stack([0.6 * np.maximum(t - 1.0, 0), 0.3 * t], axis=1))
    smooth = within_acceleration(sharp, LIMIT)
    assert np.abs(accelerations(sharp)).max() > 2 * LIMIT[0]
    assert np.abs(accelerations(smooth)).max() < LIMIT[0]
    assert np.abs(smooth.positions - sharp.positions).max() < 0.025
    np.testing.assert_array_equal(smooth.positions[[0, 5, 35, 39]], sharp.positions[[0, 5, 35, 39]])


def test_jitter_is_taken_out():
    rng = np.random.default_rng(0)
    t = STEP * np.arange(30)[:, None]
    clean = np.concatenate([0.2 * np.sin(2 * t), 0.1 * t], axis=1)
    noisy = curve(clean + rng.normal(0, 0.01, clean.shape))
    smooth = within_acceleration(noisy, LIMIT)
    # The steps bend by at most 0.4 of the limit; the cubics between bend more, where the bends alternate.
    bends = np.diff(smooth.positions, n=2, axis=0) / STEP**2
    assert np.abs(bends).max() <= 0.4 * LIMIT[0] + 1e-9
    assert np.abs(accelerations(smooth)[:, 1:]).max() < 1.3 * LIMIT[0] < np.abs(accelerations(noisy)).max() / 3
    assert np.abs(smooth.positions - clean).std() < np.abs(noisy.positions - clean).std()
    np.testing.assert_array_equal(smooth.positions[0], noisy.positions[0])


@pytest.mark.parametrize("limit", [LIMIT, np.full(2, np.inf)])
def test_what_is_within_the_limits_is_left_alone(limit):
    t = STEP * np.arange(30)[:, None]
    plain = curve(np.concatenate([0.2 * np.sin(2 * t), 0.1 * t], axis=1))
    assert within_acceleration(plain, limit) is plain


def test_joining_takes_as_long_as_the_limits_ask():
    nothing = np.zeros(2)
    assert joining_time(nothing, nothing, LIMIT, 0.25) == 0.25
    assert joining_time(np.full(2, 0.5), np.ones(2), np.full(2, np.inf), 0.25) == 0.25
    assert joining_time(np.array([5.0, 0.0]), nothing, LIMIT, 0.25) == 1.0
    gap, drift = np.array([0.05, 0.01]), np.array([0.3, -0.2])
    duration = joining_time(gap, drift, LIMIT, 0.25)
    assert 0.25 < duration < 1.0
    np.testing.assert_allclose(np.max(12 * np.abs(gap) / duration**2 + 2 * np.abs(drift) / duration), 0.4 * 6.0)
