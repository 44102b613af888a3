"""What the LSTM head alone costs: its sliding window in one step, against a window of one frame and against all of it
run again."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from robovlms_ros.benchmark.timing import Alternating
from robovlms_ros.heads.lstm import LSTMHead
from robovlms_ros.policy.fast.window import StaggeredLSTM
from robovlms_ros.policy.paths import Encoded


@dataclass(frozen=True)
class WindowCost:
    """seconds: median step by way (`one_frame`, `staggered`, `again`). growth: staggered over one_frame. gain: again
    over staggered, each the median over the rounds. difference: largest, between staggered and again."""

    window: int
    seconds: dict[str, float]
    growth: float
    gain: float
    difference: float


@torch.inference_mode()
def window_cost(device: torch.device, dtype: torch.dtype, window: int = 64, in_features: int = 2048,
                hidden_size: int = 1024, num_layers: int = 4, rounds: int = 7, steps: int = 5) -> WindowCost:
    """The published head (4 layers of 1024) over features of the width of the published backbones."""
    torch.manual_seed(0)
    head = LSTMHead(in_features, 10, window, hidden_size, num_layers).to(device, dtype).eval()
    inputs = torch.randn(64, 1, 1, 1, in_features, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    answers: dict[str, dict[int, torch.Tensor]] = {"one_frame": {}, "staggered": {}, "again": {}}

    def sliding(length: int, staggered: bool, kept: dict[int, torch.Tensor]) -> Callable[[int], None]:
        states = StaggeredLSTM(head, length)
        earlier = (Encoded(None, None, inputs[index % len(inputs)]) for index in range(1 - length, 0))
        frames: deque[Encoded] = deque(earlier, maxlen=length)

        def step(index: int) -> None:
            frames.append(Encoded(None, None, inputs[index % len(inputs)]))
            if staggered:
                output = states.answer(list(frames))
            else:
                output = head(torch.cat([frame.feature for frame in frames], dim=1))  # type: ignore[misc]
            kept[index] = output.arm[:, -1].clone()

        return step

    ways = {
        "one_frame": sliding(1, True, answers["one_frame"]),
        "staggered": sliding(window, True, answers["staggered"]),
        "again": sliding(window, False, answers["again"]),
    }
    alternating = Alternating(ways, device)
    for name in ways:
        alternating.warm_up(name, 1 if name == "again" else 3)  # a new window, its states, one step
    for number in range(rounds):
        alternating.round_of({"one_frame": steps, "staggered": steps, "again": 1}, number)
    medians = {name: [float(np.median(times)) for times in alternating.times[name]] for name in ways}

    def over(a: str, b: str) -> float:
        return float(np.median([x / y for x, y in zip(medians[a], medians[b], strict=True)]))

    common = answers["staggered"].keys() & answers["again"].keys()
    difference = max(float((answers["staggered"][i] - answers["again"][i]).abs().max()) for i in common)
    seconds = {name: float(np.median(values)) for name, values in medians.items()}
    return WindowCost(window, seconds, over("staggered", "one_frame"), over("again", "staggered"), difference)
