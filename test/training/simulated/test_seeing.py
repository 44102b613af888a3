"""Learning to see: points are projected as MuJoCo's own cameras project them; the patch heads are
told where a thing's centre lies and nothing of what is not there, where that is everything too; a
stage of seeing trains the vision tower and leaves the language model alone.
"""

import math

import mujoco
import numpy as np
import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.sim.rollout import build_loop
from robovlms_ros.sim.scene import BASE_POSITION, WRIST_CAMERA
from robovlms_ros.sim.tasks.domain_randomization import PLAIN
from robovlms_ros.sim.training.objectives import TaskObjective
from robovlms_ros.sim.training.pipeline import build_trainer
from robovlms_ros.sim.training.plans import Recipe, TrainingPlan, TrainingStage
from robovlms_ros.sim.training.shards import DatasetError, DemonstrationSet, ShardFrames, find_shards
from robovlms_ros.sim.training.vision_pretraining import NAMED, PATCH, Seeing, project
from robovlms_ros.sim.world import SimWorld
from robovlms_ros.training.engine.batches import TrainingError

pytestmark = pytest.mark.sim

NOT_TURNED = torch.full((2, len(NAMED)), torch.nan)


@pytest.mark.parametrize(("camera", "name", "tolerance"), [("static", "static", 1e-3), ("wrist", WRIST_CAMERA, 0.02)])
def test_points_are_projected_as_mujoco_does(camera, name, tolerance):
    world = SimWorld(0, blank_cameras=True, task="all", looks=PLAIN)
    model, data = world._model, world._data
    hand = build_loop(world).kinematics.forward(world.joint_state().positions)
    mujoco.mj_forward(model, data)
    places = np.random.default_rng(0).uniform((0.4, -0.1, -0.11), (0.6, 0.1, -0.05), (20, 3))
    camera_id = model.camera(name).id
    turned = (places + BASE_POSITION - data.cam_xpos[camera_id]) @ data.cam_xmat[camera_id].reshape(3, 3)
    focal = 0.5 / np.tan(np.radians(model.cam_fovy[camera_id]) / 2)
    expected = 0.5 + focal * turned[:, :2] * (1, -1) / -turned[:, 2:]
    found = project(camera, *(torch.from_numpy(x)[None] for x in (places, hand)))[0]
    assert np.allclose(found, expected, atol=tolerance)


def test_what_is_behind_a_camera_or_missing_is_nowhere():
    places = torch.tensor([[[2.0, 0.0, 1.0], [torch.nan] * 3]])
    assert torch.isnan(project("static", places, torch.eye(4)[None])).all()


def test_nothing_to_see_is_no_loss_that_is_not_a_number():
    seeing = Seeing({"static": 4, "wrist": 4}, 8)
    tokens = {name: torch.randn(2, 16, 8) for name in ("static", "wrist")}
    loss, error = seeing(tokens, torch.full((2, len(NAMED), 3), torch.nan), NOT_TURNED, torch.eye(4).repeat(2, 1, 1))
    loss.backward()
    assert error == 0 and all(torch.isfinite(p.grad).all() for p in seeing.parameters())


def test_patch_heads_learn_where_a_centre_is_and_how_a_cube_is_turned():
    """Two frames, one thing each, in patches that only the thing's place tells apart."""
    torch.manual_seed(0)
    seeing = Seeing({"static": 4}, 8)
    places = torch.full((2, len(NAMED), 3), torch.nan)
    places[0, 0], places[1, 1] = torch.tensor((0.45, -0.1, -0.09)), torch.tensor((0.6, 0.1, -0.09))
    turns = NOT_TURNED.clone()
    turns[0, 0], turns[1, 1] = 0.3, -0.7
    hands = torch.eye(4).repeat(2, 1, 1)
    tokens = {"static": torch.randn(2, 16, 8)}
    optimiser = torch.optim.Adam(seeing.parameters(), 0.02)
    for _ in range(150):
        loss, error = seeing(tokens, places, turns, hands)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    told = seeing.patch["static"](tokens["static"]).unflatten(-1, (len(NAMED), PATCH))  # (2, 16, names, PATCH)
    guess = told[..., 0]
    spots = project("static", places, hands) * 4
    for frame, name in ((0, 0), (1, 1)):
        column, row = spots[frame, name].int()
        assert guess[frame].flatten().argmax() == (4 * row + column) * len(NAMED) + name
        sine, cosine = told[frame, 4 * row + column, name, 3:].tolist()
        assert math.atan2(sine, cosine) / 4 == pytest.approx(float(turns[frame, name]), abs=0.02)
    assert float(error) < 0.02


def test_stage_of_seeing_trains_the_vision_tower_alone(small_mapping, folder, tmp_path):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer = build_trainer(policy, Recipe(windows=2), tmp_path, TaskObjective, threads=2)
    data = DemonstrationSet(ShardFrames(trainer.module).add(find_shards(folder)), 1, 2)
    losses = trainer.train_step(data, 1e-3, TrainingStage(1, seeing=True, windows=5))
    assert np.isfinite(float(losses["loss"])) and 0 < float(losses["target_error_m"]) < 1
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all("vision_tower" in name or "projector" in name for name in changed)


def test_frozen_vision_tower_stays_as_it_is(small_mapping, folder, tmp_path):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer = build_trainer(policy, Recipe(windows=2), tmp_path, TaskObjective)
    data = DemonstrationSet(ShardFrames(trainer.module).add(find_shards(folder)), 1, 2)
    trainer.train_step(data, 1e-3, TrainingStage(1, frozen_vision=True))
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed and not any("vision_tower" in name or "projector" in name for name in changed)
    assert any("language_model" in name for name in changed) and any(name.startswith("head") for name in changed)
    heads = {name: p.detach().clone() for name, p in trainer.module.sight.named_parameters()}
    kept = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer.train_step(data, 1e-3, TrainingStage(1, seeing=True, frozen_vision=True))
    assert all(torch.equal(p, kept[name]) for name, p in policy.named_parameters()), "only the heads learn"
    assert not any(
        torch.equal(p, heads[name]) for name, p in trainer.module.sight.named_parameters()
    )
    with pytest.raises(ConfigError, match=r"stages\[0\].frozen_vision = True: must be false without a `task`"):
        TrainingPlan(small_mapping["policy"], (TrainingStage(10, frozen_vision=True),))


def test_run_of_an_older_version_is_refused_by_name(small_mapping, folder, tmp_path):
    policy = build_policy(config_from_mapping(small_mapping["policy"]))
    trainer = build_trainer(policy, Recipe(windows=2), tmp_path / "run", TaskObjective)
    old = tmp_path / "shard"
    old.mkdir()
    with np.load(find_shards(folder)[0] / "frames.npz") as data:
        np.savez(old / "frames.npz", **{name: data[name] for name in data.files if name != "turns"})
    with pytest.raises(DatasetError, match=r"shard: there is no column 'turns', only .*Delete the folder"):
        ShardFrames(trainer.module).add([old])
    trainer.save()
    trainer.module.sight.patch["static"][1] = torch.nn.Linear(3, 3)
    with pytest.raises(
        TrainingError, match=r"state.safetensors: 2 parameters .*sight.patch.static.1.*--output"
    ):
        build_trainer(policy, Recipe(windows=2), tmp_path / "run", lambda *_: trainer.module)


def test_seeing_needs_the_simulators_knowledge(small_mapping):
    for rest in ({}, {"task": "all", "ground_truth": False}):
        with pytest.raises(ConfigError, match=r"stages\[0\].seeing"):
            TrainingPlan(small_mapping["policy"], (TrainingStage(10, seeing=True),), **rest)
