"""The image squash as matrix products, against Pillow.

- equal within 1/255 for down- and up-scaling, odd sizes, one side unchanged, black, white and noise; nearly all pixels
  equal exactly;
- the weights of a pass sum to one; frames of different sizes share a batch; a read-only or strided array is no trouble.
"""

import numpy as np
import pytest
import torch

from robovlms_ros.inference.optimized.resize import DevicePreprocessor, resize_weights
from robovlms_ros.models.image_processor import ImageProcessor

CPU = torch.device("cpu")


WIDE = [(480, 640), (200, 200), (84, 84), (224, 224), (37, 224), (720, 1280), (224, 91), (9, 7)]
TALL = [(640, 480), (300, 200), (500, 100), (1000, 225)]


@pytest.mark.parametrize("shape", WIDE + TALL)
def test_equals_pillow(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    hard = (noise > 127).astype(np.uint8) * 255
    smooth = np.broadcast_to(np.linspace(0, 255, shape[1]).astype(np.uint8)[None, :, None], (*shape, 3))
    processor = ImageProcessor(224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    ours = DevicePreprocessor(processor, CPU, torch.float32)([noise, hard, smooth])
    theirs = torch.stack([processor(np.ascontiguousarray(image)) for image in (noise, hard, smooth)])
    difference = (ours - theirs).abs()
    assert difference.max() <= 1.001 / 255
    assert (difference > 1e-6).float().mean() < 1e-3


def test_normalised_and_batched() -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 60), (60, 40))]
    images.append(images[0][::2, ::-1])
    images[0].setflags(write=False)
    processor = ImageProcessor(28)
    got = DevicePreprocessor(processor, CPU, torch.bfloat16)(images)
    wanted = torch.stack([processor(np.ascontiguousarray(image)) for image in images])
    assert got.shape == (3, 3, 28, 28) and got.dtype == torch.bfloat16
    assert (got.float() - wanted).abs().max() < 0.05


def test_weights_sum_to_one() -> None:
    for source, target in ((640, 224), (7, 28), (224, 224)):
        assert (resize_weights(source, target).double().sum(1) - 1).abs().max() < 1e-5
    assert torch.equal(resize_weights(224, 224), torch.eye(224))
