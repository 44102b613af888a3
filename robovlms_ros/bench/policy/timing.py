"""Wall-clock times of steps: synchronised, interleaved, warmed up. The only place of the benchmark with a clock."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter

import torch

from robovlms_ros.bench.policy.counting import Ceilings

Step = Callable[[int], object]
STAGES = ("decode", "preprocess", "vision", "projector", "text", "head", "post")


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """s that `run` takes, its work on the device included."""
    synchronize(device)
    begin = perf_counter()
    run()
    synchronize(device)
    return perf_counter() - begin


class Alternating:
    """Several ways of doing the same steps, measured in turn so that a machine that slows down slows all of them.

    Every way sees the same frames in the same order. `times[name][round]` holds the seconds of a round's steps.
    """

    def __init__(self, ways: Mapping[str, Step], device: torch.device):
        self.ways, self.device = dict(ways), device
        self.next = dict.fromkeys(ways, 0)
        self.times: dict[str, list[list[float]]] = {name: [] for name in ways}

    def warm_up(self, name: str, steps: int) -> None:
        """Steps of one way that do not count."""
        for _ in range(steps):
            self._step(name)

    def round(self, steps: int) -> None:
        """So many steps of every way."""
        self.round_of(dict.fromkeys(self.ways, steps))

    def round_of(self, steps: Mapping[str, int], order: int = 0) -> None:
        """A round of so many steps by way. order: which one begins."""
        names = list(self.ways)
        begin = order % len(names)
        for name in names[begin:] + names[:begin]:
            self.times[name].append([self._step(name) for _ in range(steps[name])])

    def _step(self, name: str) -> float:
        index = self.next[name]
        self.next[name] += 1
        return seconds(lambda: self.ways[name](index), self.device)


class StageClock:
    """A timer for `predict_action_chunk`: seconds by stage, the device waited for at both ends of each.

    What lies in no stage counts as `rest`. A replayed graph that spans several stages counts where it begins.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.spent: dict[str, float] = {}

    def __call__(self, stage: str) -> AbstractContextManager[object]:
        return self._timed(stage)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        synchronize(self.device)
        begin = perf_counter()
        try:
            yield
        finally:
            synchronize(self.device)
            self.spent[stage] = self.spent.get(stage, 0.0) + perf_counter() - begin

    def shares_of(self, step: Callable[[Callable[[str], AbstractContextManager[object]]], object]) -> dict[str, float]:
        """The share of each stage in the time of `step`, which is given this timer."""
        self.spent = {}
        total = seconds(lambda: step(self), self.device)
        shares = {stage: self.spent[stage] / total for stage in STAGES if stage in self.spent}
        return {**shares, "rest": max(0.0, 1.0 - sum(shares.values()))}


def measure_ceilings(device: torch.device, dtypes: tuple[str, ...], repeats: int = 5) -> Ceilings:
    """What this machine reaches now: the best of `repeats` large products of random matrices per dtype, and of as many
    copies of a block that no cache holds."""
    on_gpu = device.type != "cpu"
    rates = {name: _matrix_rate(device, getattr(torch, name), 8192 if on_gpu else 1024, repeats) for name in dtypes}
    block = torch.empty((1 << 32) if on_gpu else (1 << 27), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(block).fill_(2)
    best = min(seconds(lambda: target.copy_(block), device) for _ in range(repeats))
    return Ceilings(rates, 2 * block.numel() / best)


def _matrix_rate(device: torch.device, dtype: torch.dtype, side: int, repeats: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if device.type == "cpu" and seconds(lambda: torch.mm(a[:64], b), device) > 0.25:
        a, repeats = a[:64], 2  # a processor without arithmetic of this kind
    flops = 2 * a.shape[0] * side * side
    torch.mm(a, b)
    return flops / min(seconds(lambda: torch.mm(a, b), device) for _ in range(repeats))
