"""Cost of the LSTM head alone: its sliding window by staggered states, against a window of one
frame and against all of it run again."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from robovlms_ros.bench.policy.timing import Alternating, seconds
from robovlms_ros.inference.optimized.cuda_graphs import CudaGraphCallable
from robovlms_ros.inference.optimized.head_window import lstm_answer, lstm_window
from robovlms_ros.inference.reference_inference import Encoded
from robovlms_ros.models.heads.lstm import LSTMHead


@dataclass(frozen=True)
class WindowCost:
    """seconds: medians of a step: `one_frame` (W = 1); `answer`, until the window's answer is
    there; `put_off`, what is left to do then; `whole`, both; `again`, the window run as a whole by
    torch.

    growth: answer over one_frame. gain: again over answer. whole_growth, whole_gain: the same of
        both parts together.
    Each is the median over the rounds. difference: largest, between the answers and those of
    `again`.
    """

    window: int
    seconds: dict[str, float]
    growth: float
    gain: float
    whole_growth: float
    whole_gain: float
    difference: float


class _Sliding:
    """One way's frames: a window that is full from the first step on, its states built as an
    episode builds them."""

    def __init__(self, head: LSTMHead, inputs: Tensor, length: int, by_states: bool):
        self.head = head
        self.inputs = inputs
        self.device = inputs.device
        step = CudaGraphCallable("head", partial(lstm_answer, head)) if inputs.is_cuda else None
        self.states = lstm_window(head, length, step) if by_states else None
        self.frames: deque[Encoded] = deque(maxlen=length)
        self.answers: dict[int, Tensor] = {}
        self.answered: list[float] = []  # s until each answer was there
        for index in range(1 - length, 0):
            self._see(index)
            if self.states is not None:
                self.states.answer(list(self.frames))

    def _see(self, index: int) -> None:
        self.frames.append(Encoded(None, None, self.inputs[index % len(self.inputs)]))

    def step(self, index: int) -> None:
        """One frame: its answer, and what that put off."""
        self._see(index)
        self.answered.append(seconds(partial(self._answer, index), self.device))
        if self.states is not None:
            self.states.finish()

    def _answer(self, index: int) -> None:
        if self.states is not None:
            output = self.states.answer(list(self.frames))
        else:
            output = self.head(torch.cat([frame.feature for frame in self.frames], dim=1))  # type: ignore[misc]
        self.answers[index] = output.arm[:, -1].clone()


@torch.inference_mode()
def window_cost(device: torch.device, dtype: torch.dtype, window: int = 64, in_features: int = 2048,
                hidden_size: int = 1024, num_layers: int = 4, rounds: int = 7, steps: int = 5) -> WindowCost:
    """The published head (4 layers of 1024) over features of the width of the published
    backbones."""
    torch.manual_seed(0)
    head = LSTMHead(in_features, 10, window, hidden_size, num_layers).to(device, dtype).eval()
    inputs = torch.randn(64, 1, 1, 1, in_features, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    ways = {"one_frame": _Sliding(head, inputs, 1, True), "whole": _Sliding(head, inputs, window, True),
            "again": _Sliding(head, inputs, window, False)}
    alternating = Alternating({name: way.step for name, way in ways.items()}, device)
    for name, way in ways.items():
        alternating.warm_up(name, 1 if name == "again" else 3)
        way.answered.clear()
    for number in range(rounds):
        alternating.round_of({"one_frame": steps, "whole": steps, "again": 1}, number)
    times = {name: alternating.times[name] for name in ways}
    answered = ways["whole"].answered
    times["answer"] = [answered[i : i + steps] for i in range(0, len(answered), steps)]
    times["put_off"] = [[both - first for both, first in zip(*pair, strict=True)]
                        for pair in zip(times["whole"], times["answer"], strict=True)]
    mine = ways["whole"].answers
    theirs = ways["again"].answers
    difference = max(float((mine[i] - theirs[i]).abs().max()) for i in mine.keys() & theirs.keys())
    names = ("one_frame", "answer", "put_off", "whole", "again")
    return WindowCost(
        window, {name: float(np.median(times[name])) for name in names},
        _over(times["answer"], times["one_frame"]), _over(times["again"], times["answer"]),
        _over(times["whole"], times["one_frame"]), _over(times["again"], times["whole"]), difference,
    )


def _over(mine: Sequence[list[float]], other: Sequence[list[float]]) -> float:
    """Median over the rounds of one way's median step over another's in the same round."""
    return float(np.median([np.median(a) / np.median(b) for a, b in zip(mine, other, strict=True)]))
