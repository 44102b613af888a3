"""Positions on several axes (M-RoPE, arXiv 2409.12191): words count up, an image's tokens span a
grid."""

import torch
from torch import Tensor


def grid_positions(kinds: Tensor, image_kind: int, counted: Tensor, grids: tuple[tuple[int, int, int], ...]) -> Tensor:
    """(3, N, L) int64 positions (time, height, width) of a sequence.

    kinds: (N, L), the same number of images in every row, each a run of `image_kind` columns.
        counted: (N, L) bool, the
    columns that take a position; others stay at 0 and advance nothing. grids: (t, h, w) of each
    image in a row's order.
    """
    positions = torch.zeros(3, *kinds.shape, dtype=torch.int64)
    for row in range(kinds.shape[0]):
        columns = counted[row].nonzero().flatten().tolist()
        images = (kinds[row] == image_kind).tolist()
        remaining = iter(grids)
        position = 0
        i = 0
        while i < len(columns):
            if not images[columns[i]]:
                positions[:, row, columns[i]] = position
                position += 1
                i += 1
                continue
            t, h, w = next(remaining)
            axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
            run = columns[i : i + t * h * w]
            positions[:, row, run] = torch.stack([axis.flatten() for axis in axes]) + position
            position += max(h, w)
            i += len(run)
    return positions.to(kinds.device)
