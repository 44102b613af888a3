"""Image augmentation: random shifts (DrQ, arXiv 2107.09645), drawn and interpolated as RoboVLMs does."""

import torch
from torch import Tensor
from torch.nn import functional


def random_shift(images: Tensor, pad: int, shared: bool = False, generator: torch.Generator | None = None) -> Tensor:
    """images (N, C, S, S) shifted by up to `pad` pixels each way, edges replicated.

    shared: one shift for all N (a trajectory's frames stay consistent), else one per image. The draw comes from
    `generator`, or torch's own.
    """
    count, _, size, width = images.shape
    if size != width:
        raise ValueError(f"random_shift: images of {size} x {width} pixels: must be square.")
    extent = size + 2 * pad
    padded = functional.pad(images, (pad, pad, pad, pad), mode="replicate")
    edge = 1.0 / extent
    line = torch.linspace(-1.0 + edge, 1.0 - edge, extent, device=images.device, dtype=images.dtype)[:size]
    columns = line.expand(size, size)
    grid = torch.stack([columns, columns.T], dim=-1)  # (S, S, 2) as (x, y)
    drawn = torch.randint(
        0, 2 * pad + 1, (1 if shared else count, 1, 1, 2), device=images.device, dtype=images.dtype, generator=generator
    )
    shifted = grid + drawn * 2.0 / extent  # (N or 1, S, S, 2)
    return functional.grid_sample(padded, shifted.expand(count, -1, -1, -1), padding_mode="zeros", align_corners=False)
