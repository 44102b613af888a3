"""The controller model is the controller: what joint_trajectory_controller commands and refuses.

- equal to the real trajectory code, tick by tick, on every case of the folders in ROBOVLMS_JTC_DIR
  (separated by `:`), rejections included;
- each documented refusal is raised with its reason and leaves the running trajectory alone;
- joints are matched by name, whatever their order in the message;
- before any trajectory the measured position is held.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from robovlms_ros.control.trajectory_controller_model import (
    PositionsUpsampling,
    TrajectoryController,
    TrajectoryMessage,
    TrajectoryPoint,
    TrajectoryRejected,
)
from robovlms_ros.core.types import NANOSECONDS, TrajectoryCommand

SHARED = Path(__file__).resolve().parents[3] / "shared"
DEFAULT = os.pathsep.join(str(SHARED / name) for name in ("jtc", "jtc_master"))
FOLDERS = [Path(name) for name in os.environ.get("ROBOVLMS_JTC_DIR", DEFAULT).split(os.pathsep)]
CASES = [
    pytest.param(folder, case, id=f"{folder.name}/{case['name']}")
    for folder in FOLDERS
    if (folder / "cases.json").is_file()
    for case in json.loads((folder / "cases.json").read_text())
]
CLOCK_NS = 1000 * NANOSECONDS
TICK_NS = 2_000_000


def ns(seconds):
    return round(seconds * NANOSECONDS)


@pytest.mark.jtc
@pytest.mark.skipif(not CASES, reason="no controller answers in ../shared (set ROBOVLMS_JTC_DIR)")
@pytest.mark.parametrize("folder, case", CASES or [(None, None)])
def test_equals_the_real_controller(folder, case):
    from safetensors.numpy import load_file

    answers = load_file(folder / "cases.safetensors")
    names = tuple(f"joint{i}" for i in range(case["joints"]))
    controller = controller_of(case, names)
    period = ns(case["period"])
    waiting = list(enumerate(case["messages"]))
    commands, velocities, rejected = [], [], []
    for tick in range(case["ticks"]):
        now = CLOCK_NS + tick * period
        while waiting and CLOCK_NS + ns(waiting[0][1]["arrive"]) <= now:
            index, message = waiting.pop(0)
            try:
                controller.accept(as_message(message, names), now)
            except TrajectoryRejected:
                rejected.append(index)
        delay = max(1, case["plant_delay_ticks"])
        measured = commands[tick - delay] if tick >= delay else np.array(case["q0"])
        position, velocity = controller.update(now, period, measured, np.zeros(case["joints"]))
        commands.append(position)
        velocities.append(velocity)
    assert rejected == case["rejected_messages"]
    np.testing.assert_allclose(commands, answers[case["name"] + "/position"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(velocities, answers[case["name"] + "/velocity"], rtol=0, atol=1e-5)


def controller_of(case, names):
    upsampling = None
    if case.get("positions_upsampling_enable", False):
        upsampling = PositionsUpsampling(
            case["positions_upsampling_policy_frequency"], case["cross_chunk_continuity"]
        )
    return TrajectoryController(
        names,
        case["interpolate_from_desired_state"],
        case.get("allow_nonzero_velocity_at_trajectory_end", True),
        allow_trajectory_replacement=case.get("allow_trajectory_replacement", False),
        upsampling=upsampling,
    )


def as_message(message, names):
    points = tuple(
        TrajectoryPoint(ns(p["time_from_start"]), p["positions"], p.get("velocities", ()), p.get("accelerations", ()))
        for p in message["points"]
    )
    return TrajectoryMessage(CLOCK_NS + ns(message["stamp"]) if message["stamp"] else 0, names, points)


ONE_POINT = TrajectoryPoint(100_000_000, (1.0, 2.0), (0.0, 0.0))


def move(joints=("a", "b"), stamp_ns=0, points=(ONE_POINT,)):
    return TrajectoryMessage(stamp_ns, joints, tuple(points))


REFUSED = {
    "joint missing": (move(joints=("a",), points=[TrajectoryPoint(ns(0.1), (1.0,))]), "missing: b"),
    "unknown name": (move(joints=("a", "c")), "'c' is unknown"),
    "name twice": (move(joints=("a", "a")), "named twice"),
    "no points": (move(points=()), "no points"),
    "equal times": (move(points=[TrajectoryPoint(5, (0.0, 0.0)), TrajectoryPoint(5, (1.0, 1.0))]), "not later"),
    "falling times": (move(points=[TrajectoryPoint(5, (0.0, 0.0)), TrajectoryPoint(4, (1.0, 1.0))]), "not later"),
    "positions missing": (move(points=[TrajectoryPoint(5, ())]), "0 positions for 2 joints"),
    "positions too many": (move(points=[TrajectoryPoint(5, (0.0, 0.0, 0.0))]), "3 positions for 2 joints"),
    "velocities size": (move(points=[TrajectoryPoint(5, (0.0, 0.0), (0.0,))]), "1 velocities for 2 joints"),
    "accelerations size": (move(points=[TrajectoryPoint(5, (0.0, 0.0), (0.0, 0.0), (1.0,))]), "1 accelerations"),
    "moving at the end": (move(points=[TrajectoryPoint(5, (0.0, 0.0), (0.0, 0.1))]), "end every trajectory at rest"),
    "whole trajectory past": (move(stamp_ns=CLOCK_NS - ns(0.3)), "ended 0.200 s ago"),
}


@pytest.mark.parametrize("message, reason", REFUSED.values(), ids=REFUSED)
def test_refusal_names_its_reason_and_the_old_trajectory_goes_on(message, reason):
    controller, undisturbed = TrajectoryController(("a", "b")), TrajectoryController(("a", "b"))
    for each in (controller, undisturbed):
        each.accept(move(points=[TrajectoryPoint(ns(1.0), (1.0, -1.0), (0.0, 0.0))]), CLOCK_NS)
        each.update(CLOCK_NS, TICK_NS, np.zeros(2), np.zeros(2))
    with pytest.raises(TrajectoryRejected, match=reason):
        controller.accept(message, CLOCK_NS)
    now = CLOCK_NS + TICK_NS
    expected = undisturbed.update(now, TICK_NS, np.zeros(2))[0]
    np.testing.assert_array_equal(controller.update(now, TICK_NS, np.zeros(2))[0], expected)
    assert expected[0] > 0


def test_a_moving_end_is_accepted_when_allowed_and_held_in_place():
    controller = TrajectoryController(("a",), allow_nonzero_velocity_at_trajectory_end=True)
    controller.accept(TrajectoryMessage(0, ("a",), (TrajectoryPoint(ns(0.1), (1.0,), (3.0,)),)), CLOCK_NS)
    for tick in range(60):
        position, velocity = controller.update(CLOCK_NS + tick * TICK_NS, TICK_NS, np.zeros(1), np.zeros(1))
    assert (position[0], velocity[0]) == (1.0, 3.0)


def test_joints_are_matched_by_name():
    controller = TrajectoryController(("a", "b", "c"))
    controller.accept(
        TrajectoryCommand(0, ("c", "a", "b"), np.array([0.01]), np.array([[3.0, 1.0, 2.0]]), np.zeros((1, 3))), CLOCK_NS
    )
    for tick in range(10):
        position, _ = controller.update(CLOCK_NS + tick * TICK_NS, TICK_NS, np.zeros(3))
    np.testing.assert_array_equal(position, [1.0, 2.0, 3.0])


def test_measured_position_is_held_before_the_first_trajectory():
    controller = TrajectoryController(("a",))
    assert controller.update(CLOCK_NS, TICK_NS, np.array([0.3]))[0] == 0.3
    assert controller.update(CLOCK_NS + TICK_NS, TICK_NS, np.array([0.4]))[0] == 0.3
    controller.reset()
    assert controller.update(CLOCK_NS, TICK_NS, np.array([0.5]))[0] == 0.5
