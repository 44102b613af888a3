"""The head over a sliding window, without running the whole window for every frame.

Each head's answer here is the newest frame's, and equals that of the head over the whole window.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from robovlms_ros.inference.optimized.lstm_window import NO_FRAME, Step, lstm_window
from robovlms_ros.inference.optimized.options import FastPathError
from robovlms_ros.inference.reference_inference import Encoded
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.heads.fc import FCHead
from robovlms_ros.models.heads.gpt import ATTENTION_HEADS, GPTHead
from robovlms_ros.models.heads.lstm import LSTMHead
from robovlms_ros.models.perceiver import merge_heads, split_heads
from robovlms_ros.models.vla_policy import VLAPolicy


class HeadWindow(Protocol):
    """description: description of the last answer's computation."""

    description: str

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """The newest frame's chunk, arm (1, 1, n, A); the frames' features are there."""
        ...

    def finish(self) -> None:
        """Do what answers put off; a later answer that needs it does it otherwise."""
        ...

    def clear(self) -> None:
        """A new episode; what was put off is dropped."""
        ...


def head_window(policy: VLAPolicy, step: Step | None = None) -> HeadWindow:
    """The window of the policy's head; step: see `lstm_window`. Raises FastPathError for an unknown
    head."""
    head = policy.head
    frames = policy.config.model.history_length
    if isinstance(head, LSTMHead):
        return lstm_window(head, frames, step)
    if isinstance(head, GPTHead):
        return GPTWindow(head)
    if isinstance(head, FCHead):
        return NewestAlone(head)
    raise FastPathError(f"head {type(head).__name__} is not known")


def _reduced(head: GPTHead, frames: Sequence[Encoded]) -> Tensor:
    """(1, frames, latent, d)."""
    return head.reduce(torch.cat([frame.feature for frame in frames], dim=1))  # type: ignore[misc]


class NewestAlone:
    """A head without memory answers for the newest frame by that frame."""

    description = "newest frame alone"

    def __init__(self, head: FCHead):
        self._head = head

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """See HeadWindow."""
        feature = window[-1].feature
        assert feature is not None
        return self._head(feature)

    def finish(self) -> None:
        """Nothing is put off."""

    def clear(self) -> None:
        """Nothing is kept."""


class GPTWindow:
    """A GPT's frames have absolute positions: while the window grows they keep them, and only the
    newest frame is new to the network. Once the window slides every frame's position changes, and
    all are run again; then only the last layer is limited to the newest frame."""

    def __init__(self, head: GPTHead):
        self._head = head
        self.clear()

    def clear(self) -> None:
        """See HeadWindow."""
        self._frames: tuple[Encoded, ...] = ()
        self._past: list[tuple[Tensor, Tensor]] = []
        self.description = NO_FRAME

    def finish(self) -> None:
        """Nothing is put off: the newest frame's keys come with its answer."""

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """See HeadWindow."""
        known = len(self._frames)
        grows = len(window) == known + 1 and all(a is b for a, b in zip(self._frames, window, strict=False))
        if grows:
            self.description = "GPT over the newest frame, the others' keys kept"
        else:
            self.description = f"GPT over {len(window)} frames: positions moved with the window"
            self._past = []
            known = 0
        head = self._head
        x = head.fc(_reduced(head, window[known:])).flatten(2)  # (1, new, dim)
        x = x + head.gpt.wpe.weight[known : len(window)]
        newest = self._run(x)
        self._frames = tuple(window)
        return head.read_out(head.gpt.ln_f(newest).float())

    def _run(self, x: Tensor) -> Tensor:
        """New frames (1, new, dim) behind those of `_past`, which they join; the newest one's
        output (1, 1, dim)."""
        past = self._past
        blocks = self._head.gpt.h
        kept = []
        for i, block in enumerate(blocks):
            query, key, value = (split_heads(t, ATTENTION_HEADS) for t in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
            if past:
                key = torch.cat((past[i][0], key), dim=2)
                value = torch.cat((past[i][1], value), dim=2)
            kept.append((key, value))
            if i == len(blocks) - 1:
                query = query[:, :, -1:]
                x = x[:, -1:]
            causal = query.shape[2] > 1
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
            x = x + block.attn.c_proj(merge_heads(attended))
            x = x + block.mlp(block.ln_2(x))
        self._past = kept
        return x
