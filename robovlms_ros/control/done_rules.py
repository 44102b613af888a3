"""Rules that end an instruction: the arm at rest for a while, the gripper closed on an object.

Rules are written as texts, `still_for 2.0` and `gripper_closed_on_object`, and are evaluated on
measured states. No clock is read: stamps come in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robovlms_ros.control.executor import REST_SPEED
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.core.types import NANOSECONDS

STILL_FOR = "still_for"
GRIPPER_CLOSED = "gripper_closed_on_object"
RULES = (STILL_FOR, GRIPPER_CLOSED)

OPENING_STEP = 0.02
"""Part of the gripper's stroke: a gripper whose opening changes less is at rest."""

OBJECT_OPENING = 0.05
"""Part of the gripper's stroke: closed by command and measured wider open, it holds an object."""

GRASP_TIME = 0.5
"""s that a closed gripper must be at rest: fingers on their way are open, too."""


@dataclass(frozen=True)
class DoneRules:
    """The rules of one goal. still_for: s, None without that rule."""

    still_for: float | None = None
    gripper_closed: bool = False


def parse_done_rules(texts: Sequence[str], has_gripper: bool) -> DoneRules:
    """The rules of `done_when`. Raises ConfigError for an unknown, doubled or incomplete one.

    has_gripper: False for an arm whose robot YAML has no gripper.
    """
    still_for = None
    gripper_closed = False
    for text in texts:
        name, _, value = text.strip().replace(":", " ").partition(" ")
        if name not in RULES:
            raise ConfigError(
                f"done_when: '{text}' is no rule.{did_you_mean(name, RULES)} "
                f"Write '{STILL_FOR} SECONDS' or '{GRIPPER_CLOSED}'."
            )
        if name == STILL_FOR:
            if still_for is not None:
                raise ConfigError(f"done_when: {STILL_FOR} is given twice.")
            still_for = _seconds(text, value)
            continue
        if value.strip():
            raise ConfigError(f"done_when: '{text}': {GRIPPER_CLOSED} takes no value.")
        if not has_gripper:
            raise ConfigError(f"done_when: {GRIPPER_CLOSED} needs a `gripper` in the robot's YAML.")
        gripper_closed = True
    return DoneRules(still_for, gripper_closed)


def _seconds(text: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 3600.0:
        raise ConfigError(
            f"done_when: '{text}': must be '{STILL_FOR} SECONDS', from 0.1 to 3600, "
            f"for example '{STILL_FOR} 2.0'."
        )
    return seconds


class DoneDetector:
    """Evaluates the rules of one goal, from its beginning. Not thread safe."""

    def __init__(self, rules: DoneRules) -> None:
        self._rules = rules
        self._still_since_ns: int | None = None
        self._grasp_since_ns: int | None = None
        self._opening: float | None = None

    def update(
        self,
        now_ns: int,
        running: bool,
        speed: float,
        opening: float | None,
        commanded_opening: float | None,
    ) -> str | None:
        """The text of a rule that holds now, None while none does. Call at 10 Hz or more.

        running: True while the policy commands the arm; a held arm is at rest for another reason.
        speed: rad/s of the fastest joint. opening: measured, 0 closed to 1 open, None without a
        gripper. commanded_opening: 0 or 1, None before the first command.
        """
        moved = opening is not None and (
            self._opening is None or abs(opening - self._opening) > OPENING_STEP
        )
        if moved:
            self._opening = opening
        at_rest = running and not moved
        still = at_rest and speed <= REST_SPEED
        grasp = (
            at_rest
            and commanded_opening == 0.0
            and opening is not None
            and opening > OBJECT_OPENING
        )
        self._still_since_ns = _since(self._still_since_ns, still, now_ns)
        self._grasp_since_ns = _since(self._grasp_since_ns, grasp, now_ns)
        if self._rules.gripper_closed and _lasted(self._grasp_since_ns, now_ns, GRASP_TIME):
            return f"{GRIPPER_CLOSED}: commanded closed, measured {opening:.0%} open"
        still_for = self._rules.still_for
        if still_for is not None and _lasted(self._still_since_ns, now_ns, still_for):
            return f"{STILL_FOR} {still_for:g}: arm and gripper were at rest for {still_for:g} s"
        return None


def _since(since_ns: int | None, holds: bool, now_ns: int) -> int | None:
    """Start of the time in which a condition holds unbroken; a clock set back begins anew."""
    if not holds:
        return None
    return now_ns if since_ns is None or now_ns < since_ns else since_ns


def _lasted(since_ns: int | None, now_ns: int, seconds: float) -> bool:
    return since_ns is not None and now_ns - since_ns >= seconds * NANOSECONDS
