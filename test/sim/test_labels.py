"""Labels of the tabletop expert equal those of the code that recorded the demonstrations of the shipped plan
(`golden_labels.json`): whoever changes the law on purpose records anew, and writes the file anew.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from robovlms_ros.sim.tasks.expert import HAND_DOWN, ExpertPolicy
from robovlms_ros.sim.tasks.language import Goal
from robovlms_ros.sim.tasks.objects import TABLE_Z, TableObject, TableTruth

GOLDEN = Path(__file__).with_name("golden_labels.json")
PLATES = {"yellow plate": np.array((0.5, 0.15, TABLE_Z)), "purple plate": np.array((0.6, -0.1, TABLE_Z))}
GOALS = (Goal("lift", "red cube"), Goal("lift", "blue ball"), Goal("stack", "red cube", "green cube"),
         Goal("put", "blue ball", "yellow plate"), Goal("put", "red cube", "purple plate"),
         Goal("push", "red cube", "yellow plate"))


def cases():
    """48 situations: goal, truth, hand (4, 4), opening; from far away to around the thing and at its place."""
    rng = np.random.default_rng(6)
    for number in range(48):
        goal = GOALS[number % len(GOALS)]
        things = {}
        for name in ("red cube", "green cube", "blue ball"):
            flat = TableObject(name, np.zeros(3))
            place = np.array((rng.uniform(0.4, 0.65), rng.uniform(-0.2, 0.2), TABLE_Z + flat.half_height))
            things[name] = TableObject(name, place, rng.uniform(-0.8, 0.8))
        if goal.place and number % 4 == 0:
            above = PLATES[goal.place] if goal.place in PLATES else things[goal.place].position
            things[goal.thing] = TableObject(goal.thing, above + np.array((0.004, 0.002, 0.04)), 0.1)
        pose = np.eye(4)
        turn, tilt = rng.normal(0, 0.4), rng.normal(0, 0.08)
        about_z = np.array(((np.cos(turn), -np.sin(turn), 0), (np.sin(turn), np.cos(turn), 0), (0, 0, 1)))
        about_x = np.array(((1, 0, 0), (0, np.cos(tilt), -np.sin(tilt)), (0, np.sin(tilt), np.cos(tilt))))
        pose[:3, :3] = about_z @ about_x @ HAND_DOWN
        pose[:3, 3] = things[goal.thing].position + rng.normal(0, (0.1, 0.02, 0.005)[number % 3], 3)
        yield goal, TableTruth(things, PLATES), pose, (1.0, 0.52, 0.9, float(rng.uniform()))[number % 4]


def labels():
    """Per case the yaw, the first action, and the sum of all: enough to tell any change."""
    rows = []
    for goal, truth, pose, opening in cases():
        law = ExpertPolicy(goal, truth, pose, opening)
        chunk = law.chunk()
        rows.append([law.yaw, *chunk[0].tolist(), *chunk.sum(axis=0).tolist()])
    return rows


def test_labels_are_those_of_the_recorded_demonstrations():
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    rows = labels()
    assert len(rows) == len(golden)
    for number, (row, expected) in enumerate(zip(rows, golden, strict=True)):
        assert row == pytest.approx(expected, abs=1e-10), f"case {number}"
