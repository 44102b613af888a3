"""The demo's task: which words ask for which cube, and which seeds may be used for what. No simulator is imported."""

from typing import Any, Protocol

from robovlms_ros.core.types import RoboVLMsError

CUBES = ("red", "green")
INSTRUCTIONS = {f"lift the {name} cube": name for name in CUBES}

FINGER_OPEN = 0.04
"""Position of each finger when open, in metres; 0 is closed."""
LIFTED = 0.04
"""A cube counts as lifted when its centre is this far above its place on the table (m)."""

EVALUATION_SEEDS = range(0, 10_000)
TRAINING_SEEDS = range(1_000_000, 2_000_000)
"""Scenes that a policy is trained in; no demo or evaluation uses one of them."""


class Judge(Protocol):
    """Decides on one episode, frame by frame."""

    def look(self, truth: Any) -> tuple[bool, bool]:
        """Success, and the wrong object, as this frame's ground truth shows them (simulated frames are 50 ms apart)."""
        ...

    def why(self) -> str:
        """Why an episode that has not succeeded failed, in a word or two."""
        ...

    @property
    def taken(self) -> str:
        """The first thing that was taken in the place of the named one; empty when there was none."""
        ...


class TaskError(RoboVLMsError):
    """An instruction or a seed does not belong to the demo's task."""


def named_cube(instruction: str) -> str:
    """The cube that an instruction names. Raises TaskError for an instruction that the scene does not know."""
    if instruction not in INSTRUCTIONS:
        raise TaskError(f"instruction {instruction!r}: this scene knows {', '.join(map(repr, INSTRUCTIONS))}.")
    return INSTRUCTIONS[instruction]


class LiftJudge:
    """Success: the cube that the instruction names is lifted. Wrong: any other one is. Raises TaskError."""

    def __init__(self, instruction: str) -> None:
        self._named = named_cube(instruction)
        self.taken = ""

    def look(self, truth: Any) -> tuple[bool, bool]:
        lifted = truth.lifted()
        others = [name for name in lifted if name != self._named]
        self.taken = self.taken or "".join(others[:1])
        return self._named in lifted, bool(others)

    def why(self) -> str:
        return "wrong object" if self.taken else "not lifted"
