"""Joint states that are not believed: outside the limits, out of reach of the last ones, two values for one joint;
two publishers of the same joints are detected by their sequence numbers, one that restarts is none.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from robovlms_ros.core.types import NANOSECONDS, ObservationError
from robovlms_ros.observations.joint_states import (
    ImplausibleJointState,
    JointPlausibility,
    JointStateBuffer,
    PublisherCheck,
)

JOINTS = ("a", "b")
BOUNDS = JointPlausibility(JOINTS, np.array([-1.0, 0.5]), np.array([1.0, 2.0]), np.array([2.0, 1.0]), 0.2)


def ns(seconds):
    return round(seconds * NANOSECONDS)


def message(seconds, *positions, names=JOINTS):
    stamp = SimpleNamespace(sec=int(seconds), nanosec=round((seconds % 1) * NANOSECONDS))
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp), name=list(names), position=list(positions), velocity=[]
    )


@pytest.fixture
def buffer():
    buffer = JointStateBuffer(JOINTS, plausibility=BOUNDS)
    buffer.add(message(1.0, 0.9, 1.0))
    return buffer


@pytest.mark.parametrize(("seconds", "positions", "says"), [
    (1.01, (0.9, 0.0), r"b at 0\.000 rad is outside its limits \[0\.500, 2\.000\]"),
    (1.01, (100.0, 1.0), r"a at 100\.000 rad is outside its limits"),
    (1.01, (0.3, 1.0), r"a jumped from 0\.900 to 0\.300 rad, faster than 2 times its speed limit of 2 rad/s"),
    (1.09, (0.3, 1.0), r"a jumped from 0\.900 to 0\.300 rad"),
])
def test_what_the_arm_cannot_have_done_is_not_believed(buffer, seconds, positions, says):
    with pytest.raises(ImplausibleJointState, match=says):
        buffer.add(message(seconds, *positions))
    assert buffer.latest().positions.tolist() == [0.9, 1.0]


def test_what_it_can_have_done_is(buffer):
    assert buffer.add(message(1.01, 0.92, 1.01))
    assert buffer.add(message(1.05, 1.1, 1.0))  # outside its limits, within the margin
    assert buffer.add(message(3.0, -1.0, 2.0))  # far, after a silence in which it could get there


def test_a_joint_with_two_values_is_refused():
    buffer = JointStateBuffer(JOINTS, plausibility=BOUNDS)
    with pytest.raises(ObservationError, match="joint 'a' is named more than once"):
        buffer.add(message(1.0, 0.1, 1.0, 0.2, names=("a", "b", "a")))
    assert buffer.latest() is None


def test_speed_is_the_greatest_of_a_while_by_positions():
    buffer = JointStateBuffer(JOINTS)
    assert np.isinf(buffer.speed()).all()
    for k in range(50):
        buffer.add(message(1.0 + 0.02 * k, 0.01 * k, 1.0))
        if k < 5:
            assert np.isinf(buffer.speed()).all()
    np.testing.assert_allclose(buffer.speed(), [0.5, 0.0], atol=1e-9)
    for k in range(50, 60):  # at rest, but not for long enough
        buffer.add(message(1.0 + 0.02 * k, 0.49, 1.0))
    assert buffer.speed()[0] > 0.05
    for k in range(60, 70):
        buffer.add(message(1.0 + 0.02 * k, 0.49, 1.0))
    np.testing.assert_array_equal(buffer.speed(), [0.0, 0.0])


def test_two_publishers_are_told_from_one_that_restarts():
    one, restarted, two, unknown = PublisherCheck(), PublisherCheck(), PublisherCheck(), PublisherCheck()
    for k in range(1, 20):
        now = ns(0.05 * k)
        assert not one.two_publish(k, now)
        assert not restarted.two_publish(k if k < 10 else k - 9, now)
        assert not unknown.two_publish(None, now)
    found = [two.two_publish(k if k % 2 else 500 + k, ns(0.05 * k)) for k in range(1, 20)]
    assert found[-1] and not any(found[:5])
