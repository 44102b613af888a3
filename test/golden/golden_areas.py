"""The areas of the golden answers, their needs and their tolerances."""

from collections.abc import Callable

from golden_bags import rendered, report
from golden_inputs import Answers
from golden_messages import wire
from golden_motion import motion
from golden_policies import backbones, policy
from golden_training import training

AREAS: dict[str, Callable[[], Answers]] = {
    "policy": policy,
    "backbones": backbones,
    "motion": motion,
    "report": report,
    "rendered": rendered,
    "wire": wire,
    "training": training,
}
NEEDS: dict[str, tuple[str, ...]] = {
    "motion": ("pinocchio",),
    "report": ("pinocchio", "mujoco", "robosuite"),
    "rendered": ("mujoco", "robosuite"),
    "wire": ("rclpy", "pinocchio"),
}
"""Packages without which an area is left out, by the rules of the other tests of them."""
LOOSE: dict[str, float] = {
    # float32 through four layers: 4e-6 between the instruction sets of one processor.
    "policy/normalised": 1e-5,
    # Rounded to 1e-5.
    "report/(fans|track|worst)": 2e-5,
    # Grey levels of 255: another renderer rounds otherwise.
    "rendered/blocks": 3.0,
}
"""Pattern of `<area>/<path>` -> tolerance of its numbers in place of the usual one."""
