"""Openings of chunks as gripper commands.

- A closing that every chunk puts at its second or third step happens, and is not taken back.
- A chunk that stays on one side decides alone; where the newest one changes sides, chunks count by
  their age with the strategies that average, and the newest alone with the others.
- Sides are those of the gripper's thresholds.
- Another instruction, another policy, a plan without openings and a clock that went back leave no
  older chunk.
- The newest chunk's last opening stays.
- A new side needs a threshold and a rest.
"""

import dataclasses

import numpy as np
import pytest

from robovlms_ros.control.gripper_schedule import GripperSwitch, OpeningSchedule
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, JointPlan

STEP = 0.05
GRIPPER = load_robot("panda").gripper
SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", STEP)


def ns(seconds):
    return round(seconds * NANOSECONDS)


def plan(stamp, opening, instruction="lift", policy_id="test"):
    """A plan of one joint at rest; opening: one value a step, or None."""
    steps = 16 if opening is None else len(opening)
    times_ns = ns(stamp) + np.round(np.arange(1, steps + 1) * STEP * NANOSECONDS).astype(np.int64)
    still = np.zeros((steps, 1))
    chunk = ActionChunk(ns(stamp), still, SPEC, instruction, policy_id)
    return JointPlan(times_ns, still, still, None if opening is None else np.array(opening), chunk)


def closing_at(step):
    return np.where(np.arange(16) < step, 1.0, 0.0)


def commands(strategy, step, latency=0.03):
    """The gripper's sides over 2 s in which a chunk of each image closes at `step`."""
    schedule = OpeningSchedule(ScheduleConfig(strategy=strategy), GRIPPER)
    switch = GripperSwitch(GRIPPER)
    sides = []
    for tick in range(200):
        t = 1.0 + tick * 0.01
        if tick % 5 == 0:
            schedule.add(plan(t - latency, closing_at(step)))
        sides.append(switch.update(schedule.wanted(ns(t)), ns(t)))
    return sides


@pytest.mark.parametrize("strategy", ["blend", "ensemble"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_closing_that_is_always_ahead_happens_once(strategy, step):
    sides = commands(strategy, step)
    assert sides[0] == 1.0
    assert sides[-1] == 0.0
    assert np.count_nonzero(np.diff(sides)) == 1


def test_the_newest_chunk_alone_never_closes_or_wavers():
    assert set(commands("fade", 3)) == {1.0}
    assert np.count_nonzero(np.diff(commands("fade", 1))) > 1


@pytest.mark.parametrize(
    ("strategy", "period", "late"),
    [
        ("fade", 0.1, 0.0),
        ("blend", 0.05, 0.15),
        ("blend", 0.1, 0.2),
        ("ensemble", 0.05, 0.2),
        ("ensemble", 0.1, 0.4),
    ],
)
def test_an_opening_that_is_taken_back_is_late_by_the_average(strategy, period, late):
    """An opening of 0.5 s that no chunk before its begin foresaw."""
    schedule = OpeningSchedule(ScheduleConfig(strategy=strategy), GRIPPER)
    opened = []
    for tick in range(200):
        t = tick * 0.01
        if tick % round(period / 0.01) == 0:
            steps = t + STEP * np.arange(1, 17)
            # From 1.0 s on the chunks have it.
            opening = np.where((t > 0.99) & (steps > 1.01) & (steps < 1.51), 1.0, 0.0)
            schedule.add(plan(t, opening))
        if schedule.wanted(ns(t)) >= GRIPPER.open_above:
            opened.append(t)
    assert opened[0] - 1.01 == pytest.approx(late, abs=0.06)


def test_a_clear_intent_decides_alone():
    schedule = OpeningSchedule(ScheduleConfig(), GRIPPER)
    schedule.add(plan(1.0, np.zeros(16)))
    schedule.add(plan(1.05, np.ones(16)))
    assert schedule.wanted(ns(1.1)) == 1.0
    schedule.add(plan(1.1, closing_at(2)))
    assert schedule.wanted(ns(1.18)) < 1.0  # its second step
    assert schedule.wanted(ns(1.22)) == 0.0  # closed from here on
    assert schedule.wanted(ns(9.0)) == 0.0


def test_a_chunk_counts_by_its_age():
    schedule = OpeningSchedule(ScheduleConfig(memory=0.1), GRIPPER)
    schedule.add(plan(1.0, np.zeros(16)))
    schedule.add(plan(1.1, closing_at(15)))
    assert schedule.wanted(ns(1.2)) == pytest.approx(1 / (1 + np.exp(-1)))
    schedule.add(plan(1.1, closing_at(15)))  # the same image's again
    assert schedule.wanted(ns(1.2)) == pytest.approx(1 / (1 + np.exp(-1)))
    assert schedule.wanted(ns(1.82)) == 1.0  # the first one is over
    schedule.add(plan(0.5, closing_at(8)))  # a clock that went back
    assert schedule.wanted(ns(0.55)) == 1.0


@pytest.mark.parametrize("strategy", ["fade", "receding", "first"])
def test_the_newest_alone(strategy):
    schedule = OpeningSchedule(ScheduleConfig(strategy=strategy), GRIPPER)
    schedule.add(plan(1.0, np.zeros(16)))
    schedule.add(plan(1.1, closing_at(15)))
    assert schedule.wanted(ns(1.2)) == 1.0


def test_older_chunks_that_do_not_count():
    schedule = OpeningSchedule(ScheduleConfig(), GRIPPER)
    assert schedule.wanted(ns(1.0)) is None
    schedule.add(plan(1.0, np.zeros(16)))
    schedule.add(plan(1.05, closing_at(15), "put it down"))
    assert schedule.wanted(ns(1.1)) == 1.0
    schedule.add(plan(1.08, closing_at(15)[::-1], "put it down", "another"))
    assert schedule.wanted(ns(1.1)) == 0.0
    schedule.add(plan(1.1, None, "put it down"))  # a person's motion
    assert schedule.wanted(ns(1.2)) is None
    schedule.add(plan(1.2, np.zeros(16)))
    schedule.forget()
    assert schedule.wanted(ns(1.3)) is None


def test_sides_are_those_of_the_thresholds():
    wide = dataclasses.replace(GRIPPER, close_below=0.7, open_above=0.9)
    closes = np.where(np.arange(16) < 2, 1.0, 0.6)  # onto a thick object
    for gripper, wanted in ((wide, 0.6 + 0.4 / (1 + np.exp(-0.1))), (GRIPPER, 1.0)):
        schedule = OpeningSchedule(ScheduleConfig(memory=0.5), gripper)
        schedule.add(plan(1.0, np.full(16, 0.6)))
        schedule.add(plan(1.05, closes))
        assert schedule.wanted(ns(1.1)) == pytest.approx(wanted)


def test_gripper_changes_need_a_threshold_and_a_rest():
    switch = GripperSwitch(GRIPPER)
    low, high, dwell = GRIPPER.close_below, GRIPPER.open_above, GRIPPER.dwell
    middle = (low + high) / 2
    assert switch.update(middle, 0) is None
    assert switch.update(high, 0) == 1.0
    assert switch.update(low + 0.01, ns(dwell)) == 1.0
    assert switch.update(low, ns(dwell / 2)) == 1.0
    assert switch.update(low, ns(dwell)) == 0.0
    assert switch.update(middle, ns(2 * dwell)) == 0.0
