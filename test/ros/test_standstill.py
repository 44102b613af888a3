"""An arm at working speed that freezes and is released, in virtual time by the node's own runner.

- Found within 0.6 s; the stop and everything after it is within the limits.
- The set point is back at the arm before the node tries again: an arm released then does not move.
- A try moves little; released in the middle of one, the arm jumps by a fraction of what it did
  before.
- Once the arm moves the policy's motion goes on, from the arm, with the ramp.
- Wrong joint states, a pause and a deactivation end the way back.
"""

import numpy as np
import pytest

pytest.importorskip("rclpy")

from fault_simulation import HOME, PANDA, START_NS, TICK, Simulation

AT = 1.7  # s: four joints are at working speed


def ticks(seconds):
    return round(seconds / TICK)


def frozen(seconds, released=None, events=()):
    """A simulation that freezes at AT, and is released after so long."""
    sim = Simulation()
    planned = [(AT, Simulation.freeze), *events]
    if released is not None:
        planned.append((AT + released, Simulation.release))
    sim.run(seconds, sorted(planned, key=lambda event: event[0]))
    return sim


def test_found_stopped_and_brought_back_to_the_arm():
    sim = frozen(AT + 3.4)
    commands = np.array(sim.commands)
    speed = np.abs(np.diff(commands[ticks(AT) - 5 : ticks(AT)], axis=0)).max() / TICK
    assert speed > 0.5
    assert "does not move" in sim.report.detail
    assert sim.report.last_stop_ns < START_NS + (AT + 0.7) * 1e9
    assert sim.report.state == "holding"
    away = np.abs(commands - sim.frozen).max(axis=1)
    assert away[ticks(AT) : ticks(AT + 1.0)].max() > 0.2
    assert away[-1] < 0.02
    step, acceleration, outside = sim.judged()
    assert step <= 1.01
    assert acceleration <= 1.2
    assert outside <= 1e-6


def test_an_arm_that_is_released_after_the_hold_does_not_jump_and_goes_on():
    sim = frozen(AT + 9.0, released=2.8)
    arms = np.array(sim.measured)
    release = ticks(AT + 2.8)
    speeds = np.abs(np.diff(arms, axis=0)) / TICK
    assert speeds[release - 5 : release + 50].max() < 0.1
    assert (speeds[release:] <= 1.05 * np.array(PANDA.limits.velocity)).all()
    assert speeds[release:].max() > 0.3, "the policy's motion goes on"
    assert sim.report.state == "running"
    assert not sim.executor.gate.probing
    assert sim.judged()[0] <= 1.01
    assert sim.judged()[1] <= 1.2


@pytest.mark.parametrize("released", np.linspace(3.0, 7.0, 12).round(2))
def test_a_release_at_any_time_moves_the_arm_little(released):
    sim = frozen(AT + released + 4.0, released=float(released))
    release = ticks(AT + released)
    jump = np.abs(
        np.array(sim.commands)[release - 12 : release + 1] - np.array(sim.measured)[release - 1]
    )
    assert jump.max() < 0.07
    assert sim.report.state == "running"


def test_an_arm_that_stays_frozen_is_tried_again_and_again_within_the_limits():
    sim = frozen(AT + 20.0)
    commands = np.array(sim.commands)[ticks(AT + 3.4) :]
    away = np.abs(commands - sim.frozen).max(axis=1)
    assert away.max() < 0.07
    tries = np.flatnonzero(np.diff((away > 0.015).astype(int)) > 0)
    assert 3 <= len(tries) <= 7
    assert sim.judged()[0] <= 1.01
    assert sim.judged()[1] <= 1.2


@pytest.mark.parametrize("end", ["pause", "deactivate", "wrong joint states"])
def test_the_way_back_ends_early(end):
    sim = Simulation()

    def interrupt(sim):
        assert sim.runner._sender.returning
        if end == "pause":
            sim.runner.pause(True)
        elif end == "deactivate":
            sim.runner.deactivate("deactivated")
        else:
            sim.joint_hook = lambda state: [(state[0], np.zeros(7), {})]

    sim.run(AT + 2.2, [(AT, Simulation.freeze), (AT + 0.8, interrupt)])
    commands = np.array(sim.commands)
    assert np.abs(np.diff(commands[-100:], axis=0)).max() == 0.0
    assert np.abs(commands[-1] - sim.frozen).max() > 0.02, "the set point has not arrived"
    assert sim.judged()[0] <= 1.01
    assert sim.judged()[1] <= 1.2


def test_a_driver_that_repeats_one_pose_moves_the_arm_within_the_limits():
    """A frozen arm looks alike: the arm stops, and comes back slowly to the pose."""
    sim = Simulation()

    def repeat(sim):
        pose = sim.commands[-1]
        sim.joint_hook = lambda state: [(state[0], pose, {})]

    sim.run(AT + 6.0, [(AT, repeat)])
    step, acceleration, outside = sim.judged()
    assert step <= 1.01
    assert acceleration <= 1.2
    assert outside <= 1e-6
    assert np.abs(np.array(sim.commands) - HOME).max() < 2.0


def test_working_motion_is_no_standstill():
    sim = Simulation()
    sim.run(12.0)
    assert not sim.report.last_stop
    assert sim.report.state == "running"
