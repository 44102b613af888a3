"""Failure categories of episodes, for scripted situations.

Each category is distinguished from its neighbours. The truth carries the hand, and the scripted expert that is stopped
on its way fails by what it had done till then.
"""

import numpy as np
import pytest

from robovlms_ros.sim.tasks import base
from robovlms_ros.sim.tasks.language import Goal
from robovlms_ros.sim.tasks.objects import TABLE_Z, TableObject, TableTruth

RED, GREEN, BLUE = (0.5, 0.0), (0.6, 0.1), (0.45, -0.15)
YELLOW, PURPLE = (0.55, 0.2), (0.55, -0.05)
REST = TABLE_Z + 0.02
PLATES = {"yellow plate": np.array((*YELLOW, TABLE_Z)), "purple plate": np.array((*PURPLE, TABLE_Z))}


def frame(hand, opening=1.0, plates=None, **places):
    """red, green, blue: (x, y) or (x, y, z) of the cubes; those not named lie at rest."""
    lying = {"red": RED, "green": GREEN, "blue": BLUE} | places
    things = {
        f"{colour} cube": TableObject(f"{colour} cube", np.array((*xyz, REST)[:3]))
        for colour, xyz in lying.items()
    }
    return TableTruth(things, plates or {}, opening, hand=np.array(hand))


AWAY = (0.4, 0.2, 0.1)


def at(place, height=0.0):
    return (*place, REST + height)


def held(colour, place, height=0.05, **rest):
    """The hand has this cube at a place."""
    return frame(at(place, height), 0.5, **{colour: at(place, height)}, **rest)


def why(goal, *frames):
    judge = base.TableJudge(goal)
    outcomes = [judge.look(truth) for truth in frames]
    assert not any(done for done, _ in outcomes)
    assert judge.why() in base.REASONS
    return judge.why()


LIFT = Goal("lift", "red cube")
STACK = Goal("stack", "red cube", "green cube")
PUT = Goal("put", "red cube", "yellow plate")
PUSH = Goal("push", "red cube", "yellow plate")
START = frame(AWAY)


@pytest.mark.parametrize("goal", [LIFT, STACK])
def test_before_the_thing_is_taken(goal):
    assert why(goal, START, START) == "never reached"
    assert why(goal, START, frame(at(RED)), frame(at(RED), 0.5)) == "never grasped"
    beside = frame(at((0.54, 0.0)), red=(0.54, 0.0))
    assert why(goal, START, frame(at(RED)), beside, frame(AWAY, red=(0.54, 0.0))) == "knocked over"
    assert why(goal, START, frame(AWAY, red=(0.5, 0.0, REST - 0.5))) == "knocked over"
    nudged = frame(at(RED), 0.5, red=(0.51, 0.0))
    assert why(goal, START, nudged) == "never grasped", "a nudge of the closing fingers is not a knock"


def test_another_thing_is_taken():
    assert why(LIFT, START, held("green", GREEN, 0.02)) == "wrong object"
    assert why(STACK, START, held("blue", BLUE), START) == "wrong object"
    intruder = frame(AWAY, plates=PLATES, blue=YELLOW)
    assert why(PUT, frame(AWAY, plates=PLATES), intruder) == "wrong object"
    assert why(PUSH, frame(AWAY, plates=PLATES), intruder) == "wrong object"


def test_what_was_taken_is_told():
    for goal, frames, taken in (
        (LIFT, (START, held("green", GREEN, 0.02), held("blue", BLUE)), "green cube"),
        (STACK, (START, held("green", GREEN)), "green cube"),
        (PUT, (frame(AWAY, plates=PLATES), frame(AWAY, plates=PLATES, blue=YELLOW)), "blue cube"),
        (LIFT, (START, held("red", RED, 0.02)), ""),
    ):
        judge = base.TableJudge(goal)
        for truth in frames:
            judge.look(truth)
        assert judge.taken == taken


def test_after_the_thing_is_taken():
    low = held("red", RED, 0.02)
    assert why(LIFT, START, low) == "too slow"
    assert why(LIFT, START, low, frame(AWAY)) == "dropped"
    carried = held("red", (0.55, 0.05))
    assert why(STACK, START, carried) == "too slow"
    assert why(STACK, START, carried, frame(AWAY, red=(0.53, 0.02))) == "dropped"
    over = held("red", (0.58, 0.09), 0.045)
    slid_off = frame(AWAY, red=(0.56, 0.06))
    assert why(STACK, START, carried, over, slid_off) == "missed the place"
    toppled = frame(AWAY, red=(0.56, 0.06), green=(0.64, 0.1))
    assert why(STACK, START, carried, over, toppled) == "knocked over", "what it was to stand on was shoved away"


def test_the_thing_is_left_in_another_place():
    on_blue = frame(AWAY, red=(*BLUE, REST + 0.04))
    assert why(STACK, START, held("red", BLUE, 0.06), on_blue, on_blue) == "wrong place"
    other = frame(AWAY, plates=PLATES, red=PURPLE)
    first = frame(AWAY, plates=PLATES)
    assert why(PUT, first, held("red", PURPLE, plates=PLATES), *[other] * (base.LEFT_FRAMES + 2)) == "wrong place"
    beside = frame(AWAY, plates=PLATES, red=(0.5, 0.18))
    assert why(PUT, first, held("red", (0.5, 0.18), plates=PLATES), beside) == "missed the place"


def test_pushing():
    first = frame(AWAY, plates=PLATES)
    assert why(PUSH, first) == "never reached"
    assert why(PUSH, first, frame(at(RED), plates=PLATES)) == "never grasped"
    halfway = (0.52, 0.08)
    pushing = frame(at(halfway), plates=PLATES, red=halfway)
    assert why(PUSH, first, pushing) == "too slow"
    assert why(PUSH, first, pushing, frame(AWAY, plates=PLATES, red=halfway)) == "missed the place"
    assert why(PUSH, first, held("red", YELLOW, plates=PLATES), frame(AWAY, plates=PLATES, red=YELLOW)) == "carried"


def test_sentence_of_the_two_cubes():
    judge = base.judge("lift the red cube")
    assert judge.look(START) == (False, False)
    assert judge.why() == "never reached" and judge.taken == ""
    assert judge.look(held("green", GREEN)) == (False, True)
    assert judge.look(START) == (False, False)
    assert judge.why() == "wrong object" and judge.taken == "green cube"
    assert base.judge("lift the red cube").look(held("red", RED)) == (True, False)


@pytest.mark.sim
def test_expert_that_runs_out_of_time_fails_by_what_it_had_done():
    from robovlms_ros.sim.scenes import evaluate_task

    def reasons(limit):
        return [e.result.why for e in evaluate_task("stack", None, range(100, 102), limit=limit)]

    assert reasons(0.3) == ["never reached"] * 2
    assert set(reasons(2.6)) <= {"too slow", "never grasped", "missed the place"}
    assert reasons(14.0) == ["", ""]
