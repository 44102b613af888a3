"""The head over a sliding window, without running the whole window for every frame.

Each head's answer here is the newest frame's, and equals that of the head over the whole window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from robovlms_ros.heads.base import HeadOutput
from robovlms_ros.heads.fc import FCHead
from robovlms_ros.heads.gpt import ATTENTION_HEADS, GPTHead
from robovlms_ros.heads.lstm import LSTMHead
from robovlms_ros.perceiver import merge_heads, split_heads
from robovlms_ros.policy.fast.plan import FastPathError
from robovlms_ros.policy.paths import Encoded
from robovlms_ros.policy.policy import VLAPolicy

GRIDS_KEPT = 8


class HeadWindow(Protocol):
    """said: what the last answer took, in words."""

    said: str

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """The newest frame's chunk, arm (1, 1, n, A); the frames' features are there."""
        ...

    def clear(self) -> None:
        """A new episode."""
        ...


def head_window(policy: VLAPolicy, step: "Step | None" = None) -> HeadWindow:
    """The window of the policy's head; step: stands in for `lstm_answer`. Raises FastPathError for an unknown head."""
    head, frames = policy.head, policy.config.model.history_length
    if isinstance(head, LSTMHead):
        return StaggeredLSTM(head, frames, step)
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

    said = "newest frame alone"

    def __init__(self, head: FCHead):
        self._head = head

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """See HeadWindow."""
        feature = window[-1].feature
        assert feature is not None
        return self._head(feature)

    def clear(self) -> None:
        """Nothing is kept."""


@dataclass(eq=False)
class _Grid:
    """The staggered states of one sequence of frames: row (start + i) % W was started at frames[i].

    hidden, cell: (layers, W, H), None while the frames were only seen. output: the newest answer.
    """

    frames: tuple[Encoded, ...]
    start: int = 0
    hidden: Tensor | None = None
    cell: Tensor | None = None
    output: HeadOutput | None = None

    def is_before(self, window: Sequence[Encoded]) -> bool:
        """Whether `window` without its newest frame is the end of these frames."""
        earlier = len(window) - 1
        mine = self.frames[len(self.frames) - earlier :]
        return 0 < earlier <= len(self.frames) and all(a is b for a, b in zip(mine, window[:-1], strict=True))

    def is_for(self, window: Sequence[Encoded]) -> bool:
        """Whether the window's answer is there already."""
        same = len(self.frames) == len(window) and all(a is b for a, b in zip(self.frames, window, strict=True))
        return same and self.output is not None


class StaggeredLSTM:
    """The LSTM's window of W frames, exactly, at the cost of one time step with a batch of W.

    An answer is the LSTM's after W steps from the zero state at the window's first frame. State i was started at frame
    i, and all W states advance together by the newest frame; after W steps the oldest has its answer and its row starts
    anew. That holds while each window is the last one moved on by one frame. Several such sequences may alternate (a
    camera three times as fast as the history): each has its states. A window that follows none is run as a whole; when
    the next one follows it, its states are built.
    """

    def __init__(self, head: LSTMHead, window: int, step: "Step | None" = None):
        self._head, self._rows = head, window
        self._step: Step = step or partial(lstm_answer, head)
        device = head.rnn.weight_ih_l0.device
        self._numbers = torch.arange(window, device=device)  # a row's number as a tensor that is there already
        self._grids: list[_Grid] = []
        self.said = "no frame yet"

    def clear(self) -> None:
        """See HeadWindow."""
        self._grids.clear()
        self.said = "no frame yet"

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """See HeadWindow."""
        for grid in self._grids:
            if grid.is_for(window):
                assert grid.output is not None
                return grid.output
        before = next((grid for grid in reversed(self._grids) if grid.is_before(window)), None)
        if before is not None:
            self._grids.remove(before)
        if before is None and len(window) > 1:
            self.said = f"LSTM window of {len(window)} run again: the history grid moved"
            grid = _Grid(tuple(window))
            features = torch.cat([frame.feature for frame in window], dim=1)  # type: ignore[misc]
            output = self._head(features)
            grid.output = HeadOutput(output.arm[:, -1:], output.gripper_logits[:, -1:])
        elif before is None or before.hidden is None:
            self.said = f"LSTM states of {len(window)} frames built"
            grid = self._built(window)
        else:
            self.said = "LSTM in one step"
            grid = self._advance(before, window[-1], len(window))
        self._grids.append(grid)
        del self._grids[:-GRIDS_KEPT]
        assert grid.output is not None
        return grid.output

    def _built(self, window: Sequence[Encoded]) -> _Grid:
        rnn, like = self._head.rnn, window[0].feature
        assert like is not None
        shape = (rnn.num_layers, self._rows, rnn.hidden_size)
        grid = _Grid((), 0, like.new_zeros(shape), like.new_zeros(shape, dtype=torch.float32))
        for i, frame in enumerate(window):
            grid = self._advance(grid, frame, i + 1)
        return grid

    def _advance(self, grid: _Grid, frame: Encoded, length: int) -> _Grid:
        """The grid with one more frame, of a window of `length` frames."""
        assert grid.hidden is not None and grid.cell is not None
        frames = (*grid.frames, frame)
        dropped = len(frames) - length
        row, oldest = (grid.start + len(grid.frames)) % self._rows, (grid.start + dropped) % self._rows
        rows, feature = self._numbers, frame.feature
        assert feature is not None
        arm, gripper, hidden, cell = self._step(
            feature, grid.hidden, grid.cell, rows[row : row + 1], rows[oldest : oldest + 1]
        )
        return _Grid(frames[dropped:], oldest, hidden, cell, HeadOutput(arm, gripper))


# (feature, hidden, cell, row that starts anew, row that answers) to (arm, gripper logits, hidden, cell).
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def lstm_answer(
    head: LSTMHead, feature: Tensor, hidden: Tensor, cell: Tensor, row: Tensor, oldest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One frame's feature (1, 1, tokens, d) through all staggered states, which are advanced in place.

    row, oldest: (1,) int64. Returns the oldest state's arm (1, 1, n, A), its gripper logits (1, 1, n, 1), the states.
    """
    hidden.index_fill_(1, row, 0.0)
    cell.index_fill_(1, row, 0.0)
    top = lstm_step(head.rnn, head.reduce(feature).flatten(2)[0], hidden, cell)  # (W, H)
    output = head.read_out(top.index_select(0, oldest)[None].float())
    return output.arm, output.gripper_logits, hidden, cell


def lstm_step(rnn: torch.nn.LSTM, x: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """One time step of all layers with the same input for every row.

    x: (1, in). hidden (layers, W, H) in the weights' precision and cell (layers, W, H) float32 are advanced in place.
    Returns the last layer's output (W, H).
    """
    below = x
    for layer in range(rnn.num_layers):
        to_input, to_hidden, bias, other = (
            getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        gates = functional.linear(hidden[layer], to_hidden, bias + other)  # (W, 4 H)
        gates += functional.linear(below, to_input)
        enter, forget, candidate, leave = gates.float().chunk(4, dim=-1)
        cell[layer].mul_(forget.sigmoid()).add_(enter.sigmoid() * candidate.tanh())
        hidden[layer] = leave.sigmoid() * cell[layer].tanh()
        below = hidden[layer]
    return below


class GPTWindow:
    """A GPT's frames have absolute positions: while the window grows they keep them, and only the newest frame is new
    to the network. Once the window slides every frame's position changes, and all are run again; then only the last
    layer is limited to the newest frame."""

    def __init__(self, head: GPTHead):
        self._head = head
        self.clear()

    def clear(self) -> None:
        """See HeadWindow."""
        self._frames: tuple[Encoded, ...] = ()
        self._past: list[tuple[Tensor, Tensor]] = []
        self.said = "no frame yet"

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """See HeadWindow."""
        known = len(self._frames)
        grows = len(window) == known + 1 and all(a is b for a, b in zip(self._frames, window, strict=False))
        if grows:
            self.said = "GPT over the newest frame, the others' keys kept"
        else:
            self.said = f"GPT over {len(window)} frames: positions moved with the window"
            self._past, known = [], 0
        head = self._head
        x = head.fc(_reduced(head, window[known:])).flatten(2)  # (1, new, dim)
        x = x + head.gpt.wpe.weight[known : len(window)]
        newest = self._run(x)
        self._frames = tuple(window)
        return head.read_out(head.gpt.ln_f(newest).float())

    def _run(self, x: Tensor) -> Tensor:
        """New frames (1, new, dim) behind those of `_past`, which they join; the newest one's output (1, 1, dim)."""
        past, blocks = self._past, self._head.gpt.h
        kept = []
        for i, block in enumerate(blocks):
            query, key, value = (split_heads(t, ATTENTION_HEADS) for t in block.attn.c_attn(block.ln_1(x)).chunk(3, -1))
            if past:
                key, value = torch.cat((past[i][0], key), dim=2), torch.cat((past[i][1], value), dim=2)
            kept.append((key, value))
            if i == len(blocks) - 1:
                query, x = query[:, :, -1:], x[:, -1:]
            causal = query.shape[2] > 1
            attended = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
            x = x + block.attn.c_proj(merge_heads(attended))
            x = x + block.mlp(block.ln_2(x))
        self._past = kept
        return x
