"""Joint states: matched by name, missing joints and bad numbers refused by name, interpolated at an image's stamp,
the gripper from any publisher as an opening from 0 to 1.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from robovlms_ros.core.types import NANOSECONDS, ObservationError
from robovlms_ros.observations.joint_states import JointStateBuffer

JOINTS = ("a", "b")


class Finger:
    joint = "f"

    def opening(self, position):
        return min(max(position / 0.04, 0.0), 1.0)


def message(seconds, positions, velocities=None):
    stamp = SimpleNamespace(sec=int(seconds), nanosec=round((seconds % 1) * NANOSECONDS))
    names = list(positions)
    return SimpleNamespace(header=SimpleNamespace(stamp=stamp), name=names, position=list(positions.values()),
                           velocity=[] if velocities is None else [velocities[n] for n in names])


def ns(seconds):
    return round(seconds * NANOSECONDS)


def test_order_is_by_name():
    buffer = JointStateBuffer(JOINTS)
    assert buffer.add(message(1.0, {"b": 2.0, "other": 9.0, "a": 1.0}, {"b": 0.2, "other": 0.9, "a": 0.1}))
    state = buffer.latest()
    assert state.positions.tolist() == [1.0, 2.0] and state.velocities.tolist() == [0.1, 0.2]
    assert state.gripper is None


def test_interpolates_and_says_how_far_it_reaches():
    buffer = JointStateBuffer(JOINTS)
    for t in (1.0, 1.01, 1.02):
        buffer.add(message(t, {"a": t, "b": -t}, {"a": 1.0, "b": -1.0}))
    np.testing.assert_allclose(buffer.at(ns(1.013), 0.005).positions, [1.013, -1.013], atol=1e-12)
    np.testing.assert_allclose(buffer.at(ns(1.05), 0.05).positions, [1.05, -1.05])
    np.testing.assert_allclose(buffer.at(ns(0.98), 0.05).positions, [1.0, -1.0])
    with pytest.raises(ObservationError, match=r"0\.080 s away"):
        buffer.at(ns(1.1), 0.05)
    buffer.add(message(1.5, {"a": 0.0, "b": 0.0}))
    with pytest.raises(ObservationError, match="nearest"):
        buffer.at(ns(1.25), 0.05)
    assert buffer.at(ns(1.5), 0.05).velocities is None


def test_gripper_from_another_publisher():
    buffer = JointStateBuffer(JOINTS, Finger())
    assert not buffer.add(message(1.0, {"f": 0.02}))
    assert buffer.latest() is None
    assert buffer.add(message(1.0, {"a": 0.0, "b": 0.0}))
    assert buffer.latest().gripper == 0.5


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (message(1.0, {"a": 0.0}), "'b' is missing"),
        (message(1.0, {"a": 0.0, "b": math.nan}), "position of 'b' is nan"),
        (message(1.0, {"a": math.inf, "b": 0.0}), "position of 'a' is inf"),
        (message(1.0, {"a": 0.0, "b": 0.0, "f": math.nan}), "position of 'f' is nan"),
        (message(0.0, {"a": 0.0, "b": 0.0}), "stamp is zero"),
        (SimpleNamespace(header=message(1.0, {}).header, name=["a", "b"], position=[1.0], velocity=[]), "2 joint name"),
    ],
)
def test_refused(bad, says):
    buffer = JointStateBuffer(JOINTS, Finger())
    with pytest.raises(ObservationError, match=says):
        buffer.add(bad)
    assert buffer.latest() is None


@pytest.mark.parametrize("velocities", [[math.nan] * 3, [0.1, math.nan, 0.3], [math.inf, 0.2, 0.3], [0.1], [0.1] * 4])
def test_unusable_velocities_count_as_not_published(velocities):
    buffer = JointStateBuffer(JOINTS)
    unusable = message(1.0, {"a": 0.5, "b": -0.5, "other": 9.0})
    unusable.velocity = velocities
    assert buffer.add(unusable)
    assert buffer.latest().positions.tolist() == [0.5, -0.5] and buffer.latest().velocities is None


def test_a_velocity_that_another_joint_lacks_is_no_concern_of_the_arm():
    buffer = JointStateBuffer(JOINTS)
    assert buffer.add(message(1.0, {"a": 0.0, "b": 0.0, "other": 0.0}, {"a": 0.1, "b": 0.2, "other": math.nan}))
    assert buffer.latest().velocities.tolist() == [0.1, 0.2]


def test_repeated_and_late_messages_change_nothing():
    buffer = JointStateBuffer(JOINTS)
    assert buffer.add(message(2.0, {"a": 1.0, "b": 1.0}))
    assert not buffer.add(message(2.0, {"a": 5.0, "b": 5.0}))
    assert not buffer.add(message(1.0, {"a": 5.0, "b": 5.0}))
    assert buffer.latest().positions.tolist() == [1.0, 1.0]
    buffer.clear()
    assert buffer.latest() is None
    with pytest.raises(ObservationError, match="none have come"):
        buffer.at(ns(2.0), 1.0)


def test_old_states_are_let_go():
    buffer = JointStateBuffer(JOINTS, span=1.0)
    for t in np.arange(1.0, 5.0, 0.1):
        buffer.add(message(t, {"a": t, "b": t}))
    with pytest.raises(ObservationError):
        buffer.at(ns(1.0), 0.1)
    assert buffer.at(ns(4.5), 0.1).positions[0] == pytest.approx(4.5)
