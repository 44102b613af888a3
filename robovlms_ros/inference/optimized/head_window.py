"""The head over a sliding window, without the whole window for every frame.

Each head's answer is the newest frame's, and equals that of the head over the whole window. An
LSTM's answer follows from W steps from the zero state at the window's first frame. So a state is
started at every frame, and every new frame advances all of them; after W steps the oldest one
answers. That holds while each window is an earlier one moved on by one frame. Several such
sequences may alternate (a camera three times as fast as the history): each has its states. A window
that follows none is run as a whole.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.inference.optimized.options import FastPathError
from robovlms_ros.inference.optimized.text_towers import shallow
from robovlms_ros.inference.reference_inference import Encoded
from robovlms_ros.models.heads.base import HeadOutput, PolicyHead
from robovlms_ros.models.heads.fc import FCHead
from robovlms_ros.models.heads.gpt import ATTENTION_HEADS, GPTHead
from robovlms_ros.models.heads.lstm import LSTMHead
from robovlms_ros.models.perceiver import merge_heads, split_heads
from robovlms_ros.models.vla_policy import VLAPolicy

GRIDS_KEPT = 8
NO_FRAME = "no frame yet"
# (feature, further inputs) to (arm, gripper logits, further outputs): of an LSTM (feature, hidden,
# cell, row that starts anew, row that answers) to (arm, gripper logits, hidden, cell).
Step = Callable[..., tuple[Tensor, ...]]


class HeadWindow:
    """A head over a sliding window; the base keeps nothing and has no `step_function`.

    description: description of the last answer's computation. step_function: the newest frame's
    answer as a function of tensors of fixed shapes, None where there is none.
    """

    description = NO_FRAME
    step_function: Step | None = None

    def step_inputs(self, window: Sequence[Encoded]) -> tuple[Tensor, ...] | None:
        """Inputs of `step_function` behind the newest frame's feature, which is not needed yet;
        None where another computation answers this window."""
        return None

    def accept(
        self, window: Sequence[Encoded], output: HeadOutput, outputs: tuple[Tensor, ...]
    ) -> HeadOutput:
        """Keep the answer that `step_function` gave with this window's inputs, and its further
        outputs."""
        return output

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        """The newest frame's chunk, arm (1, 1, n, A); the frames' features are there."""
        raise NotImplementedError

    def finish(self) -> None:
        """Do what answers put off; a later answer that needs it does it otherwise."""

    def clear(self) -> None:
        """A new episode; what was put off is dropped."""


def lstm_window(head: LSTMHead, frames: int, step: Step | None = None) -> "LSTMWindow":
    """The window of `frames` frames that is cheapest where the head is: on a processor a step of
    many rows costs several times that of one, elsewhere hardly more. step: replaces `lstm_answer`,
    all rows in one piece."""
    if step is None and head.rnn.weight_ih_l0.device.type == "cpu":
        return AnswerFirstLSTM(head, frames)
    return OneStepLSTM(head, frames, step)


@dataclass(eq=False)
class _Grid:
    """One sequence of frames and its states, hidden and cell (layers, states, H); None while the
    frames were only seen.

    output: the newest answer. start: see OneStepLSTM. pending: see AnswerFirstLSTM.
    """

    frames: tuple[Encoded, ...]
    hidden: Tensor | None = None
    cell: Tensor | None = None
    output: HeadOutput | None = None
    start: int = 0
    pending: Tensor | None = None

    def is_before(self, window: Sequence[Encoded]) -> bool:
        """True if `window` without its newest frame is the end of these frames."""
        earlier = len(window) - 1
        mine = self.frames[len(self.frames) - earlier :]
        return 0 < earlier <= len(self.frames) and all(a is b for a, b in zip(mine, window[:-1], strict=True))

    def is_for(self, window: Sequence[Encoded]) -> bool:
        """True if the window's answer is already computed."""
        same = len(self.frames) == len(window) and all(a is b for a, b in zip(self.frames, window, strict=True))
        return same and self.output is not None


class LSTMWindow(HeadWindow):
    """Base: finds the sequence that a window goes on."""

    def __init__(self, head: LSTMHead):
        self._head = head
        self._grids: list[_Grid] = []

    def clear(self) -> None:
        self._grids.clear()
        self.description = NO_FRAME

    def _before(self, window: Sequence[Encoded]) -> _Grid | None:
        """The sequence that a window goes on."""
        return next((grid for grid in reversed(self._grids) if grid.is_before(window)), None)

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        for grid in self._grids:
            if grid.is_for(window):
                assert grid.output is not None
                return grid.output
        before = self._before(window)
        if before is not None:
            self._grids.remove(before)
        grid = self._next(before, tuple(window))
        self._grids.append(grid)
        del self._grids[:-GRIDS_KEPT]
        assert grid.output is not None
        return grid.output

    def _next(self, before: _Grid | None, window: tuple[Encoded, ...]) -> _Grid:
        """The sequence that ends with `window`, answered. before: the one that it goes on, which is
        not used again."""
        raise NotImplementedError

    def _run_again(self, window: tuple[Encoded, ...]) -> HeadOutput:
        features = torch.cat([frame.feature for frame in window], dim=1)  # type: ignore[misc]
        output = self._head(features)
        return HeadOutput(output.arm[:, -1:], output.gripper_logits[:, -1:])


class AnswerFirstLSTM(LSTMWindow):
    """Answers by the oldest state alone, one time step of one row; the other states advance in
    `finish`, or when the next window needs them.

    States are kept oldest first, of the newest frames. pending: what the newest frame adds to the
    first layer's gates, (1, 4 H), while the states have not seen that frame. After a window that
    follows none, states start from there, and windows are run as a whole until the states reach
    back to their first frame.
    """

    def __init__(self, head: LSTMHead, frames: int):
        super().__init__(head)
        self._longest = frames

    def finish(self) -> None:
        for grid in self._grids:
            self._settle(grid)

    def _settle(self, grid: _Grid) -> None:
        pending = grid.pending
        grid.pending = None
        hidden = grid.hidden
        cell = grid.cell
        if pending is None or hidden is None or cell is None:
            return
        # a step that fails leaves no states behind, rather than half of them advanced
        grid.hidden = grid.cell = None
        lstm_step(self._head.rnn, pending, hidden, cell)
        grid.hidden = hidden
        grid.cell = cell

    def _next(self, before: _Grid | None, window: tuple[Encoded, ...]) -> _Grid:
        feature = window[-1].feature
        assert feature is not None
        first = first_gates(self._head, feature)
        hidden, cell = (x[:, -len(window) :] for x in self._with_a_new_state(before, first))
        if hidden.shape[1] == len(window):
            self.description = "LSTM by its oldest state, the others after the answer"
            # (1, H)
            top = lstm_step(self._head.rnn, first, hidden[:, :1].clone(), cell[:, :1].clone())
            output = self._head.read_out(top[None].float())
            if len(window) == self._longest:  # no later window begins with this one's first frame
                hidden = hidden[:, 1:]
                cell = cell[:, 1:]
        else:
            have = hidden.shape[1]
            self.description = f"LSTM window of {len(window)} run again: the history grid moved; {have} states so far"
            output = self._run_again(window)
        return _Grid(window, hidden, cell, output, pending=first if hidden.shape[1] else None)

    def _with_a_new_state(self, before: _Grid | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """The states of `before`, which have seen its frames, and behind them one that starts from
        zero."""
        rnn = self._head.rnn
        shape = (rnn.num_layers, 1, rnn.hidden_size)
        hidden = like.new_zeros(shape)
        cell = like.new_zeros(shape, dtype=torch.float32)
        if before is not None:
            self._settle(before)
        if before is None or before.hidden is None or before.cell is None:
            return hidden, cell
        return torch.cat((before.hidden, hidden), dim=1), torch.cat((before.cell, cell), dim=1)


class OneStepLSTM(LSTMWindow):
    """Advances all W states and answers in one time step with a batch of W, of fixed shapes: what a
    CUDA graph records.

    Row (start + i) % W of a grid's states was started at frames[i]. After a window that follows
    none, the next one that follows it has its states built, by as many steps.
    """

    def __init__(self, head: LSTMHead, frames: int, step: Step | None = None):
        super().__init__(head)
        self._rows = frames
        self.step_function = partial(lstm_answer, head)
        self._step: Step = step or self.step_function
        device = head.rnn.weight_ih_l0.device
        # a row's number as a tensor that is there already
        self._numbers = torch.arange(frames, device=device)

    def _next(self, before: _Grid | None, window: tuple[Encoded, ...]) -> _Grid:
        if before is None and len(window) > 1:
            self.description = f"LSTM window of {len(window)} run again: the history grid moved"
            return _Grid(window, output=self._run_again(window))
        if before is None or before.hidden is None:
            self.description = f"LSTM states of {len(window)} frames built"
            return self._built(window)
        self.description = "LSTM in one step"
        return self._advance(before, window[-1], len(window))

    def step_inputs(self, window: Sequence[Encoded]) -> tuple[Tensor, ...] | None:
        grid = self._empty() if len(window) == 1 else self._before(window)
        if grid is None or grid.hidden is None or grid.cell is None:
            return None
        return grid.hidden, grid.cell, *self._places(grid, len(window))

    def accept(
        self, window: Sequence[Encoded], output: HeadOutput, outputs: tuple[Tensor, ...]
    ) -> HeadOutput:
        before = None if len(window) == 1 else self._before(window)
        start = 0
        if before is not None:
            self._grids.remove(before)
            start = (before.start + len(before.frames) + 1 - len(window)) % self._rows
        self.description = "LSTM in one step"
        self._grids.append(_Grid(tuple(window), outputs[0], outputs[1], output, start))
        del self._grids[:-GRIDS_KEPT]
        return output

    def _empty(self) -> _Grid:
        rnn = self._head.rnn
        like = rnn.weight_ih_l0
        shape = (rnn.num_layers, self._rows, rnn.hidden_size)
        return _Grid((), like.new_zeros(shape), like.new_zeros(shape, dtype=torch.float32))

    def _built(self, window: tuple[Encoded, ...]) -> _Grid:
        grid = self._empty()
        for i, frame in enumerate(window):
            grid = self._advance(grid, frame, i + 1)
        return grid

    def _places(self, grid: _Grid, length: int) -> tuple[Tensor, Tensor]:
        """Rows (1,) int64 of the state that starts with the next frame and of the one that answers
        a window of `length` frames."""
        row = (grid.start + len(grid.frames)) % self._rows
        oldest = (grid.start + len(grid.frames) + 1 - length) % self._rows
        rows = self._numbers
        return rows[row : row + 1], rows[oldest : oldest + 1]

    def _advance(self, grid: _Grid, frame: Encoded, length: int) -> _Grid:
        """The grid with one more frame, of a window of `length` frames."""
        assert grid.hidden is not None and grid.cell is not None
        frames = (*grid.frames, frame)
        dropped = len(frames) - length
        feature = frame.feature
        assert feature is not None
        places = self._places(grid, length)
        arm, gripper, hidden, cell = self._step(feature, grid.hidden, grid.cell, *places)
        start = (grid.start + dropped) % self._rows
        return _Grid(frames[dropped:], hidden, cell, HeadOutput(arm, gripper), start)


def lstm_answer(
    head: LSTMHead, feature: Tensor, hidden: Tensor, cell: Tensor, row: Tensor, oldest: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One frame's feature (1, 1, tokens, d) through all staggered states, which are advanced in
    place.

    row, oldest: (1,) int64. Returns the oldest state's arm (1, 1, n, A), its gripper logits (1, 1,
        n, 1), the states.
    """
    hidden.index_fill_(1, row, 0.0)
    cell.index_fill_(1, row, 0.0)
    top = lstm_step(head.rnn, first_gates(head, feature), hidden, cell)  # (W, H)
    output = head.read_out(top.index_select(0, oldest)[None].float())
    return output.arm, output.gripper_logits, hidden, cell


def first_gates(head: LSTMHead, feature: Tensor) -> Tensor:
    """Contribution of a frame's feature (1, 1, tokens, d) to the first layer's gates, (1, 4 H),
    without biases."""
    return functional.linear(head.reduce(feature).flatten(2)[0], head.rnn.weight_ih_l0)


def lstm_step(rnn: torch.nn.LSTM, first: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """One time step of all layers with the same input for every row.

    first: (1, 4 H), the input times the first layer's weights. hidden (layers, rows, H) in the
    weights' precision and cell (layers, rows, H) float32 are advanced in place. Returns the last
    layer's output (rows, H).
    """
    from_below = first
    for layer in range(rnn.num_layers):
        to_input, to_hidden, bias, other = (
            getattr(rnn, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if layer:
            from_below = functional.linear(hidden[layer - 1], to_input)
        gates = functional.linear(hidden[layer], to_hidden, bias + other)  # (rows, 4 H)
        gates += from_below
        enter, forget, candidate, leave = gates.float().chunk(4, dim=-1)
        cell[layer].mul_(forget.sigmoid()).add_(enter.sigmoid() * candidate.tanh())
        hidden[layer] = leave.sigmoid() * cell[layer].tanh()
    return hidden[rnn.num_layers - 1]


def float_outputs(head: PolicyHead) -> PolicyHead:
    """A second object of a head in half precision whose output layers are kept in float32, in which
    they compute: they need not be converted at every step."""
    if next(head.actions.parameters()).dtype == torch.float32:
        return head
    clone = shallow(head)
    clone._modules["actions"] = copy.deepcopy(head.actions).float()
    clone._modules["gripper"] = copy.deepcopy(head.gripper).float()
    return clone


def head_window(
    policy: VLAPolicy, step: Step | None = None, head: nn.Module | None = None
) -> HeadWindow:
    """The window of the policy's head; step: see `lstm_window`. head: replaces the policy's own.
    Raises FastPathError for an unknown head."""
    head = policy.head if head is None else head
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


class NewestAlone(HeadWindow):
    """A head without memory answers for the newest frame by that frame."""

    description = "newest frame alone"

    def __init__(self, head: FCHead):
        self._head = head
        self.step_function = partial(fc_answer, head)

    def step_inputs(self, window: Sequence[Encoded]) -> tuple[Tensor, ...] | None:
        return ()

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
        feature = window[-1].feature
        assert feature is not None
        return HeadOutput(*fc_answer(self._head, feature))


def fc_answer(head: FCHead, feature: Tensor) -> tuple[Tensor, Tensor]:
    """A frame's feature (1, 1, tokens, d) to arm (1, 1, n, A) and gripper logits (1, 1, n, 1)."""
    output = head.read_out(head.aggregate(head.reduce(feature)).float())
    return output.arm, output.gripper_logits


def gpt_answer(head: GPTHead, feature: Tensor, past: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The newest frame's feature (1, 1, tokens, d) at `place` (1,) int64 of the window `past` (1,
    W, tokens, d), whose later frames are zeros: no earlier one attends to them. Returns arm (1, 1,
    n, A) and gripper logits (1, 1, n, 1)."""
    hidden = head.aggregate(head.reduce(past.index_copy(1, place, feature)))  # (1, W, dim)
    output = head.read_out(hidden.index_select(1, place).float())
    return output.arm, output.gripper_logits


class GPTWindow(HeadWindow):
    """A GPT's frames have absolute positions: while the window grows they keep them, and only the
    newest frame is new to the network. Once the window slides every frame's position changes, and
    all are run again; then only the last layer is limited to the newest frame. Nothing is put off:
    the newest frame's keys come with its answer."""

    def __init__(self, head: GPTHead):
        self._head = head
        self.step_function = partial(gpt_answer, head)
        self._numbers = torch.arange(head.window, device=head.gpt.wpe.weight.device)
        self.clear()

    def step_inputs(self, window: Sequence[Encoded]) -> tuple[Tensor, ...] | None:
        """See HeadWindow: the whole window at every step, of one shape however full it is."""
        earlier = [frame.feature for frame in window[:-1]]
        head = self._head
        tokens = head.reduce.latent
        if head.reduce.method != "none":
            if not earlier:
                return None
            tokens = earlier[0].shape[2]  # type: ignore[union-attr]
        shape = (1, head.window - len(earlier), tokens, head.in_features)
        empty = head.gpt.wpe.weight.new_zeros(shape)
        newest = len(earlier)
        return torch.cat((*earlier, empty), dim=1), self._numbers[newest : newest + 1]  # type: ignore[arg-type]

    def accept(
        self, window: Sequence[Encoded], output: HeadOutput, outputs: tuple[Tensor, ...]
    ) -> HeadOutput:
        """See HeadWindow. No keys are kept: another computation starts anew."""
        self.clear()
        self.description = "GPT over the window"
        return output

    def clear(self) -> None:
        self._frames: tuple[Encoded, ...] = ()
        self._past: list[tuple[Tensor, Tensor]] = []
        self.description = NO_FRAME

    def answer(self, window: Sequence[Encoded]) -> HeadOutput:
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
