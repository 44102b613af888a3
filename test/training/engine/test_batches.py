"""From windows to a batch.

- Pixels equal the running policy's own image processor, bit for bit.
- Action tokens: prompt, chunk, eos; nothing is learned of prompts, padding and masked steps; a padded row has the loss
  that it has alone; the values come back within half a bin.
- Augmentation: a window's frames change alike, cameras and windows differently; hue turns colour and keeps luma; it
  depends on the generator alone.
"""

import numpy as np
import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.training import AugmentConfig
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.data.augment import augment_windows, luma, turn_hue
from robovlms_ros.training.engine.batches import Collate, model_batch
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.trainer import seed_step

STILL = dict.fromkeys(("shift", "brightness", "contrast", "saturation", "hue"), 0.0)


@pytest.fixture
def discrete(make_training_config):
    block = {"type": "discrete", "action_space": "discrete", "n_bin": 32}
    return make_training_config(action_head=block, vlm={"vocabulary": []})


def test_pixels_are_the_policys_own(make_training_config, make_windows):
    config = make_training_config(cameras=["static", "wrist"], proprioception={"names": ["eef_position", "gripper"]})
    policy = build_policy(config)
    windows = make_windows(config, size=45)
    rng = np.random.default_rng(0)
    rows = [{**windows[i], "images": {c: rng.integers(0, 256, (2, 37, 53, 3), dtype=np.uint8) for c in config.cameras}}
            for i in (0, 9)]
    batch = model_batch(policy, Collate(config, policy.vlm.image_size)(rows))
    for name in config.cameras:
        wanted = torch.stack([torch.stack([policy.vlm.image_processor(f) for f in r["images"][name]]) for r in rows])
        assert torch.equal(batch["images"][name], wanted)
    assert batch["proprioception"].shape == (2, 2, 4) and batch["arm"].shape == (2, 2, 3, 6)
    assert torch.equal(batch["gripper"], torch.from_numpy(np.stack([r["actions"][..., -1] for r in rows])))


def test_action_tokens_follow_the_prompt(discrete, make_windows):
    policy = build_policy(discrete)
    prompt, tokens = policy.prompt, policy.head.tokens
    windows = make_windows(discrete)
    last = windows[5]  # one step of the chunk is left
    assert last["mask"].sum(axis=1).tolist() == [1, 1]
    batch = model_batch(policy, Collate(discrete, 28)([windows[0], last]))
    words = prompt.ids(windows[0]["instruction"])
    row, labels = batch["input_ids"][0, 0], batch["labels"][0, 0]
    assert row[: len(words)].tolist() == words and (labels[: len(words)] == -100).all()
    taught = row[len(words) : len(words) + 21]
    values = tokens.decode(taught.numpy()).reshape(3, 7)
    truth = windows[0]["actions"][0].astype(float)
    truth[:, -1] = 2 * truth[:, -1] - 1
    assert np.abs(values - truth).max() <= 2 / 31 / 2 + 1e-9 + (1 / 31)  # half a bin; the top edge a whole one
    assert torch.equal(labels[len(words) : len(words) + 21], taught) and int(labels[len(words) + 21]) == prompt.eos_id
    assert (batch["labels"][1] != -100).sum(dim=-1).tolist() == [7, 7]


def test_padded_row_of_tokens_has_the_loss_it_has_alone(discrete, make_windows):
    policy = build_policy(discrete, seed=3)
    windows = make_windows(discrete)
    long = {**windows[0], "instruction": "lift the red cube and then the green cube"}
    objective, collate = Objective(policy).eval(), Collate(discrete, 28)
    with torch.no_grad():
        both = objective(model_batch(policy, collate([windows[1], long])))
        alone = [objective(model_batch(policy, collate([w]))) for w in (windows[1], long)]
    assert float(both["loss"]) == pytest.approx(np.mean([float(a["loss"]) for a in alone]), abs=1e-5)
    torch.testing.assert_close(both["newest"], torch.cat([a["newest"] for a in alone]))


def test_masked_tokens_alone_cost_nothing(discrete, make_windows):
    policy = build_policy(discrete)
    window = dict(make_windows(discrete)[0])
    window["mask"] = np.zeros_like(window["mask"])
    result = Objective(policy)(model_batch(policy, Collate(discrete, 28)([window])))
    assert float(result["loss"].detach()) == 0 and bool(result["newest"].isnan().all())


def test_tokens_with_proprioception_are_refused(make_training_config):
    block = {"type": "discrete", "action_space": "discrete", "n_bin": 32}
    config = make_training_config(action_head=block, vlm={"vocabulary": []}, proprioception={"names": ["gripper"]})
    with pytest.raises(ConfigError, match="no place for the robot's state"):
        Objective(build_policy(config))


def test_a_windows_frames_change_alike():
    frame = torch.rand(3, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    frame[1:] = frame[:1]
    images = frame.expand(3, 4, 3, 32, 32)
    changed = augment_windows(images, AugmentConfig(), torch.Generator().manual_seed(1))
    assert changed.shape == images.shape and float(changed.min()) >= 0 and float(changed.max()) <= 1
    assert torch.equal(changed[:, 0], changed[:, 3])
    assert not torch.allclose(changed[0], changed[1], atol=0.01) and not torch.allclose(changed, images, atol=0.01)
    again = augment_windows(images, AugmentConfig(), torch.Generator().manual_seed(1))
    assert torch.equal(changed, again)
    torch.testing.assert_close(augment_windows(images, AugmentConfig(**STILL), torch.Generator()), images)


def test_hue_turns_colour_and_keeps_luma():
    images = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = turn_hue(images, torch.tensor([0.4, -0.2]).view(2, 1, 1, 1, 1))
    torch.testing.assert_close(luma(turned), luma(images), atol=1e-4, rtol=0)
    assert float((turned - images).abs().max()) > 0.1
    back = turn_hue(turned, torch.tensor([-0.4, 0.2]).view(2, 1, 1, 1, 1))
    torch.testing.assert_close(back, images, atol=1e-4, rtol=0)
    grey = torch.full((1, 1, 3, 4, 4), 0.6)
    torch.testing.assert_close(turn_hue(grey, torch.full((1, 1, 1, 1, 1), 1.0)), grey, atol=5e-3, rtol=0)


def test_what_a_step_draws_depends_on_seed_step_and_process():
    def draw(*key):
        generator = seed_step(*key)
        return float(torch.rand((), generator=generator)), float(torch.rand(()))

    assert draw(1, 2, 0) == draw(1, 2, 0)
    assert len({draw(1, 2, 0), draw(1, 3, 0), draw(2, 2, 0), draw(1, 2, 1)}) == 4
