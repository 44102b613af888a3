"""Losses, augmentation, schedules and windows of training.

- The arm's loss is quadratic for small and linear for large errors; the gripper's weight is RoboVLMs' 0.01.
- Steps that the mask leaves out count for nothing, NaN targets included; an empty mask is 0, not NaN.
- Token loss: only action tokens enter the accuracies; a broken step is refused.
- A random shift moves pixels and invents none; shared shifts are equal; not-square images are refused.
- Schedules: warm-up, the top, the floor.
- Windows: padded ends repeat and are masked, chunk t begins at step t.
"""

import math

import pytest
import torch

from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.heads.discrete import ActionTokenizer
from robovlms_ros.training.data.augment import random_shift
from robovlms_ros.training.data.windows import action_chunks, episode_windows
from robovlms_ros.training.engine.objective import action_loss, token_loss
from robovlms_ros.training.engine.schedule import constant, half_cosine


def output(arm=0.0, logit=0.0, steps=2):
    return HeadOutput(torch.full((1, 1, steps, 6), arm), torch.full((1, 1, steps, 1), logit))


def test_values_by_hand():
    labels = torch.ones(1, 1, 2)
    small = action_loss(output(), torch.full((1, 1, 2, 6), 0.5), labels)
    large = action_loss(output(), torch.full((1, 1, 2, 6), 3.0), labels)
    assert small.arm.item() == pytest.approx(0.125) and large.arm.item() == pytest.approx(2.5)
    assert small.gripper.item() == pytest.approx(math.log(2))
    assert small.total().item() == pytest.approx(0.125 + 0.01 * math.log(2))
    assert action_loss(output(logit=1.0), torch.zeros(1, 1, 2, 6), labels).gripper_accuracy == 1.0


def test_masked_steps_count_for_nothing():
    arm = torch.zeros(1, 1, 2, 6)
    arm[0, 0, 1] = math.nan
    prediction = HeadOutput(torch.full((1, 1, 2, 6), 0.5, requires_grad=True), torch.zeros(1, 1, 2, 1))
    loss = action_loss(prediction, arm, torch.zeros(1, 1, 2), torch.tensor([[[True, False]]]))
    assert loss.arm.item() == pytest.approx(0.125)
    loss.arm.backward()
    assert torch.isfinite(prediction.arm.grad).all() and prediction.arm.grad[0, 0, 1].abs().sum() == 0
    empty = action_loss(prediction, arm, torch.zeros(1, 1, 2), torch.zeros(1, 1, 2, dtype=torch.bool))
    assert empty.arm == 0 and empty.gripper == 0


def test_token_loss_looks_at_action_tokens_alone():
    tokens = ActionTokenizer(100, 5, 32)
    labels = torch.full((1, 9), -100)
    labels[0, 1:8] = torch.from_numpy(tokens.encode(torch.linspace(-1, 1, 7).numpy()))
    labels[0, 8] = 2  # eos: learned, but no action
    logits = torch.zeros(1, 9, 100)
    logits[0, torch.arange(7), labels[0, 1:8]] = 20.0
    loss = token_loss(logits, labels, tokens)
    assert loss.arm_accuracy == 1 and loss.gripper_accuracy == 1 and loss.l1 == 0
    assert loss.cross_entropy.item() == pytest.approx(math.log(100) / 8, abs=1e-3)
    labels[0, 7] = -100
    with pytest.raises(ValueError, match="6 action tokens"):
        token_loss(logits, labels, tokens)


def test_random_shift_moves_pixels_and_invents_none():
    image = torch.arange(64.0).reshape(1, 1, 8, 8)
    images = image.expand(32, -1, -1, -1)
    generator = torch.Generator().manual_seed(0)
    shifted = random_shift(images, 2, generator=generator)
    torch.testing.assert_close(shifted, shifted.round(), atol=1e-3, rtol=0)
    assert shifted.min() >= -1e-3 and shifted.max() <= 63 + 1e-3
    assert len({tuple(x.round().flatten().tolist()) for x in shifted}) > 5
    shared = random_shift(images, 2, shared=True, generator=generator)
    assert (shared == shared[:1]).all()
    torch.testing.assert_close(random_shift(images, 0), images, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="square"):
        random_shift(torch.zeros(1, 3, 4, 5), 1)


def test_schedules():
    assert [constant(step, 4) for step in (0, 2, 4, 100)] == [0.0, 0.5, 1.0, 1.0]
    assert constant(0, 0) == 1.0
    assert [half_cosine(step, 10, 110) for step in (0, 5, 10, 110, 500)] == pytest.approx([0, 0.5, 1, 0.01, 0.01])
    assert half_cosine(60, 10, 110) == pytest.approx(0.505)


def test_windows_and_chunks():
    indices, mask = episode_windows(4, window=2, horizon=2, left_pad=True)
    assert indices.tolist() == [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3], [2, 3, 3, 3]]
    assert mask.tolist()[0] == [False, True, True, True] and mask.tolist()[3] == [True, True, False, False]
    chunks = action_chunks(torch.arange(10.0).reshape(5, 2), 3)
    assert chunks.shape == (3, 3, 2) and chunks[1].tolist() == [[2, 3], [4, 5], [6, 7]]
