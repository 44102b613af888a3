"""Settings of the engine that the simulated arm's recipes use, on any policy.

- Averaged weights equal an independent recomputation; validation and checkpoints have them,
training goes on from the
  newest; a stopped run ends at the same ones.
- A narrow Huber loss has slope 1 outside; biases and norms are left out of the weight decay; noise
on proprioception
  and per-channel gain and offset have their strength.
- Stages of drawn windows train any policy; interrupted, they end where an uninterrupted run does. -
Bad values are refused by name.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
from robovlms_ros.config.training import AugmentConfig, TrainingConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.training.data.augment import augment_windows
from robovlms_ros.training.engine.batches import Collate, model_batch
from robovlms_ros.training.engine.fit import fit
from robovlms_ros.training.engine.objective import Objective, action_loss
from robovlms_ros.training.engine.stages import Stage, StageTrainer
from robovlms_ros.training.engine.trainable import optimiser


def test_checkpoints_have_the_average(make_training_config, make_windows, tmp_path):
    config = make_training_config(training={"average": 0.9, "epochs": 2, "weight_decay": 0.1})
    policy = build_policy(config, seed=1)
    windows = make_windows(config, episodes=2)
    mean = {name: p.detach().clone() for name, p in policy.named_parameters()}

    def on_step(step, values):
        keep = min(0.9, step / (step + 10))
        for name, p in policy.named_parameters():
            mean[name] = keep * mean[name] + (1 - keep) * p.detach()

    loaded = load_policy(fit(policy, windows, None, config, tmp_path / "whole", on_step))
    for name, value in loaded.named_parameters():
        torch.testing.assert_close(value, mean[name], atol=1e-6, rtol=0)
    assert any(not torch.equal(p, mean[name]) for name, p in policy.named_parameters()), (
        "training keeps the newest"
    )
    for steps in (2, None):
        part = make_training_config(
            training={
                "average": 0.9,
                "epochs": 2,
                "weight_decay": 0.1,
                "max_steps": steps,
                "save_every": 1,
            }
        )
        place = fit(build_policy(part, seed=1), windows, None, part, tmp_path / "parts")
    for name, value in load_policy(place).named_parameters():
        assert torch.equal(value, loaded.get_parameter(name)), name


def test_narrow_huber_loss():
    output = HeadOutput(torch.randn(2, 3, 4, 6, requires_grad=True), torch.randn(2, 3, 4, 1))
    arm = torch.randn(2, 3, 4, 6)
    losses = action_loss(output, arm, torch.ones(2, 3, 4), delta=0.1)
    torch.testing.assert_close(losses.arm, functional.huber_loss(output.arm, arm, delta=0.1) / 0.1)
    assert losses.steps.shape == (2, 3, 4) and not losses.steps.requires_grad
    torch.testing.assert_close(losses.steps.mean(), losses.arm.detach())
    slope = torch.autograd.grad(losses.arm, output.arm)[0] * output.arm.numel()
    outside = (output.arm - arm).abs() > 0.1
    torch.testing.assert_close(slope[outside].abs(), torch.ones_like(slope[outside]))


def test_vectors_are_left_out_of_the_decay(make_training_config):
    policy = build_policy(make_training_config())
    training = TrainingConfig(weight_decay=0.3, decay_vectors=False)
    matrices, vectors = optimiser(policy, training, torch.device("cpu")).param_groups
    assert matrices["weight_decay"] == 0.3 and vectors["weight_decay"] == 0.0
    assert all(p.ndim > 1 for p in matrices["params"]) and all(
        p.ndim <= 1 for p in vectors["params"]
    )
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(policy.parameters()))


def test_state_noise_is_on_the_normalised_scale(make_training_config, make_windows):
    state = {"names": ["eef_position", "gripper"], "mean": [0.0] * 4, "std": [0.1, 0.2, 0.3, 0.4]}
    config = make_training_config(proprioception=state)
    policy = build_policy(config)
    batch = Collate(config, policy.vlm.image_size)([make_windows(config)[0]] * 400)
    plain = model_batch(policy, batch, state_noise=0.5)["proprioception"]
    assert torch.equal(plain, batch["proprioception"]), "without a generator nothing is drawn"
    noisy = model_batch(policy, batch, None, torch.Generator().manual_seed(0), 0.5)[
        "proprioception"
    ]
    spread = (noisy - plain).std(dim=(0, 1))
    torch.testing.assert_close(spread, 0.5 * torch.tensor(state["std"]), rtol=0.1, atol=0.0)


def test_channels_and_offset_change_a_windows_frames_alike():
    still = dict.fromkeys(("shift", "brightness", "contrast", "saturation", "hue"), 0.0)
    grey = torch.full((200, 2, 3, 4, 4), 0.5)
    for name, bound in (("channels", 0.05), ("offset", 0.1)):
        config = AugmentConfig(**still, **{name: 0.1})
        changed = augment_windows(grey, config, torch.Generator().manual_seed(0)) - 0.5
        assert torch.equal(changed[:, 0], changed[:, 1])
        assert 0.9 * bound < changed.abs().max() <= bound + 1e-6
        same = (changed == changed[:, :, :1]).all()
        assert bool(same) == (name == "offset"), "channels change each for itself"


class CollatedWindows:
    """Windows of the tests as a stage draws them."""

    def __init__(self, policy, windows):
        self._collate, self._windows = Collate(policy.config, policy.vlm.image_size), windows
        self.starts = np.arange(len(windows))

    def windows(self, starts):
        return self._collate([self._windows[int(start)] for start in starts])


@pytest.mark.parametrize("threads", [1, 2])
def test_stages_train_any_policy(make_training_config, make_windows, tmp_path, threads):
    training = {"batch_size": 4, "average": 0.99, "save_every": 3}
    config = make_training_config("kosmos", training=training)  # with dropout
    stage = Stage(6, 2e-3, focus=0.5)

    def run(folder, stops):
        for stop in stops:
            policy = build_policy(config, seed=2)
            data = CollatedWindows(policy, make_windows(config))
            trainer = StageTrainer(Objective(policy), config.training, folder, threads=threads)
            while trainer.step < stop:
                trainer.train_step(data, stage.learning_rate, stage)
            trainer.save()
        return trainer

    whole, parts = run(tmp_path / "whole", [6]), run(tmp_path / "parts", [2, 6])
    known = whole.extra_state()["sampling.losses"]
    assert 4 <= torch.isfinite(known).sum() <= len(known) and known.nanmean() > 0
    before = build_policy(config, seed=2)
    assert any(
        not torch.equal(p, before.get_parameter(n)) for n, p in whole.policy.named_parameters()
    )
    if threads == 1:  # threads share the generator of dropout
        for name, value in whole.average.values.items():
            assert torch.equal(value, parts.average.values[name]), name


@pytest.mark.parametrize(("name", "value", "allowed"), [
    ("average", 1.0, "below 1"), ("huber", 0.0, "above 0"), ("state_noise", -0.1, "0 to 1"),
])
def test_bad_values_are_refused_by_name(name, value, allowed):
    with pytest.raises(ConfigError, match=rf"training\.{name} = {value}.*{allowed}"):
        TrainingConfig(**{name: value})
