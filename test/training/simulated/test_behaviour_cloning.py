"""Behaviour cloning: windows stay inside their episode and carry every instruction's label, as the
running policy's state and the head's targets; frames grow and no shard is read twice; features
under a shared prefix equal the policy's own; a step lowers the loss; bfloat16 hardly changes it; an
interrupted run ends where an uninterrupted one does, on a GPU too; what is saved answers like what
was trained; a training plan is checked before anything is recorded.
"""

from dataclasses import fields

import numpy as np
import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError, build
from robovlms_ros.core.types import RobotState
from robovlms_ros.inference.action_pipeline import ActionPipeline
from robovlms_ros.inference.proprioception import state_vector
from robovlms_ros.sim.tasks.base import TRAINING_SEEDS
from robovlms_ros.sim.tasks.language import INSTRUCTIONS
from robovlms_ros.sim.tasks.objects import THINGS
from robovlms_ros.sim.training.objectives import CubeObjective, CubeWindows
from robovlms_ros.sim.training.pipeline import build_trainer, save_averaged
from robovlms_ros.sim.training.plans import Recipe, TrainingPlan, TrainingStage, load_plan
from robovlms_ros.sim.training.recording import shard_jobs
from robovlms_ros.sim.training.shards import CUBE_GOALS, DatasetError, DemonstrationSet, ShardFrames
from robovlms_ros.training.engine.shared_prefix import features_under_instructions
from robovlms_ros.training.engine.trainable import initialise

HORIZON = 4
"""Steps of the fixtures' chunks."""


def test_windows_stay_inside_their_episode(policy, shards, frames):
    data = DemonstrationSet(frames, window=4, stride=2)
    assert len(frames) == 36
    assert data.starts.tolist() == [e * 9 + i for e in range(4) for i in range(3)]
    windows = data.windows(np.array([2, 29]))
    assert windows.images.shape == (2, 4, 2, 28, 28, 3)
    assert windows.arm.shape == (2, 4, 2, HORIZON, 6) and windows.opened.shape == (2, 4, 2, HORIZON)
    second = np.load(shards[1] / "images.npy")
    assert np.array_equal(windows.images[1, 3], second[29 + 6 - 18])
    with pytest.raises(DatasetError, match="no episode is longer"):
        DemonstrationSet(frames, window=6, stride=2)
    with pytest.raises(DatasetError, match="demo-data"):
        ShardFrames(CubeObjective(policy, Recipe())).add([])


def test_frames_keep_what_the_running_policy_computes(policy):
    rng, config = np.random.default_rng(1), policy.config
    raw = {
        "poses": np.tile(np.eye(4), (5, 1, 1)),
        "joints": rng.normal(size=(5, 7)),
        "openings": rng.uniform(size=5),
        "things": rng.normal(size=(5, len(THINGS), 3)),
        "labels": rng.uniform(0, 0.02, (5, 2, HORIZON, 7)),
        "episodes": np.full(5, 7),
        "scenes": np.full(5, 7),
    }
    followed = rng.integers(0, 2, 5)
    order = np.stack((followed, 1 - followed), axis=1)
    raw["goals"] = np.array(CUBE_GOALS)[order]
    raw["poses"][:, :3, 3] = rng.normal(size=(5, 3))
    raw["labels"][..., 6] = rng.integers(0, 2, raw["labels"].shape[:-1])
    kept = CubeObjective(policy, Recipe()).columns(raw)
    assert {"images", *kept} == {field.name for field in fields(CubeWindows)}
    in_order = np.stack(
        [raw["labels"][i][order[i]] for i in range(5)]
    )  # swapping twice is swapping back
    arm, opened = ActionPipeline(config.action).encode(in_order)
    assert np.array_equal(kept["followed"], followed)
    assert np.array_equal(kept["arm"], arm) and np.array_equal(kept["opened"], opened)
    for i in range(5):
        state = RobotState(0, raw["joints"][i], None, raw["poses"][i], float(raw["openings"][i]))
        assert np.array_equal(kept["states"][i], state_vector(config.proprioception, state))
    assert np.array_equal(kept["hands"], raw["poses"][:, :3, 3]) and np.array_equal(
        kept["cubes"], raw["things"][:, :2]
    )


class Counting:
    """A reader that counts the shards that it was given."""

    kind = CubeWindows

    def __init__(self, objective):
        self.objective, self.read = objective, 0

    def columns(self, shard):
        self.read += 1
        return self.objective.columns(shard)


def test_frames_grow_and_read_no_shard_twice(policy, shards, frames):
    reader = Counting(CubeObjective(policy, Recipe()))
    grown = ShardFrames(reader).add(shards[:1])
    early = DemonstrationSet(grown, window=2, stride=2)
    assert len(grown) == 18 and early.starts.max() < 18
    assert grown.add(shards) is grown and grown.add(shards) is grown and grown.add([]) is grown
    assert (reader.read, grown.shards, len(grown)) == (2, 2, 36)
    late, whole = DemonstrationSet(grown, window=2, stride=2), DemonstrationSet(frames, window=2, stride=2)
    assert late.starts.tolist() == whole.starts.tolist() and late.starts.max() > 18
    for field in fields(CubeWindows):
        wanted = getattr(whole.windows(whole.starts), field.name)
        assert np.array_equal(getattr(late.windows(late.starts), field.name), wanted, equal_nan=True)
        first = getattr(early.windows(early.starts), field.name)
        assert np.array_equal(first, wanted[: len(early.starts)], equal_nan=True)


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


def augmented(policy, images, recipe, generator):
    """(B, W, cameras, 3, S, S)."""
    return torch.stack(
        list(CubeObjective(policy, recipe)._images(images, generator).values()), dim=2
    )


def test_augmentation_without_strength_only_scales(policy):
    images = torch.randint(0, 256, (2, 3, 2, 8, 8, 3), dtype=torch.uint8)
    still = Recipe(shift=0, gain=0.0, channel_gain=0.0, offset=0.0)
    plain = augmented(policy, images, still, torch.Generator())
    assert plain.shape == (2, 3, 2, 3, 8, 8)
    assert torch.allclose(plain, images.permute(0, 1, 2, 5, 3, 4) / 127.5 - 1, atol=1e-6)


def test_augmentation_changes_a_windows_frames_alike(policy):
    images = torch.randint(0, 256, (4, 1, 2, 28, 28, 3), dtype=torch.uint8).expand(
        4, 3, 2, 28, 28, 3
    )
    changed = augmented(policy, images, Recipe(), torch.Generator().manual_seed(1))
    assert torch.equal(changed[:, 0], changed[:, 2])
    others = augmented(policy, images, Recipe(shift=0), torch.Generator().manual_seed(2))
    assert not torch.allclose(changed[:, 0], others[:, 0])


def test_steps_lower_the_loss(policy, frames, tmp_path):
    initialise(policy, 0)
    recipe = Recipe(windows=8, shift=0)
    data = DemonstrationSet(frames, window=2, stride=2)
    trainer = build_trainer(policy, recipe, tmp_path, CubeObjective)
    losses = [float(trainer.train_step(data, 2e-3)["loss"]) for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_bfloat16_hardly_changes_the_loss(policy, frames, tmp_path):
    initialise(policy, 0)
    data = DemonstrationSet(frames, window=2, stride=2)
    objective = CubeObjective(policy, Recipe())
    both = []
    for rounded in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            inputs = objective.inputs(
                data.windows(data.starts[:8]), torch.Generator().manual_seed(0)
            )
            both.append(objective(inputs))
    for name in objective.reported:
        one, other = (losses[name] for losses in both)
        assert one.dtype == other.dtype == torch.float32
        assert one != other, f"{name}: nothing was rounded"
        torch.testing.assert_close(other, one, rtol=0.02, atol=0.0)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    trainer = build_trainer(
        policy, Recipe(windows=4, precision="bfloat16"), tmp_path, CubeObjective, threads=2
    )
    assert torch.isfinite(trainer.train_step(data, 1e-3)["loss"])
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in policy.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in policy.named_parameters())
    with pytest.raises(ConfigError, match="recipe.precision = 'float16': must be float32 or bfloat16"):
        Recipe(precision="float16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gpu_trains_and_goes_on(policy_mapping, shards, frames, tmp_path, precision):
    def trainer():
        recipe = Recipe(windows=4, precision=precision)
        policy = build_policy(config_from_mapping(policy_mapping))
        return build_trainer(policy, recipe, tmp_path, CubeObjective, threads=2, device="cuda")

    first = trainer()
    there = ShardFrames(first.module, "cuda").add(shards[:1])
    data, here = DemonstrationSet(there.add(shards), 2, 2), DemonstrationSet(frames, 2, 2)
    for field in fields(CubeWindows):
        moved = getattr(data.windows(data.starts), field.name)
        assert moved.is_cuda and torch.equal(moved.cpu(), getattr(here.windows(here.starts), field.name))
    first.run(data, TrainingStage(3))
    second = trainer()
    assert second.step == 3
    wanted = first.module.state_dict()
    assert all(
        torch.equal(value, wanted[name]) for name, value in second.module.state_dict().items()
    )
    losses = second.train_step(data, 1e-3)
    assert losses["loss"].is_cuda and torch.isfinite(losses["loss"])
    loaded = load_policy(save_averaged(second, tmp_path / "checkpoint"))
    assert all(torch.isfinite(p).all() for p in loaded.parameters())


def test_interrupted_run_ends_where_an_uninterrupted_one_does(policy_mapping, frames, tmp_path):
    data = DemonstrationSet(frames, window=2, stride=2)
    recipe, stage = Recipe(windows=2, warmup=2), TrainingStage(6)

    def run(folder, stops):
        for stop in stops:
            trainer = build_trainer(
                build_policy(config_from_mapping(policy_mapping)), recipe, folder, CubeObjective
            )
            while trainer.step < stop:
                trainer.train_step(
                    data, stage.learning_rate * recipe.schedule.factor(trainer.step, stage.steps)
                )
            trainer.save()
        return load_policy(save_averaged(trainer, folder / "checkpoint"))

    whole, parts = run(tmp_path / "whole", [6]), run(tmp_path / "parts", [2, 5, 6])
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_threads_take_the_mean_gradient_of_their_parts(policy, frames, tmp_path):
    data = DemonstrationSet(frames, 2, 2)
    recipe = Recipe(windows=3, shift=0, gain=0.0, channel_gain=0.0, offset=0.0, state_noise=0.0)
    gradients = []
    for threads in (1, 2):  # parts of 3, and of 2 and 1 windows; nothing is drawn but the windows
        trainer = build_trainer(
            policy, recipe, tmp_path / str(threads), CubeObjective, threads=threads
        )
        trainer.update = lambda rate: gradients.append(
            {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
        )
        trainer.train_step(data, 0.0)
        policy.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_what_is_saved_answers_like_what_was_trained(policy, frames, tmp_path):
    data = DemonstrationSet(frames, window=2, stride=2)
    trainer = build_trainer(policy, Recipe(windows=2), tmp_path / "run", CubeObjective)
    trainer.run(data, TrainingStage(4))
    assert build_trainer(policy, Recipe(windows=2), tmp_path / "run", CubeObjective).step == 4
    loaded = load_policy(save_averaged(trainer, tmp_path / "checkpoint"))
    assert not loaded.is_random
    batch = {
        "images": {name: torch.randn(1, 2, 3, 28, 28) for name in policy.config.cameras},
        "proprioception": torch.zeros(1, 2, 4),
        **policy.tokenize([next(iter(INSTRUCTIONS))]),
    }
    with torch.no_grad(), trainer.averaged():
        assert torch.equal(policy.eval()(batch).arm, loaded(batch).arm)
    assert not any("auxiliary" in key for key in loaded.state_dict())


def test_raw_weights_come_back_after_the_averaged_ones(policy, frames, tmp_path):
    trainer = build_trainer(policy, Recipe(windows=2), tmp_path, CubeObjective)
    trainer.run(DemonstrationSet(frames, window=2, stride=2), TrainingStage(3))
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    with trainer.averaged():
        assert not all(torch.equal(p, before[name]) for name, p in policy.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_learning_rate_rises_stays_and_falls():
    schedule = Recipe(warmup=100, constant_part=0.5, final_rate=0.05).schedule
    rates = [schedule.factor(step, 1000) for step in (0, 49, 100, 499, 750, 1000)]
    assert rates[:4] == pytest.approx([0.01, 0.5, 1.0, 1.0])
    assert rates[4] == pytest.approx(0.525) and rates[5] == pytest.approx(0.05)


def test_objective_counts_every_instruction(policy, frames):
    data = DemonstrationSet(frames, window=2, stride=2)
    objective = CubeObjective(policy, Recipe())
    loss = objective(
        objective.inputs(data.windows(data.starts[:3]), torch.Generator().manual_seed(0))
    )["loss"]
    assert torch.isfinite(loss) and loss.requires_grad


def test_shipped_plan_is_runnable_and_uses_training_seeds_only():
    plan = load_plan(share_directory() / "config" / "train" / "demo.yaml")
    assert plan.policy_config.model.action_chunk_size >= 16
    assert plan.policy_config.action.step_duration == 0.05
    jobs = shard_jobs(share_directory(), TRAINING_SEEDS[:25], 10, "panda", "cubes")
    assert [len(job.seeds) for job in jobs] == [10, 10, 5]
    assert all(seed in TRAINING_SEEDS for job in jobs for seed in job.seeds)


def test_plans_are_checked(policy_mapping):
    with pytest.raises(ConfigError, match="untrained policy"):
        TrainingPlan(policy_mapping, (TrainingStage(10, episodes=5),))
    with pytest.raises(ConfigError, match=r"stages\[1\].ahead = True: must be false: .* no trained policy"):
        TrainingPlan(policy_mapping, (TrainingStage(10), TrainingStage(10, episodes=5, ahead=True)))
    TrainingPlan(policy_mapping, (TrainingStage(10), TrainingStage(10, demonstrations=5, ahead=True)))
    with pytest.raises(ConfigError, match="shard"):
        TrainingPlan(policy_mapping, (TrainingStage(10),), episodes=5, shard=6)
    with pytest.raises(ConfigError, match=r"stages\[0\]: unknown key 'step'"):
        build(TrainingPlan, {"policy": policy_mapping, "stages": [{"step": 3}]}, "plan.yaml")
