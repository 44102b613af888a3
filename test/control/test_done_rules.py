"""Rules that end an instruction.

- Texts are parsed; an unknown, doubled, incomplete or impossible rule names what is allowed.
- `still_for`: arm and gripper at rest without a break while the policy runs.
- `gripper_closed_on_object`: closed by command, measured open and at rest; an empty hand closes.
- A held arm is not done; a clock set back begins anew.
"""

import pytest

from robovlms_ros.control.done_rules import DoneDetector, DoneRules, parse_done_rules
from robovlms_ros.core.schema import ConfigError


def test_texts():
    rules = parse_done_rules(["still_for 2", "gripper_closed_on_object"], has_gripper=True)
    assert rules == DoneRules(2.0, True)
    assert parse_done_rules([], has_gripper=False) == DoneRules()
    assert parse_done_rules(["still_for: 0.5"], has_gripper=False).still_for == 0.5


@pytest.mark.parametrize(("texts", "names"), [
    (["still"], "still_for"),
    (["still_for"], "SECONDS"),
    (["still_for nan"], "0.1 to 3600"),
    (["still_for 1", "still_for 2"], "twice"),
    (["gripper_closed_on_object 1"], "no value"),
    (["gripper_closed_on_object"], "gripper"),
])
def test_wrong_texts(texts, names):
    with pytest.raises(ConfigError, match=names):
        parse_done_rules(texts, has_gripper=False)


def feed(detector, seconds, begin=0.0, running=True, speed=0.0, opening=1.0, commanded=1.0):
    """The first answer at 20 Hz over a time; opening: a number, or a function of the time."""
    for tick in range(round(seconds * 20)):
        t = begin + tick / 20
        measured = opening(t) if callable(opening) else opening
        text = detector.update(round(t * 1e9), running, speed, measured, commanded)
        if text:
            return text
    return None


def test_still_for():
    detector = DoneDetector(DoneRules(still_for=2.0))
    assert feed(detector, 5.0, speed=0.2) is None
    assert feed(detector, 1.9, begin=5.0) is None
    assert feed(detector, 0.1, begin=6.9, speed=0.2) is None, "a break"
    assert feed(detector, 1.9, begin=7.0) is None
    assert "still_for 2" in feed(detector, 1.0, begin=8.9)


def test_a_moving_gripper_is_not_still():
    detector = DoneDetector(DoneRules(still_for=1.0))
    assert feed(detector, 3.0, opening=lambda t: 1.0 - 0.3 * t) is None


def test_a_held_arm_is_not_done():
    detector = DoneDetector(DoneRules(still_for=1.0, gripper_closed=True))
    assert feed(detector, 5.0, running=False, opening=0.4, commanded=0.0) is None


def test_gripper_closed_on_object():
    def closing(t):
        return max(0.4, 1.0 - 2.0 * t)

    detector = DoneDetector(DoneRules(gripper_closed=True))
    assert feed(detector, 3.0, opening=0.4, commanded=1.0) is None, "not commanded to close"
    assert "40%" in feed(detector, 2.0, begin=3.0, opening=closing, commanded=0.0)


def test_an_empty_hand():
    detector = DoneDetector(DoneRules(gripper_closed=True))
    assert feed(detector, 3.0, opening=lambda t: max(0.0, 1.0 - 2 * t), commanded=0.0) is None
    assert feed(detector, 3.0, begin=3.0, opening=None, commanded=0.0) is None


def test_a_clock_set_back():
    detector = DoneDetector(DoneRules(still_for=2.0))
    assert feed(detector, 1.0, begin=100.0) is None
    assert feed(detector, 1.9, begin=50.0) is None
    assert feed(detector, 0.5, begin=51.9)
