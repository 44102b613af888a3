"""500 faults at random moments of recorded episodes of the shipped policies, gripper included.

- An undisturbed replay follows the recorded joints and closes the gripper as often as the
  recording.
- Each fault begins while the fastest joint moves at 0.6 rad/s or more, or while the gripper closes,
  or both. Every kind of fault is drawn, one at a time and two at once, in episodes at their own
  pace and 1.4 times as fast.
- No joint, commanded or measured, exceeds the bounds of the fault benchmark. Unusable velocities,
  duplicates and states out of order stop nothing.
- After an end or a fault that lasts, the smooth stop is sent in time and the arm is at rest within
  the stop's own time; without chunks it is at rest within the plan's.
- Gripper commands are finite and within the finger's range. None is sent between a stop and the
  arm's next command.
"""

from functools import lru_cache, partial

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("pinocchio")

import fault_kinds
from fault_kinds import KINDS, STAYS_AT_REST, UNDETECTED, mended
from fault_simulation import PANDA, START_NS, TICK, TICK_NS, Simulation
from recorded_episodes import BEFORE, ReplayedPolicy, load_episodes

from robovlms_ros.bench.faults.measure import PLAN, WORKING_SPEED
from robovlms_ros.core.types import NANOSECONDS

DRAWS = 500
PARTS = 10
SEED = 20261130
FACTORS = (1.0, 1.4)
RESTING = 1.5  # s recorded of a fault after which the arm must rest
LONGEST_STOP = 0.9  # s: from 1.4 times the working speed and more, the lead included
TICK_OF_NODE = 0.05  # s
STATE = 0.01  # s between joint states
IMAGE = 0.03  # s between images
MAX_AGE = 0.5  # s of silence until it counts
STOPPED_AFTER = {
    fault_kinds.pause: 0.0,
    fault_kinds.deactivate: 0.0,
    fault_kinds.second_commander: TICK_OF_NODE,
    fault_kinds.not_finite: STATE + TICK_OF_NODE,
    fault_kinds.named_twice: STATE + TICK_OF_NODE,
    fault_kinds.silent_joints: MAX_AGE + STATE + TICK_OF_NODE,
    fault_kinds.frozen_stamps: MAX_AGE + STATE + TICK_OF_NODE,
    fault_kinds.silent_camera: MAX_AGE + IMAGE + TICK_OF_NODE,
}
"""s of virtual time from the fault until the smooth stop is sent, for the kinds after which the arm
stays at rest."""
HARMLESS = {
    fault_kinds.velocities_not_finite,
    fault_kinds.velocities_missing_one,
    fault_kinds.duplicates,
    fault_kinds.out_of_order,
}


def closing_ticks(sim):
    """True for each tick at which a command to close the gripper is under way, (ticks,)."""
    closing = np.zeros(sim.tick, bool)
    travel = round(PANDA.gripper.travel_time / TICK)
    for now_ns, position, _ in sim.gripper.commands:
        if position == PANDA.gripper.closed_position:
            begin = (now_ns - START_NS) // TICK_NS
            closing[begin + 1 : begin + travel] = True
    return closing


@lru_cache
def undisturbed(number, factor):
    """One replay without a fault: the simulation, and ticks at working speed, ticks in which the
    gripper closes."""
    policy = ReplayedPolicy(load_episodes()[number], factor)
    sim = Simulation(policy)
    sim.run((BEFORE + policy.period) * TICK)
    speeds = np.abs(np.diff(np.array(sim.commands), axis=0)).max(axis=1) / TICK
    fast = np.append(False, speeds[:-1] >= WORKING_SPEED)  # commanded before the tick
    return sim, fast, closing_ticks(sim)


def moment(rng, number, factor):
    """A tick at working speed, one in which the gripper closes, or one of both kinds."""
    _, fast, closing = undisturbed(number, factor)
    both = fast & closing
    wanted = rng.choice(3, p=(0.5, 0.25, 0.25))
    ticks = (fast, closing, both if both.any() else closing)[wanted]
    return int(rng.choice(np.flatnonzero(ticks)))


@pytest.mark.parametrize("number", range(len(load_episodes())))
def test_the_replay_is_the_recorded_episode(number):
    episode = load_episodes()[number]
    sim, fast, closing = undisturbed(number, 1.0)
    frames = BEFORE + episode.frames_ns // TICK_NS
    frames = frames[frames < sim.tick]
    replayed = np.array(sim.measured)[frames]
    assert np.abs(replayed - episode.positions[: len(frames)]).max() < 0.002
    assert sim.report.refusals == 0
    assert fast.any() and closing.any()
    shut = episode.openings < episode.openings.min() + 0.1
    closings = [
        command for command in sim.gripper.commands if command[1] == PANDA.gripper.closed_position
    ]
    assert len(closings) == np.count_nonzero(np.diff(shut.astype(int)) == 1)
    assert not sim.gripper.faults()


@pytest.mark.parametrize("part", range(PARTS))
def test_no_fault_in_an_episode_moves_the_arm_beyond_its_limits(part):
    speeds = []
    closings = []
    for draw in range(part * DRAWS // PARTS, (part + 1) * DRAWS // PARTS):
        row, closing = disturbed(draw)
        assert row.within, row
        assert row.speed >= WORKING_SPEED or closing, row
        speeds.append(row.speed)
        closings.append(closing)
    fast = np.array(speeds) >= WORKING_SPEED
    assert np.count_nonzero(fast) >= DRAWS // PARTS // 3
    assert np.count_nonzero(closings) >= DRAWS // PARTS // 5
    assert np.count_nonzero(fast & closings) >= 1


def disturbed(draw):
    """The row of one drawn fault, and True where the gripper closes as it begins."""
    rng = np.random.default_rng([SEED, draw])
    kinds = [KINDS[draw % len(KINDS)]]
    if rng.uniform() < 0.3:
        kinds.append(KINDS[rng.integers(len(KINDS))])
    if UNDETECTED.issubset(kinds):
        kinds.remove(fault_kinds.frozen_values)
    number = int(rng.integers(len(load_episodes())))
    factor = float(rng.choice(FACTORS))
    tick = moment(rng, number, factor)
    at = tick * TICK
    rests = len(kinds) == 1 and kinds[0] in STAYS_AT_REST and rng.uniform() < 0.5
    mend = at + (RESTING if rests else rng.uniform(0.3, 1.2))
    sim = Simulation(ReplayedPolicy(load_episodes()[number], factor))
    # Apart by more than a cycle of the controller, which takes up a message before its clock may
    # jump.
    events = [(at + 0.02 * k, partial(kind, rng=rng)) for k, kind in enumerate(kinds)]
    sim.run(mend + 1.2, [*events, (mend, mended)])
    names = ", ".join(kind.__name__ for kind in kinds)
    name = f"draw {draw}: {names} at {at:.3f} s of episode {number}, {factor} times as fast"
    assert not sim.gripper.faults(), f"{name}: gripper commands {sim.gripper.faults()}"
    if HARMLESS.issuperset(kinds):
        assert not sim.report.last_stop, f"{name}: {sim.report.last_stop}"
    closing = bool(undisturbed(number, factor)[2][tick])
    allowed = rest_allowed(sim, kinds[0], at, name) if rests else np.nan
    return sim.row(name, at, mend, closing, allowed), closing


def rest_allowed(sim, kind, at, name):
    """Seconds from the fault at `at` until the arm must be at rest: the end of the stop that was
    sent, or PLAN."""
    if kind is fault_kinds.no_chunks:
        return PLAN
    stops = [
        stop for stop in sim.arm.stops if stop.sent_ns >= START_NS + round(at / TICK) * TICK_NS
    ]
    assert stops, f"{name}: no stop was sent"
    sent = (stops[0].sent_ns - START_NS) / NANOSECONDS - at
    assert sent <= STOPPED_AFTER[kind] + TICK, f"{name}: the stop was sent after {sent:.3f} s"
    assert stops[0].seconds <= LONGEST_STOP, f"{name}: the stop takes {stops[0].seconds:.3f} s"
    return sent + stops[0].seconds + TICK
