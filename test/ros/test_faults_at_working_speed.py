"""Faults at random moments of a scripted fast motion, judged on the commanded and the measured
joints.

No joint exceeds the bounds of the fault benchmark; after an end the arm is at rest within the
stop's own time. Every kind of fault of docs/faults.md is drawn, one at a time and two at once. The
policy commands absolute joint positions: after a stop they lie elsewhere.
`test_faults_in_episodes.py` draws faults in recorded episodes of the shipped policies.
"""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("rclpy")

from fault_kinds import KINDS, STAYS_AT_REST, UNDETECTED, frozen_values, mended
from fault_simulation import TICK, Simulation

DRAWS = 5 * len(KINDS)
PARTS = 5
SEED = 20261129
LONGEST_STOP = 0.9  # s: from full speed at the acceleration limit, and the lead


@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_moves_the_arm_beyond_its_limits(part):
    fastest = 0.0
    for draw in range(part * DRAWS // PARTS, (part + 1) * DRAWS // PARTS):
        rng = np.random.default_rng([SEED, draw])
        kinds = [KINDS[draw % len(KINDS)]]
        if rng.uniform() < 0.3:
            kinds.append(KINDS[rng.integers(len(KINDS))])
        if UNDETECTED.issubset(kinds):
            kinds.remove(frozen_values)
        sim = Simulation()
        at = rng.uniform(0.9, 2.6)
        # Apart by more than a cycle of the controller, which takes up a message before its clock
        # may jump.
        events = [(at + 0.02 * k, partial(kind, rng=rng)) for k, kind in enumerate(kinds)]
        events.append((at + rng.uniform(0.3, 1.2), mended))
        sim.run(at + 2.2, events)
        name = f"draw {draw}: {[kind.__name__ for kind in kinds]} at {at:.3f} s"
        row = sim.row(name, at, at + 2.2)
        assert row.within, row
        assert not sim.gripper.faults(), f"{name}: gripper commands {sim.gripper.faults()}"
        fastest = max(fastest, row.speed)
    assert fastest > 0.6


@pytest.mark.parametrize(
    "kind", sorted(STAYS_AT_REST, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_the_arm_is_at_rest_after_the_fault(kind):
    sim = Simulation()
    rng = np.random.default_rng(SEED)
    # max_age (0.5 s) may pass before silence counts; a chunk without a successor ends after its own
    # 0.8 s.
    sim.run(1.6 + 0.9 + LONGEST_STOP, [(1.6, lambda s: kind(s, rng))])
    commands = np.array(sim.commands)
    before = np.abs(commands[round(1.6 / TICK)] - commands[round(1.6 / TICK) - 1]).max() / TICK
    assert before > 0.5
    assert np.abs(np.diff(commands[-50:], axis=0)).max() == 0.0


def test_a_replacement_that_stops_counts_from_when_it_is_sent():
    """Its computation takes 8 ms: a message by the time before them would shift the motion by them."""
    sim = Simulation()
    sim.run(1.5, [])
    sim.arm.shape = "replacement"
    smooth_stop = sim.executor.smooth_stop

    def slow(now_ns, clock=None):
        command = smooth_stop(now_ns, clock)
        sim.offset_ns += 8_000_000
        return command

    sim.executor.smooth_stop = slow
    sim.runner.pause(True)
    assert sim.arm.stops[-1].sent_ns == sim.now()
