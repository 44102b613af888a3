"""Auxiliary targets of the images alone in training: the place of every object, before any word is
read.

A small vision tower learns this slowly from actions, and nothing else can be learned before it. So
it is taught by the
simulator: each image token names the things whose centres lie in its patch and how a cube there is
turned (a hand that takes the mean of two turns never closes), and all tokens together determine
where everything is. A saved policy holds none of this.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.sim.scene import BASE_POSITION, STATIC_CAMERA
from robovlms_ros.sim.tasks.objects import PLATES, THINGS

NAMED = (*THINGS, *PLATES)
PLACE_SCALE = 0.1
"""Metres per unit of a place."""
TABLE_CENTRE = np.array((0.5, 0.0, -0.1))
"""Where places on the table are counted from (m, base frame)."""
WRIST_OFFSET = np.array((0.0, 0.05, -0.097))
"""The wrist camera's position in the end effector's frame (m); it looks along that frame's z, its
up is y."""
WRIST_FOVY = 75.0
FOUND_WEIGHT = 6.0
"""Of a token with a thing in its patch against one without: most have none."""
PATCH = 5
"""What a token tells of a name: how surely its centre is there, where in the patch (2), and of four
times a cube's turn the sine and the cosine, as a cube looks alike after a quarter."""


class Seeing(nn.Module):
    """Heads over the image tokens. grids: per camera, `static` or `wrist`, the patches along a
    side; width: of a token.

    The loss has three parts: which names' centres lie in a token's patch, where in it, and how a
    cube is turned there; where every thing and plate is, on the table and relative to the hand; and
    whether it is there.
    """

    def __init__(self, grids: dict[str, int], width: int) -> None:
        super().__init__()
        self._grids = grids
        tokens = sum(grid * grid for grid in grids.values())
        self.patch = nn.ModuleDict({
            name: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PATCH * len(NAMED))) for name in grids
        })
        self.all = nn.Sequential(
            nn.LayerNorm(tokens * width), nn.Linear(tokens * width, 256), nn.GELU(), nn.Linear(256, 7 * len(NAMED))
        )

    def forward(
        self, tokens: dict[str, Tensor], places: Tensor, turns: Tensor, hands: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens: per camera (N, T, d), row by row. places (N, names, 3): m, base frame, NaN for
        what is not there; turns (N, names): rad about the vertical, NaN for all but cubes; hands
        (N, 4, 4): base_T_eef. Returns the loss, and the mean distance (m) of places that are
        there."""
        loss, error = self._whole(tokens, places, hands)
        for name, grid in self._grids.items():
            guess = self.patch[name](tokens[name]).unflatten(-1, (len(NAMED), PATCH))
            seen = turns - hand_yaws(hands)[:, None] if name == "wrist" else turns
            loss = loss + _patch_loss(guess, project(name, places, hands) * grid, seen, grid)
        return loss, error

    def _whole(self, tokens: dict[str, Tensor], places: Tensor, hands: Tensor) -> tuple[Tensor, Tensor]:
        guess = self.all(torch.cat([tokens[name] for name in self._grids], dim=1).flatten(1)).unflatten(1, (-1, 7))
        both = torch.stack((places - _like(places, TABLE_CENTRE), places - hands[:, None, :3, 3]), dim=-2)
        truth = both / PLACE_SCALE  # (N, names, 2, 3)
        there = ~torch.isnan(truth[..., 0, 0])
        where = guess[..., :6].unflatten(-1, (2, 3))
        presence = functional.binary_cross_entropy_with_logits(guess[..., 6], there.float())
        truth = truth.nan_to_num()
        apart = functional.smooth_l1_loss(where, truth, beta=0.1, reduction="none").mean((-1, -2))
        distance = (where.detach() - truth)[..., 0, :].norm(dim=-1)
        return 2 * _mean_where(there, apart) + 0.2 * presence, _mean_where(there, distance) * PLACE_SCALE


def _mean_where(chosen: Tensor, values: Tensor) -> Tensor:
    """Mean of the chosen values, without reading their number from the device; 0 for none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def hand_yaws(hands: Tensor) -> Tensor:
    """`grasps.hand_yaw` of hands (N, 4, 4): (N,), rad."""
    return torch.atan2(-hands[:, 0, 0], hands[:, 1, 0])


def _patch_loss(guess: Tensor, spots: Tensor, turns: Tensor, grid: int) -> Tensor:
    """guess (N, T, names, PATCH). spots (N, names, 2): column and row in patches; turns (N, names):
    rad, as seen."""
    inside = ((spots >= 0) & (spots < grid)).all(-1)  # (N, names); a NaN is not
    spots = torch.where(inside[..., None], spots, 0.0)
    cell = spots.long()
    token = cell[..., 1] * grid + cell[..., 0]  # (N, names)
    wanted = (torch.arange(grid * grid, device=token.device)[:, None] == token[:, None]) & inside[:, None]
    weight = torch.tensor(FOUND_WEIGHT, device=guess.device)
    found = functional.binary_cross_entropy_with_logits(guess[..., 0], wanted.float(), pos_weight=weight)
    told = guess[..., 1:].gather(1, token[:, None, :, None].expand(-1, 1, -1, PATCH - 1)).squeeze(1)
    at, lies = told.split(2, dim=-1)  # (N, names, 2) each
    within = functional.smooth_l1_loss(at, spots - cell - 0.5, beta=0.1, reduction="none").mean(-1)
    angle = 4 * turns.nan_to_num()
    turned = torch.stack((torch.sin(angle), torch.cos(angle)), dim=-1)
    apart = functional.smooth_l1_loss(lies, turned, beta=0.1, reduction="none").mean(-1)
    return 3 * found + _mean_where(inside, within) + _mean_where(inside & ~torch.isnan(turns), apart)


def project(camera: str, places: Tensor, hands: Tensor) -> Tensor:
    """Projection of points into a camera's image, by the pose that the camera has when nothing is
    drawn at random.

    places (N, K, 3): m, base frame; hands (N, 4, 4): base_T_eef. Returns (N, K, 2), column and row
    as parts of the image's side from its upper left corner; NaN stays NaN, and behind the camera it
    is NaN.
    """
    if camera == "static":
        seen = _from_static(places)
        fovy = STATIC_CAMERA["fovy"]
    else:
        turned = torch.einsum("nji,nkj->nki", hands[:, :3, :3], places - hands[:, None, :3, 3])
        seen = (turned - _like(places, WRIST_OFFSET)) * _like(places, (-1.0, 1.0, -1.0))
        fovy = WRIST_FOVY
    depth = torch.where(seen[..., 2] < -0.01, -seen[..., 2], torch.nan)
    focal = 0.5 / math.tan(math.radians(fovy) / 2)
    return 0.5 + focal * torch.stack((seen[..., 0], -seen[..., 1]), dim=-1) / depth[..., None]


def _from_static(places: Tensor) -> Tensor:
    """Points (..., 3) in the static camera's frame: x right, y up, z backward."""
    position, target = (np.array(STATIC_CAMERA[key]) - BASE_POSITION for key in ("pos", "target"))
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross((0.0, 0.0, 1.0), backward)
    right /= np.linalg.norm(right)
    axes = np.stack((right, np.cross(backward, right), backward), axis=1)
    return (places - _like(places, position)) @ _like(places, axes)


def _like(other: Tensor, values: Any) -> Tensor:
    return torch.as_tensor(np.asarray(values), dtype=other.dtype, device=other.device)
