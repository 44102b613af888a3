"""The controller's reference against the commanded motion: the commanded path, late or slowed, is
right; another motion is found, alternating ones too; the end of it is a reference at rest."""

import numpy as np
import pytest

from robovlms_ros.control.controller_check import ReferenceDetector, window_stamps
from robovlms_ros.core.types import NANOSECONDS, RobotState

PERIOD = 0.05


ASIDE = np.array([0.0, 0.2])


def path(seconds):
    """Two joints (N, 2): a swing and a joint at rest."""
    swing = 0.5 * np.sin(2.0 * np.asarray(seconds, dtype=np.float64))
    return np.stack([swing, np.zeros_like(swing)], axis=-1)


class Watched:
    """A detector that reads a reference every 50 ms."""

    def __init__(self, error=0.05, time=0.2):
        self.detector = ReferenceDetector(error, time)
        self.now = 100.0

    def run(self, seconds, reference, commanded=path):
        """The finding and the time since the beginning (s); None for nothing."""
        begin = self.now
        while self.now < begin + seconds:
            self.now += PERIOD
            stamp_ns = round(self.now * NANOSECONDS)
            stamps = window_stamps(stamp_ns) / NANOSECONDS
            state = RobotState(stamp_ns, np.asarray(reference(self.now)))
            found = self.detector.add(state, None if commanded is None else commanded(stamps))
            if found is not None:
                return found, self.now - begin
        return None


@pytest.mark.parametrize("late", [-0.05, 0.0, 0.02, 0.3])
def test_the_commanded_path_is_right_late_or_early(late):
    assert Watched().run(5.0, lambda now: path(now - late)) is None


def test_a_scaled_speed_is_right():
    commanded = lambda stamps: path(np.minimum(stamps, 101.0))  # noqa: E731
    slowed = lambda now: path(min(100.0 + 0.6 * (now - 100.0), 101.0))  # noqa: E731
    assert Watched().run(3.0, slowed, commanded) is None


def test_another_motion_is_found_and_ends_at_rest():
    watched = Watched()
    assert watched.run(1.0, path) is None
    (joint, distance), after = watched.run(1.0, lambda now: path(now) + ASIDE)
    assert (joint, after) == (1, pytest.approx(0.2))
    assert distance == pytest.approx(0.2)
    # Nothing is commanded meanwhile: the foreign motion goes on, and rests at last.
    assert watched.run(3.0, lambda now: path(now) + ASIDE, None) is None
    assert watched.detector.found
    rest = watched.now
    assert watched.run(0.9, lambda now: path(rest), None) is None
    assert watched.detector.found
    assert watched.run(0.3, lambda now: path(rest), None) is None
    assert not watched.detector.found


def test_two_that_alternate_are_found():
    watched = Watched()
    ticks = iter(range(1000))
    alternating = lambda now: path(now) + ASIDE * (next(ticks) % 3 > 0)  # noqa: E731
    found = watched.run(3.0, alternating)
    assert found is not None
    assert 0.2 < found[1] < 1.0


def test_a_single_reference_that_is_off_is_not_enough():
    watched = Watched()
    for _ in range(10):
        assert watched.run(0.1, lambda now: path(now) + 0.5) is None
        assert watched.run(0.5, path) is None


def test_while_nothing_is_commanded_any_reference_is_right():
    assert Watched().run(3.0, lambda now: path(now) + 1.0, None) is None


def test_a_stamp_that_repeats_is_ignored_and_one_that_goes_back_begins_anew():
    watched = Watched()
    far = path(0.0) + 1.0
    still = lambda stamps: np.tile(path(0.0), (len(stamps), 1))  # noqa: E731
    state = RobotState(NANOSECONDS, far)
    for _ in range(100):
        assert watched.detector.add(state, still(window_stamps(NANOSECONDS))) is None
    assert watched.run(0.3, lambda now: far, still) is not None
    watched.now -= 50.0
    assert watched.run(0.05, lambda now: far, still) is None
    assert not watched.detector.found


def test_not_checked_at_an_infinite_error():
    assert Watched(error=np.inf).run(3.0, lambda now: path(now) + 9.0) is None
