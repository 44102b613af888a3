"""From a camera's pixels to a model's input: bicubic squash by Pillow, scale, normalise. No
torchvision."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robovlms_ros.core.types import ObservationError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = (0.5, 0.5, 0.5)
SIGLIP_STD = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class ImageProcessor:
    """Squash to `size` x `size` (no crop, aspect not kept), divide by 255, subtract mean and divide
    by std.

    Bit for bit what torchvision's Resize(BICUBIC) on a PIL image, ToTensor and Normalize do.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __call__(self, image: NDArray[np.uint8], name: str = "image") -> Tensor:
        """(H, W, 3) uint8 RGB to (3, size, size) float32. Raises ObservationError naming the
        image."""
        check_image(image, name)
        resized = Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC)
        # (3, S, S)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(torch.float32).div_(255)
        return pixels.sub_(torch.tensor(self.mean)[:, None, None]).div_(torch.tensor(self.std)[:, None, None])


def check_image(image: NDArray[np.uint8], name: str = "image") -> None:
    """Raise ObservationError unless `image` is a non-empty (H, W, 3) uint8 array."""
    shape = getattr(image, "shape", None)
    dtype = getattr(image, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or 0 in shape:
        raise ObservationError(
            f"{name}: an array of shape {shape} and type {dtype}; must be (height, width, 3) uint8 RGB, not empty."
        )
