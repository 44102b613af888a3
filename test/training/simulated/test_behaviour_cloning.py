"""Behaviour cloning: windows stay inside their episode and carry every instruction's label; features under a shared
prefix equal the policy's own; a step lowers the loss; an interrupted run ends where an uninterrupted one does; what is
saved answers like what was trained; a training plan is checked before anything is recorded.
"""

import numpy as np
import pytest
import torch

from robovlms_ros.config import config_from_mapping
from robovlms_ros.policy.checkpoint import build_policy, load_policy, save_policy
from robovlms_ros.resources import share_directory
from robovlms_ros.schema import ConfigError, build
from robovlms_ros.sim.task import CUBES, INSTRUCTIONS, TRAINING_SEEDS
from robovlms_ros.training.simulated.behaviour_cloning import Learner, Recipe, Stage, augment, initialise, learning_rate
from robovlms_ros.training.simulated.pipeline import TrainingPlan, load_plan, shard_jobs
from robovlms_ros.training.simulated.shards import DatasetError, DemonstrationSet, find_shards
from robovlms_ros.training.simulated.shared_prefix import features_under_instructions
from robovlms_ros.training.simulated.trainer import Trainer

HORIZON = 4


@pytest.fixture(scope="module")
def policy_mapping():
    return {
        "model": {"backbone": "paligemma", "history_length": 2, "history_step": 0.1, "action_chunk_size": HORIZON},
        "action_head": {"type": "lstm", "hidden_size": 16, "num_layers": 1},
        "vlm": {"size": "tiny", "image_size": 28, "vocabulary": ["lift", "the", "red", "green", "cube"]},
        "cameras": ["static", "wrist"],
        "proprioception": {"names": ["eef_position", "gripper"]},
        "action": {
            "space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
            "step_duration": 0.05, "units": {"translation": 1.0, "rotation": 1.0}, "gripper": {"open_value": 1},
            "normalization": [{"method": "min_max", "low": [-0.02], "high": [0.02]}],
        },
    }


@pytest.fixture
def policy(policy_mapping):
    return build_policy(config_from_mapping(policy_mapping))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two made-up shards of two episodes of nine frames: the labels follow from the cubes' places."""
    root, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    for shard in range(2):
        folder, frames = root / str(shard), 18
        folder.mkdir()
        cubes = rng.uniform(-0.1, 0.1, (frames, len(CUBES), 3)).astype(np.float32)
        labels = np.ones((frames, len(CUBES), HORIZON, 7), np.float32)
        labels[..., :3] = 0.1 * cubes[:, :, None]
        labels[..., 3:6] = 0.0
        np.save(folder / "images.npy", rng.integers(0, 256, (frames, 2, 28, 28, 3), dtype=np.uint8))
        np.savez(
            folder / "frames.npz", poses=np.tile(np.eye(4), (frames, 1, 1)), joints=np.zeros((frames, 7)),
            openings=np.ones(frames, np.float32), cubes=cubes, labels=labels,
            episodes=np.repeat([2 * shard, 2 * shard + 1], 9),
        )
    return find_shards(root)


def test_windows_stay_inside_their_episode(shards):
    data = DemonstrationSet(shards, window=4, stride=2)
    assert len(data) == 36
    assert data.starts.tolist() == [e * 9 + i for e in range(4) for i in range(3)]
    windows = data.windows(np.array([2, 29]))
    assert windows.images.shape == (2, 4, 2, 28, 28, 3)
    assert windows.labels.shape == (2, 4, len(CUBES), HORIZON, 7)
    second = np.load(shards[1] / "images.npy")
    assert np.array_equal(windows.images[1, 3], second[29 + 6 - 18])
    with pytest.raises(DatasetError, match="no episode is longer"):
        DemonstrationSet(shards, window=6, stride=2)
    with pytest.raises(DatasetError, match="demo-data"):
        DemonstrationSet([], window=1, stride=1)


def test_shared_prefix_equals_the_policys_own_features(policy):
    batch, window = 3, 2
    generator = torch.Generator().manual_seed(0)
    images = {name: torch.randn(batch * window, 3, 28, 28, generator=generator) for name in policy.config.cameras}
    state = torch.randn(batch, window, 4, generator=generator)
    words = policy.tokenize(list(INSTRUCTIONS))
    with torch.no_grad():
        visual = policy.vlm.encode_frames(images)
        shared = features_under_instructions(
            policy.vlm, visual, words["input_ids"], words["attention_mask"], state, window
        )
        for c in range(len(INSTRUCTIONS)):
            ids, mask = (words[k][c : c + 1].expand(batch, -1) for k in ("input_ids", "attention_mask"))
            own = policy.vlm.forward_features(visual, ids, mask, state, window)
            assert torch.allclose(shared[c * batch : (c + 1) * batch], own, atol=1e-5)


def test_augmentation_without_strength_only_scales():
    images = torch.randint(0, 256, (2, 3, 2, 8, 8, 3), dtype=torch.uint8)
    still = Recipe(shift=0, gain=0.0, channel_gain=0.0, offset=0.0)
    plain = augment(images, still, torch.Generator())
    assert plain.shape == (2, 3, 2, 3, 8, 8)
    assert torch.allclose(plain, images.permute(0, 1, 2, 5, 3, 4) / 127.5 - 1, atol=1e-6)


def test_augmentation_changes_a_windows_frames_alike():
    images = torch.randint(0, 256, (4, 1, 2, 16, 16, 3), dtype=torch.uint8).expand(4, 3, 2, 16, 16, 3)
    changed = augment(images, Recipe(), torch.Generator().manual_seed(1))
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert not torch.allclose(changed[:, 0], augment(images, Recipe(shift=0), torch.Generator().manual_seed(2))[:, 0])


def test_steps_lower_the_loss(policy, shards, tmp_path):
    initialise(policy, 0)
    recipe = Recipe(windows=8, shift=0)
    data = DemonstrationSet(shards, window=2, stride=2)
    trainer = Trainer(policy, recipe, tmp_path)
    losses = [float(trainer.train_step(data, 2e-3).total.detach()) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_interrupted_run_ends_where_an_uninterrupted_one_does(policy_mapping, shards, tmp_path):
    data = DemonstrationSet(shards, window=2, stride=2)
    recipe, stage = Recipe(windows=2, warmup=2), Stage(6)

    def run(folder, stops):
        for stop in stops:
            trainer = Trainer(build_policy(config_from_mapping(policy_mapping)), recipe, folder)
            while trainer.step < stop:
                trainer.train_step(data, learning_rate(trainer.step, stage, recipe))
            trainer.save()
        return trainer.averaged()

    whole, parts = run(tmp_path / "whole", [6]), run(tmp_path / "parts", [2, 5, 6])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_threads_take_the_mean_gradient_of_their_parts(policy, shards, tmp_path):
    data = DemonstrationSet(shards, 2, 2)
    recipe = Recipe(windows=3, shift=0, gain=0.0, channel_gain=0.0, offset=0.0, state_noise=0.0)
    gradients = []
    for threads in (1, 2):  # parts of 3, and of 2 and 1 windows; nothing is drawn but the windows
        trainer = Trainer(policy, recipe, tmp_path / str(threads), threads=threads)
        trainer.train_step(data, 0.0)
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_saved_answers_like_what_was_trained(policy, shards, tmp_path):
    data = DemonstrationSet(shards, window=2, stride=2)
    trainer = Trainer(policy, Recipe(windows=2), tmp_path / "run")
    trainer.run(data, Stage(4))
    assert Trainer(policy, Recipe(windows=2), tmp_path / "run").step == 4
    trained = trainer.averaged()
    loaded = load_policy(save_policy(trained, tmp_path / "checkpoint"))
    assert not loaded.is_random
    batch = {
        "images": {name: torch.randn(1, 2, 3, 28, 28) for name in policy.config.cameras},
        "proprioception": torch.zeros(1, 2, 4),
        **trained.tokenize([next(iter(INSTRUCTIONS))]),
    }
    with torch.no_grad():
        assert torch.equal(trained(batch).arm, loaded(batch).arm)
    assert not any("auxiliary" in key for key in loaded.state_dict())


def test_raw_weights_come_back_after_the_averaged_ones(policy, shards, tmp_path):
    trainer = Trainer(policy, Recipe(windows=2), tmp_path)
    trainer.run(DemonstrationSet(shards, window=2, stride=2), Stage(3))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer.averaged()
    trainer.restore_raw()
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_learning_rate_rises_stays_and_falls():
    recipe, stage = Recipe(warmup=100, constant_part=0.5, final_rate=0.05), Stage(1000, 1.0)
    rates = [learning_rate(step, stage, recipe) for step in (0, 49, 100, 499, 750, 1000)]
    assert rates[:4] == pytest.approx([0.01, 0.5, 1.0, 1.0])
    assert rates[4] == pytest.approx(0.525) and rates[5] == pytest.approx(0.05)


def test_learner_counts_every_instruction(policy, shards):
    data = DemonstrationSet(shards, window=2, stride=2)
    losses = Learner(policy, Recipe()).losses(data.windows(data.starts[:3]), torch.Generator().manual_seed(0))
    assert torch.isfinite(losses.total) and losses.total.requires_grad


def test_shipped_plan_is_runnable_and_uses_training_seeds_only():
    plan = load_plan(share_directory() / "config" / "train" / "demo.yaml")
    assert plan.policy_config.model.action_chunk_size >= 16
    assert plan.policy_config.action.step_duration == 0.05
    jobs = shard_jobs(share_directory(), TRAINING_SEEDS[:25], 10, "panda")
    assert [len(job.seeds) for job in jobs] == [10, 10, 5]
    assert all(seed in TRAINING_SEEDS for job in jobs for seed in job.seeds)


def test_plans_are_checked(policy_mapping):
    with pytest.raises(ConfigError, match="untrained policy"):
        TrainingPlan(policy_mapping, (Stage(10, episodes=5),))
    with pytest.raises(ConfigError, match="shard"):
        TrainingPlan(policy_mapping, (Stage(10),), episodes=5, shard=6)
    with pytest.raises(ConfigError, match=r"stages\[0\]: unknown key 'step'"):
        build(TrainingPlan, {"policy": policy_mapping, "stages": [{"step": 3}]}, "plan.yaml")
