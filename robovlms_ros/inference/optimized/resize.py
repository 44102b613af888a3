"""Pillow's bicubic squash as two matrix products, so that it can run where the model runs.

Pillow resamples uint8 images in two passes, each rounded to uint8, with an antialiased cubic kernel
(a = -1/2) whose weights are fixed-point numbers of 22 bits (Pillow, src/libImaging/Resample.c). The
same weights here, in float32: equal to Pillow within one of 255 levels. The order of the passes
depends on the sizes and on Pillow's version, so it is measured with Pillow, once per size.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.models.image_processor import ImageProcessor

CUBIC = -0.5
FIXED_POINT = 1 << 22


class ResizeError(RoboVLMsError):
    """An image cannot be resized as Pillow does it."""


def cubic(x: float) -> float:
    """Keys' cubic convolution kernel, 0 beyond 2."""
    x = abs(x)
    if x < 1.0:
        return ((CUBIC + 2.0) * x - (CUBIC + 3.0)) * x * x + 1.0
    return (((x - 5.0) * x + 8.0) * x - 4.0) * CUBIC if x < 2.0 else 0.0


@lru_cache(maxsize=32)
def resize_weights(source: int, target: int) -> Tensor:
    """(target, source) float32 weights of one pass, by Pillow's rule."""
    weights = np.zeros((target, source))
    scale = source / target
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    for i in range(target):
        centre = (i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        high = min(int(centre + support + 0.5), source)
        row = [cubic((x - centre + 0.5) / stretch) for x in range(low, high)]
        total = math.fsum(row)
        weights[i, low:high] = [w / total for w in row]
    fixed = np.trunc(weights * FIXED_POINT + np.copysign(0.5, weights))
    return torch.from_numpy(fixed / FIXED_POINT).to(torch.float32)


@lru_cache(maxsize=32)
def columns_first(height: int, width: int, target: int) -> bool:
    """True if the installed Pillow resizes such images along their rows first. Raises ResizeError
    where neither order of passes is within one level of it."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = np.array(Image.fromarray(noise).resize((target, target), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    pixels = torch.from_numpy(noise).permute(2, 0, 1).to(torch.float32)
    across = resize_weights(width, target)
    down = resize_weights(height, target)
    results = {first: squash(pixels, across, down, first) for first in (True, False)}
    worst = {first: float((x - torch.from_numpy(wanted)).abs().max()) for first, x in results.items()}
    best = worst[True] <= worst[False]
    if worst[best] > 1:
        raise ResizeError(
            f"resize of {height} x {width} pixels to {target}: {worst[best]:.0f} levels from Pillow's. Preprocess with "
            "Pillow (device_preprocess off)."
        )
    return best


def squash(pixels: Tensor, across: Tensor, down: Tensor, columns_first: bool) -> Tensor:
    """pixels (3, H, W) in 0..255, across (S, W), down (S, H) to (3, S, S), each pass rounded to
    whole levels."""
    if columns_first:
        return (down @ (pixels @ across.T).round_().clamp_(0, 255)).round_().clamp_(0, 255)
    return ((down @ pixels).round_().clamp_(0, 255) @ across.T).round_().clamp_(0, 255)


class DevicePreprocessor:
    """The image processor's work from uint8 on a device. Not thread-safe: on CUDA it keeps pinned
    buffers."""

    def __init__(self, processor: ImageProcessor, device: torch.device, dtype: torch.dtype):
        self.size = processor.size
        self.device = device
        self.dtype = dtype
        self._mean = torch.tensor(processor.mean, device=device)[:, None, None]
        self._std = torch.tensor(processor.std, device=device)[:, None, None]
        self._weights: dict[int, Tensor] = {}
        self._pinned: dict[tuple[int, tuple[int, ...]], Tensor] = {}

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(H, W, 3) uint8 images, of any sizes, to (N, 3, size, size) in the device's precision.

        On CUDA the pixels travel without waiting; the caller has to have waited for the device
        before the next call, which reading an answer does."""
        return torch.stack([self._one(i, image) for i, image in enumerate(images)])

    def _one(self, place: int, image: NDArray[np.uint8]) -> Tensor:
        pixels = self._upload(place, image).to(torch.float32).permute(2, 0, 1)  # (3, H, W)
        height, width = pixels.shape[1:]
        first = columns_first(height, width, self.size)
        # (3, size, size)
        small = squash(pixels, self._weights_for(width), self._weights_for(height), first)
        return small.div_(255).sub_(self._mean).div_(self._std).to(self.dtype)

    def _upload(self, place: int, image: NDArray[np.uint8]) -> Tensor:
        image = np.ascontiguousarray(image)
        host = torch.from_numpy(image if image.flags.writeable else image.copy())
        if self.device.type != "cuda":
            return host.to(self.device)
        key = (place, tuple(host.shape))
        if key not in self._pinned:
            self._pinned[key] = torch.empty_like(host, pin_memory=True)
        self._pinned[key].copy_(host)
        return self._pinned[key].to(self.device, non_blocking=True)

    def _weights_for(self, length: int) -> Tensor:
        if length not in self._weights:
            self._weights[length] = resize_weights(length, self.size).to(self.device)
        return self._weights[length]
