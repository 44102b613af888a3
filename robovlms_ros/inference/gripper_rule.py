"""From a gripper class per step to a commanded opening: the rules of the CALVIN and SimplerEnv
runs.

The rules with a state (sticky, late close) are functions of a state that is passed in and out.
"""

from dataclasses import dataclass, replace

from robovlms_ros.config.action import GripperConfig


@dataclass(frozen=True)
class GripperState:
    """State of a rule between executed steps; a fresh one starts an episode.

    previous: the last class. held: the class that acts. pulse: sticky's change in progress, +1
        where class 1 became 0,
    -1 the other way, 0 none. repeats: steps of that pulse so far. streak: how often class 1 came in
    a row.
    """

    previous: int | None = None
    held: int | None = None
    pulse: int = 0
    repeats: int = 0
    streak: int = 0


def gripper_step(config: GripperConfig, label: int, state: GripperState) -> tuple[int, GripperState]:
    """The class that acts in this step, and the state after it. `label` is the head's decision, 0
    or 1."""
    if config.rule == "sticky":
        after = _sticky(config.sticky_steps, label, state)
    elif config.rule == "late_close":
        streak = state.streak + 1 if label else 0
        after = GripperState(label, int(streak >= config.late_close_steps), streak=streak)
    else:
        after = GripperState(label, label)
    assert after.held is not None
    return after.held, after


def _sticky(steps: int, label: int, state: GripperState) -> GripperState:
    """A change is emitted for `steps` steps, during which another change goes unseen (the Google
    robot's rule)."""
    pulse, repeats = (0, 0) if state.repeats >= steps else (state.pulse, state.repeats)
    if pulse == 0 and state.previous is not None:
        pulse = state.previous - label
    held = state.held if state.held is not None else label
    if pulse:
        held = 0 if pulse > 0 else 1
        repeats += 1
    return replace(state, previous=label, held=held, pulse=pulse, repeats=repeats)
