"""RoboVLMs' own rule of windows and chunks, on frame numbers: what its data sets give, recorded cases compared.

`windows` cuts the same windows (without `left_pad`, sample `sliding`) out of episodes one at a time, at any stride of
the history, and masks single steps of a chunk.
"""

from typing import Literal

import torch
from torch import Tensor


def action_chunks(actions: Tensor, horizon: int) -> Tensor:
    """(..., T, A) to (..., T - horizon + 1, horizon, A): row t holds the actions t .. t + horizon - 1."""
    return actions.unfold(-2, horizon, 1).movedim(-1, -2)


def episode_windows(
    length: int, window: int, horizon: int, left_pad: bool = False, sample: Literal["sliding", "range"] = "sliding"
) -> tuple[Tensor, Tensor]:
    """Frame indices (S, window + horizon) of an episode's samples, and a mask of those that exist.

    Each sample is `window` frames of history and `horizon` that follow, clamped to the episode. left_pad: samples whose
    history begins before the episode are kept too. sample `range`: each window `window` times, the i-th with its i
    oldest frames masked, so that a policy sees every length of history.
    """
    first = -(window - 1) if left_pad else 0
    starts = torch.arange(first, length - window + 1)
    indices = starts[:, None] + torch.arange(window + horizon)  # (S, window + horizon)
    mask = (indices >= 0) & (indices < length)
    indices = indices.clamp(0, length - 1)
    if sample == "range":
        seen = torch.arange(window + horizon) >= torch.arange(window)[:, None]  # (window, window + horizon)
        mask = (mask[:, None] & seen).flatten(0, 1)
        indices = indices.repeat_interleave(window, dim=0)
    return indices, mask
