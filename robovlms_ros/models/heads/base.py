"""Base of the continuous policy heads: tokens are aggregated to one vector, a vector is decoded to
a chunk."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.models.perceiver import PerceiverResampler

DownSample = Literal["none", "pooling", "resampler"]


class HeadError(RoboVLMsError, ValueError):
    """A policy head is given settings or features that do not fit it."""


@dataclass(frozen=True)
class HeadOutput:
    """The answer of a continuous head, one chunk per frame of the window.

    arm: (B, W, n, A) in -1..1, the normalised arm part of each step.
    gripper_logits: (B, W, n, 1), positive where the gripper's normalised label is 1.
    """

    arm: Tensor
    gripper_logits: Tensor


class OutputMLP(nn.Module):
    """Linear 1024, 512, 256, out with ReLU between."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, 1024),
            nn.ReLU(),
            nn.Linear(1024, 512),
            nn.ReLU(),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Linear(256, out_features),
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out); computed in float32 where x is and the weights are kept in
        fewer bits."""
        if x.dtype == self.mlp[0].weight.dtype:
            return self.mlp(x)
        for layer in self.mlp:
            linear = isinstance(layer, nn.Linear)
            x = functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype)) if linear else layer(x)
        return x


class TokenReducer(nn.Module):
    """(B, W, tokens, d) to (B, W, latent, d).

    none: there are exactly `latent` tokens. pooling: adaptive max over the tokens. resampler: a
    perceiver resampler of depth 2 whose latents are the result.
    """

    def __init__(self, method: DownSample, in_features: int, latent: int):
        super().__init__()
        self.method = method
        self.latent = latent
        if method == "resampler":
            self.resampler = PerceiverResampler(in_features, depth=2, num_latents=latent)

    def forward(self, features: Tensor) -> Tensor:
        if self.method == "resampler":
            return self.resampler(features)
        if self.method == "pooling":
            # (BW, d, lat)
            pooled = functional.adaptive_max_pool1d(features.flatten(0, 1).transpose(1, 2), self.latent)
            return pooled.transpose(1, 2).unflatten(0, features.shape[:2])
        if features.shape[2] != self.latent:
            raise HeadError(
                f"head input has {features.shape[2]} tokens per frame, down_sample 'none' needs {self.latent}. "
                "Set action_head.latent to the number of action tokens, or down_sample to pooling or resampler."
            )
        return features


class PolicyHead(nn.Module):
    """Base of the continuous heads: a function of the last W features, without state of its own.

    `forward` takes (B, W, tokens, in_features), oldest frame first. The answer to the newest frame
    is at index W - 1; with W frames before it that equals what a step-by-step run over the same
    frames answers. `ignored_keys` are patterns of checkpoint keys that carry no weight (buffers of
    older layouts).
    """

    ignored_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, in_features: int, horizon: int, hidden_size: int, down_sample: DownSample, latent: int, arm_dims: int
    ):
        super().__init__()
        self.in_features = in_features
        self.horizon = horizon
        self.arm_dims = arm_dims
        self.reduce = TokenReducer(down_sample, in_features, latent)
        self.actions = OutputMLP(hidden_size * latent, horizon * arm_dims)
        self.gripper = OutputMLP(hidden_size * latent, horizon)

    def forward(self, features: Tensor) -> HeadOutput:
        """features (B, W, tokens, in_features) to one chunk per frame. Raises HeadError for another
        shape."""
        if features.ndim != 4 or features.shape[-1] != self.in_features:
            raise HeadError(
                f"head input has shape {tuple(features.shape)}, must be (batch, window, tokens, {self.in_features})."
            )
        return self.read_out(self.aggregate(self.reduce(features)))

    def read_out(self, hidden: Tensor) -> HeadOutput:
        """Decode aggregated frames, (B, T, hidden_size * latent), to their chunks."""
        # (B, W, n, A)
        arm = torch.tanh(self.actions(hidden)).unflatten(-1, (self.horizon, self.arm_dims))
        return HeadOutput(arm, self.gripper(hidden).unsqueeze(-1))  # logits (B, W, n, 1)

    def aggregate(self, tokens: Tensor) -> Tensor:
        """(B, W, latent, in_features) to (B, W, hidden_size * latent), causal along W."""
        raise NotImplementedError
