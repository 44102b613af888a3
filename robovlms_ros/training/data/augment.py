"""Image augmentation: random shifts (DrQ, arXiv 2107.09645), drawn and interpolated as RoboVLMs
does; colour."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from robovlms_ros.config.training import AugmentConfig

YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))
"""From RGB to luma and two axes of colour (NTSC)."""


def random_shift(images: Tensor, pad: int, shared: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """images (N, C, S, S) shifted by up to `pad` pixels each way, edges replicated.

    shared: one shift for all N (a trajectory's frames stay consistent), else one per image. The
    draw comes from `generator`, or torch's own.
    """
    drawn = draw_shifts(1 if shared else len(images), pad, images, generator)
    return shift_images(images, drawn, pad)


def draw_shifts(count: int, pad: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """(count, 1, 1, 2) of whole pixels from 0 to 2 pad, x first; pad is no shift."""
    return torch.randint(
        0, 2 * pad + 1, (count, 1, 1, 2), device=like.device, dtype=like.dtype, generator=generator
    )


def shift_images(images: Tensor, drawn: Tensor, pad: int) -> Tensor:
    """images (N, C, S, S) shifted as `draw_shifts` drew: what is seen moves by pad - drawn."""
    count, _, size, width = images.shape
    if size != width:
        raise ValueError(f"random_shift: images of {size} x {width} pixels: must be square.")
    extent = size + 2 * pad
    padded = functional.pad(images, (pad, pad, pad, pad), mode="replicate")
    edge = 1.0 / extent
    line = torch.linspace(-1.0 + edge, 1.0 - edge, extent, device=images.device, dtype=images.dtype)[:size]
    columns = line.expand(size, size)
    grid = torch.stack([columns, columns.T], dim=-1)  # (S, S, 2) as (x, y)
    shifted = grid + drawn * 2.0 / extent  # (N or 1, S, S, 2)
    return functional.grid_sample(padded, shifted.expand(count, -1, -1, -1), padding_mode="zeros", align_corners=False)


def augment_windows(images: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """images (B, W, 3, S, S) in 0..1, one camera's: shifted and recoloured, a window's frames
    alike; still in 0..1.

    generator: on the images' device.
    """
    batch, window, _, size, _ = images.shape
    pad = round(config.shift * size)
    if pad:
        images = random_shift(images.reshape(batch, window * 3, size, size), pad, generator=generator).view_as(images)

    def draw(half_width: float, channels: int = 1) -> Tensor:
        even = (
            torch.rand((batch, 1, channels, 1, 1), generator=generator, device=images.device) * 2
            - 1
        )
        return half_width * even

    if config.brightness:
        images = images * (1 + draw(config.brightness))
    if config.channels:
        images = images * (1 + draw(config.channels, 3))
    if config.offset:
        images = images + draw(config.offset)
    if config.contrast:
        mean = luma(images).mean(dim=(-1, -2), keepdim=True)
        images = mean + (images - mean) * (1 + draw(config.contrast))
    if config.saturation:
        grey = luma(images)
        images = grey + (images - grey) * (1 + draw(config.saturation))
    if config.hue:
        images = turn_hue(images, 2 * math.pi * draw(config.hue))
    return images.clamp(0, 1)


def luma(images: Tensor) -> Tensor:
    """(..., 3, S, S) to (..., 1, S, S), ITU-R BT.601."""
    weights = torch.tensor(YIQ[0], dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(dim=-3, keepdim=True)


def turn_hue(images: Tensor, angle: Tensor) -> Tensor:
    """images (B, W, 3, S, S) with their colours turned by angle (B, 1, 1, 1, 1) rad around the
    grey axis of YIQ."""
    to_yiq = torch.tensor(YIQ, dtype=images.dtype, device=images.device)
    cosine = torch.cos(angle).flatten()
    sine = torch.sin(angle).flatten()
    turn = torch.zeros(len(cosine), 3, 3, dtype=images.dtype, device=images.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cosine
    turn[:, 1, 2], turn[:, 2, 1] = -sine, sine
    matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq  # (B, 3, 3)
    return torch.einsum("bij,bwjhk->bwihk", matrix, images)
