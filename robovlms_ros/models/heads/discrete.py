"""The discrete policy head: action values as the last words of the language model's vocabulary
(RT-2, OpenVLA)."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from robovlms_ros.models.heads.base import HeadError

RESERVED = 10


class ActionTokenizer:
    """Bins of [minimum, maximum] as token ids, counted down from the end of the ordinary
    vocabulary.

    vocab_size: entries of the tokenizer, special ones included.
    special_tokens: how many entries the tokenizer calls special (a list counts by its length).
    bins: number of bin edges; there are bins - 1 values.
    The last `special_tokens + 10` ids of the vocabulary are left alone, as in RoboVLMs.
    """

    def __init__(
        self, vocab_size: int, special_tokens: int, bins: int = 256, minimum: float = -1.0, maximum: float = 1.0
    ):
        self.end = vocab_size - special_tokens - RESERVED
        self.begin = self.end - (bins + 1)
        if bins < 2 or minimum >= maximum or self.begin < 0:
            raise HeadError(
                f"action tokens: {bins} bins over [{minimum}, {maximum}] do not fit a vocabulary of {vocab_size}. "
                "n_bin must be at least 2 and below the vocabulary's size, min_action below max_action."
            )
        self.minimum = minimum
        self.maximum = maximum
        self.edges = np.linspace(minimum, maximum, bins)
        self.centres = (self.edges[:-1] + self.edges[1:]) / 2.0

    def encode(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Token ids of values of any shape; values outside the range are clipped."""
        clipped = np.clip(np.asarray(values, dtype=np.float64), self.minimum, self.maximum)
        return self.end - np.digitize(clipped, self.edges)

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Bin centres of token ids of any shape; an id outside the action range becomes the nearest
        bin."""
        index = np.clip(self.end - np.asarray(ids) - 1, 0, len(self.centres) - 1)
        return self.centres[index]

    def is_action(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """True where an id is an action token."""
        ids = np.asarray(ids)
        return (ids > self.begin) & (ids < self.end)


class DiscreteHead(nn.Module):
    """No parameters: the language model's own logits are the answer; `tokens` gives ids their
    values.

    A step is `dims` tokens, the last one the gripper (above 0 the normalised label 1); a chunk is
    `horizon` steps.
    """

    def __init__(self, tokens: ActionTokenizer, horizon: int, dims: int = 7):
        super().__init__()
        self.tokens = tokens
        self.horizon = horizon
        self.dims = dims

    def forward(self, features: Tensor) -> Tensor:
        """Raises HeadError: this head reads generated tokens, not features."""
        raise HeadError(
            "the discrete head has no forward pass over features: train with policy.discrete.training_logits, run with "
            "a session (policy.discrete.generate)."
        )

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """(..., horizon * dims) generated ids to (..., horizon, dims) values in [min_action,
        max_action].

        Raises HeadError when the number of ids is not a whole number of steps.
        """
        ids = np.asarray(ids)
        if ids.shape[-1] % self.dims:
            raise HeadError(f"{ids.shape[-1]} action tokens: must be a multiple of {self.dims} (one step).")
        values = self.tokens.decode(ids)
        return values.reshape(*ids.shape[:-1], -1, self.dims)
