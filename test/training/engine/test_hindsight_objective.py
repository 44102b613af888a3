"""The objective of recordings relabelled in hindsight.

- A shifted image of the hand's camera and the place move by the same pixels, by the simulator's own
  projection; what is held, and what has no place, is not shifted.
- The place is learned beside the actions, and parts computed side by side give the whole batch's
  gradients.
"""

import dataclasses

import numpy as np
import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.config.training import HandCameraConfig
from robovlms_ros.core.registry import BACKBONES
from robovlms_ros.core.rotations import matrix_from_vector
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.data.hindsight import Habit
from robovlms_ros.training.engine.batches import split_batch
from robovlms_ros.training.engine.hindsight_objective import HindsightObjective

CAMERA = HandCameraConfig("wrist", 75.0, (0.0, 0.05, -0.097), 180.0, shift=0.1)
DOWN = np.array(((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)))
TURN = matrix_from_vector(np.array((0.05, -0.02, 0.3))) @ DOWN
HORIZON = 3


@pytest.fixture
def policy(request):
    backbone = getattr(request, "param", "paligemma")
    mapping = {
        "model": {"backbone": backbone, "history_length": 1, "action_chunk_size": HORIZON},
        "action_head": {"type": "lstm", "hidden_size": 16, "num_layers": 1},
        "vlm": {"size": "tiny", "vocabulary": ["lift", "red", "green"]},
        "cameras": ["wrist"],
        "action": {
            "space": "eef_delta",
            "frame": "base",
            "rotation": "rotation_vector",
            "composition": "chained",
            "step_duration": 0.05,
            "units": {"translation": 0.01, "rotation": 0.01},
            "gripper": {"open_value": 1},
        },
        "training": {"hindsight": {"relabel": True, "hand_camera": dataclasses.asdict(CAMERA)}},
    }
    return build_policy(config_from_mapping(mapping, "test"), 0)


@pytest.fixture
def batch(policy):
    size = policy.vlm.image_size
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(4, 1, 7)
    seen[..., :3] = torch.tensor((0.05, -0.04, -0.2))
    seen[..., 6] = 1.0
    seen[1, 0, 6] = 0.5  # something is held
    seen[2] = float("nan")  # no place
    return {
        "images": {
            "wrist": torch.randint(
                0, 256, (4, 1, size, size, 3), generator=generator, dtype=torch.uint8
            )
        },
        "instruction": ["lift red", "lift green", "lift red", "lift red"],
        "actions": torch.zeros(4, 1, HORIZON, 7),
        "mask": torch.ones(4, 1, HORIZON, dtype=torch.bool),
        "hindsight": seen,
        "turns": torch.tensor(TURN, dtype=torch.float32).expand(4, 1, 3, 3).clone(),
    }


@pytest.mark.parametrize("shift", [(6.0, 0.0), (0.0, 6.0), (-4.0, 3.0)])
def test_the_place_moves_by_the_shifted_pixels(shift):
    from robovlms_ros.sim.training.vision_pretraining import project

    pose = torch.eye(4, dtype=torch.float64)[None]
    pose[0, :3, :3] = torch.tensor(TURN)
    pose[0, :3, 3] = torch.tensor((0.5, 0.02, 0.1))
    place = torch.tensor((0.56, -0.03, -0.09), dtype=torch.float64)
    seen = torch.ones(1, 1, 7, dtype=torch.float64)
    seen[0, 0, :3] = place - pose[0, :3, 3]
    shifts = torch.tensor([shift], dtype=torch.float64)
    way = HindsightObjective._ways(shifts, seen, pose[:, None, :3, :3], CAMERA, 96)
    before, after = (
        project("wrist", at[None, None], pose) * 96 for at in (place, place + way[0, 0])
    )
    np.testing.assert_allclose((after - before)[0, 0], shift, atol=1e-9)


@pytest.mark.parametrize(
    "way", [(0.05, -0.04, -0.2), (0.3, 0.0, -0.1), (0.0, 0.25, -0.15), (0, -0.1, -0.02)]
)
def test_a_place_outside_the_image_is_no_label(way):
    from robovlms_ros.sim.training.vision_pretraining import project

    pose = torch.eye(4, dtype=torch.float64)[None]
    pose[0, :3, :3] = torch.tensor(TURN)
    place = torch.tensor(way, dtype=torch.float64)
    spot = project("wrist", place[None, None], pose)[0, 0]
    seen = torch.ones(1, 1, 7, dtype=torch.float64)
    seen[0, 0, :3] = place
    found = HindsightObjective._in_view(seen, pose[:, None, :3, :3], CAMERA)
    assert bool(found) == bool(((spot >= 0) & (spot <= 1)).all())


def test_only_what_is_free_and_known_is_shifted(policy, batch):
    torch.manual_seed(0)
    habit = Habit(HORIZON, np.full(6, 0.01)).eval()
    objective = HindsightObjective(policy, habit)
    moved = objective._shifted(batch, CAMERA, torch.Generator().manual_seed(3))
    same = [
        bool((moved["images"]["wrist"][i] == batch["images"]["wrist"][i]).all()) for i in range(4)
    ]
    assert same == [False, True, True, False]
    for name in ("hindsight", "actions"):
        kept = [
            torch.equal(moved[name][i].nan_to_num(), batch[name][i].nan_to_num()) for i in range(4)
        ]
        assert kept == same
    wanted = habit.chunks(moved["hindsight"][0].numpy())
    np.testing.assert_allclose(moved["actions"][0, 0, :, :6], wanted[0, :, :6] / 0.01, atol=1e-4)
    assert torch.isfinite(moved["hindsight"][[0, 1, 3]]).all()


def test_the_place_is_learned_beside_the_actions(policy, batch):
    objective = HindsightObjective(policy, Habit(HORIZON, np.full(6, 0.01)).eval())
    names = dict(objective.named_parameters())
    assert any(name.startswith("place.") for name in names) and not any(
        "habit" in name for name in names
    )
    result = objective(objective.inputs(batch, torch.Generator().manual_seed(0)))
    assert "features" not in result and torch.isfinite(result["target_error_m"])
    result["loss"].backward()
    assert objective.place[0].weight.grad.abs().sum() > 0
    nothing = {**batch, "hindsight": torch.full((4, 1, 7), float("nan"))}
    result = objective(objective.inputs(nothing, torch.Generator().manual_seed(0)))
    assert result["target_error_m"] == 0 and torch.isfinite(result["loss"])


def test_a_batch_is_split_without_loss(batch):
    parts = split_batch(batch, 3)
    assert [len(part["instruction"]) for part in parts] == [1, 2, 1]
    for name in ("actions", "hindsight"):
        assert torch.equal(
            torch.cat([part[name] for part in parts]).nan_to_num(), batch[name].nan_to_num()
        )
    images = torch.cat([part["images"]["wrist"] for part in parts])
    assert torch.equal(images, batch["images"]["wrist"])
    assert len(split_batch(batch, 9)) == 4


def test_tokens_have_no_place(policy):
    mapping = {
        "model": {"backbone": "paligemma", "history_length": 1, "action_chunk_size": 2},
        "action_head": {"type": "discrete", "action_space": "discrete", "n_bin": 4},
        "vlm": {
            "size": "tiny",
            "vocabulary": ["lift", "the", "red", "green", "blue", "cube", "up"],
        },
        "action": {
            "space": "eef_delta",
            "frame": "base",
            "rotation": "rotation_vector",
            "composition": "chained",
            "step_duration": 0.05,
            "units": {"translation": 1.0, "rotation": 1.0},
            "gripper": {"open_value": 1},
        },
        "training": {"hindsight": {}},
    }
    with pytest.raises(ConfigError, match="'discrete'"):
        HindsightObjective(build_policy(config_from_mapping(mapping, "test"), 0))


@pytest.mark.parametrize("policy", sorted(BACKBONES), indirect=True)
def test_instructions_side_by_side_give_what_each_gives_alone(policy, batch):
    """Images once, C instructions: the features of the repeated batch, and the same shift."""
    objective = HindsightObjective(policy, Habit(HORIZON, np.full(6, 0.01)).eval())
    pair = {name: torch.stack((batch[name], batch[name]), 1) for name in ("actions", "mask")}
    seen = torch.stack((batch["hindsight"], batch["hindsight"]), 1)
    seen[:, 1, :, 0] += 0.1
    words = [("lift red", "lift green")] * 4
    both = {**batch, **pair, "hindsight": seen, "instruction": words}
    inputs = objective.inputs(both, torch.Generator().manual_seed(0))
    assert inputs["looks"] == 2 and inputs["arm"].shape[0] == 8
    assert inputs["images"]["wrist"].shape[0] == 4
    features = objective._features(inputs)
    images = {"wrist": inputs["images"]["wrist"].repeat(2, 1, 1, 1, 1)}
    torch.testing.assert_close(features, policy.action_features({**inputs, "images": images}))
    before = seen[:, :, 0, :3]
    after = inputs["hindsight"].unflatten(0, (2, -1))[:, :, 0, :3]
    ways = (after.transpose(0, 1) - before)[[0, 3]]  # those that are free, under both
    assert (ways.norm(dim=-1) > 0.001).all()
    result = objective(inputs)
    result["loss"].backward()
    assert torch.isfinite(result["loss"])
