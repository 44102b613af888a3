"""The passport in a policy's id.

- A changed weight, statistic, field of the action's convention or of the controller changes its
  part, and the sentence names that part. Names of topics are no convention.
- It is the same whenever the same checkpoint is loaded, under any folder's name.
- Ids without a passport, and parts that are not known, are not compared.
"""

from dataclasses import replace

import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy, save_policy
from robovlms_ros.checkpoints.passport import PARTS, difference, identity, with_controller
from robovlms_ros.control.robot import load_robot

STATE = {"names": ["gripper"], "mean": [0.5], "std": [0.2]}
NORMALIZATION = {"method": "min_max", "low": [-0.1], "high": [0.1]}
CONVENTION = {
    "frame": "tool",
    "rotation": "euler_xyz_extrinsic",
    "composition": "from_observation",
    "step_duration": 0.1,
    "units": {"translation": 0.02, "rotation": 1.0},
    "gripper": {"open_value": 0},
    "robot": "panda",
    "mu_law": 5.0,
}


@pytest.fixture
def changed(make_config):
    """A function: the configuration with other blocks."""

    def make(action=None, proprioception=STATE, **blocks):
        known = {"normalization": [NORMALIZATION], **(action or {})}
        return make_config(action=known, proprioception=proprioception, **blocks)

    return make


@pytest.fixture
def policy(changed):
    return build_policy(changed())


@pytest.fixture
def weights(policy, tmp_path):
    return save_policy(policy, tmp_path / "one") / "model.safetensors"


def test_each_field_has_its_part(policy, weights, changed):
    robot = load_robot("panda")
    known = with_controller(identity("one", changed(), weights), robot)
    assert known.count("-") == len(PARTS) - 1

    def sentence(config=None, robot=robot):
        return difference(
            known, with_controller(identity("two", config or changed(), weights), robot)
        )

    assert sentence() == ""
    for config in (
        changed(action={"normalization": [{**NORMALIZATION, "high": [0.2]}]}),
        changed(proprioception={**STATE, "mean": [0.6]}),
        changed(proprioception={**STATE, "std": [0.3]}),
    ):
        assert "which has other statistics than two@" in sentence(config)
    for name, value in CONVENTION.items():
        assert "which has other action convention than" in sentence(changed(action={name: value})), name
    steps = changed(model={"action_chunk_size": 5})
    assert "other action convention than" in sentence(steps)
    for other in (
        replace(robot, eef_frame="tool0"),
        replace(robot, joints=robot.joints[::-1]),
        replace(robot, gripper=replace(robot.gripper, open_position=0.05)),
        replace(robot, controller=load_robot("ur5e").controller, gripper=None),
    ):
        assert "which has other controller convention than" in sentence(robot=other)
    assert (
        sentence(robot=replace(robot, controller=replace(robot.controller, topic="elsewhere")))
        == ""
    )
    with torch.no_grad():
        next(policy.parameters()).view(-1)[0] += 1
    save_policy(policy, weights.parent)
    assert "which has other weights than two@" in sentence()


def test_a_loaded_policy_has_it(policy, tmp_path):
    first = load_policy(save_policy(policy, tmp_path / "first"))
    again = load_policy(save_policy(policy, tmp_path / "again"))
    assert first.identity.startswith("first@") and again.identity.startswith("again@")
    assert difference(first.identity, again.identity) == ""


def test_unknown_parts_are_not_compared():
    assert difference("demo", "demo@1-2-3-4") == "" == difference("a@b", "demo@1-2-3-4")
    assert difference("a@-2-3-4", "b@1-2-3-") == ""
    assert difference("a@1-2-3-4", "b@5-2-6-4") == (
        "recorded with a@1-2-3-4, which has other weights, other action convention than b@5-2-6-4"
    )
    assert with_controller("paligemma-lstm", load_robot("panda")) == "paligemma-lstm"
