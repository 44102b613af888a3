"""Disagreement between a shadow policy and the commanded motion.

- A chunk is compared once, half a second after its stamp or at its end, at that instant.
- Joints are the shadow's minus the commanded; the tool's distance is in metres.
- A chunk without a commanded motion has none; waiting chunks are bounded and can be forgotten.
"""

import numpy as np
import pytest

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.shadow import MOST_WAITING, ShadowComparison
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, JointPlan

PANDA = load_robot("panda")
HOME = np.array(PANDA.home)
SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", 0.1, (*PANDA.joints,))
BEGIN_NS = 50 * NANOSECONDS


def plan(stamp_ns, speed=0.0, steps=10):
    """Every joint from home at a speed, rad/s."""
    seconds = 0.1 * np.arange(1, steps + 1)
    positions = HOME + speed * seconds[:, None]
    times_ns = stamp_ns + np.round(seconds * NANOSECONDS).astype(np.int64)
    chunk = ActionChunk(stamp_ns, positions, SPEC, "lift", "shadow", 3)
    return JointPlan(times_ns, positions, np.full_like(positions, speed), None, chunk)


def at_home(t_ns):
    return HOME, np.zeros(7)


def test_the_instant():
    shadows = ShadowComparison()
    shadows.add(plan(BEGIN_NS, 0.2))
    assert shadows.due(BEGIN_NS + 499_000_000, at_home, None) == []
    (found,) = shadows.due(BEGIN_NS + 540_000_000, at_home, None)
    np.testing.assert_allclose(found.joints, 0.1)
    assert (found.policy_id, found.stamp_ns, found.tool) == ("shadow", BEGIN_NS, None)
    assert shadows.due(BEGIN_NS + NANOSECONDS, at_home, None) == []
    shadows.add(plan(BEGIN_NS, 0.2, steps=2))
    (short,) = shadows.due(BEGIN_NS + 200_000_000, at_home, None)
    np.testing.assert_allclose(short.joints, 0.04)


def test_the_tool():
    pytest.importorskip("pinocchio")
    kinematics = Kinematics.for_robot(PANDA)
    shadows = ShadowComparison()
    shadows.add(plan(BEGIN_NS))
    shadows.add(plan(BEGIN_NS, 0.1))
    same, other = shadows.due(BEGIN_NS + NANOSECONDS, at_home, kinematics)
    assert same.tool == 0.0
    there = kinematics.forward(HOME + 0.05)[:3, 3] - kinematics.forward(HOME)[:3, 3]
    assert other.tool == pytest.approx(np.linalg.norm(there))


def test_nothing_to_compare():
    shadows = ShadowComparison()
    shadows.add(plan(BEGIN_NS))
    assert shadows.due(BEGIN_NS + NANOSECONDS, lambda t_ns: None, None) == []
    shadows.add(plan(BEGIN_NS))
    shadows.clear()
    assert shadows.due(BEGIN_NS + NANOSECONDS, at_home, None) == []
    for k in range(2 * MOST_WAITING):
        shadows.add(plan(BEGIN_NS + k))
    assert len(shadows.due(BEGIN_NS + NANOSECONDS, at_home, None)) == MOST_WAITING
