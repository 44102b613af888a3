"""Times, FLOPs and bytes of steps: synchronised, interleaved, warmed up; the roofline of each run.

Steps of the policy benchmark are timed here alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Operation:
    """One call: its name, dtype ("bfloat16"), FLOPs, bytes read and written."""

    name: str
    dtype: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Ceilings:
    """Measured ceilings of a machine: FLOP/s of a large matrix product by dtype, bytes/s (read and
    written) of a large copy."""

    flops: dict[str, float]
    bandwidth: float


class OperationCounter(TorchDispatchMode):
    """Within the block, `operations` collects what runs. Graph replays and compiled code are not
    seen."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        counted = _own_formula(packet) is not None or packet in flop_registry
        if not counted:
            # In inference mode composite operations arrive whole.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if counted:
            self._count(func, args, kwargs, result)
        return result

    def _count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        # By name: overloads and kernels of one kind differ in what comes between the tensors.
        given = {**dict(zip((x.name for x in func._schema.arguments), args, strict=False)), **kwargs}
        read = list(_tensors([value for name, value in given.items() if name not in NOT_READ]))
        # integer products have none
        dtype = next((t.dtype for t in read if t.is_floating_point()), read[0].dtype)
        moved = sum(t.numel() * t.element_size() for t in [*read, _output(given, result)])
        packet = func._overloadpacket
        formula = _own_formula(packet)
        if formula is not None:
            flops = formula(given, result)
        else:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=result))
        self.operations.append(Operation(_name(packet), str(dtype).removeprefix("torch."), flops, moved))


Given = dict[str, Any]  # a call's arguments by their names in the operation's schema
Formula = Callable[[Given, Any], int]
# Outputs, and cuDNN's one buffer of the weights that it is given one by one as well.
NOT_READ = ("out", "weight_buf")
# The first factor's argument. torch's own formulas refuse an out_dtype, which only GPUs have, and
# know not all of them.
PRODUCTS = {
    "mm": "self", "bmm": "self", "addmm": "mat1", "baddbmm": "batch1", "_addmm_activation": "mat1",
    "_int_mm": "self", "_scaled_mm": "self", "_scaled_mm_v2": "self",
}
# In inference mode these arrive whole; taken apart they would run another way than they do (LSTMs
# not in bfloat16).
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")


def _own_formula(packet: Any) -> Formula | None:
    name = _name(packet)
    if name in PRODUCTS:
        return partial(_product, PRODUCTS[name])
    if name in RECURRENT:
        return _recurrent
    if name.startswith("_scaled_dot_product") and "backward" not in name:
        return _attention
    return None


def _product(first: str, given: Given, result: Any) -> int:
    return 2 * _output(given, result).numel() * given[first].shape[-1]


def _attention(given: Given, result: Any) -> int:
    """From the output's rows, one per query and head: keys and values may have fewer heads, each
    for a group of queries (torch 2.11's own formula refuses that)."""
    # (batch, heads, tokens, width)
    query = given["query"]
    key = given["key"]
    value = given["value"]
    each = 2 * (query.shape[-1] + value.shape[-1])  # of one query with one key
    return each * math.prod(_output(given, result).shape[:-1]) * key.shape[-2]


def _recurrent(given: Given, _: Any) -> int:
    """Products of every time step's input and state with the layers' matrices."""
    # (..., features); `data`: of a packed sequence
    steps = given["input"] if "input" in given else given["data"]
    rows = math.prod(steps.shape[:-1])
    weights = _tensors([value for name, value in given.items() if name == "params" or name.startswith("weight")])
    # neither biases nor weight_buf
    return sum(2 * rows * weight.numel() for weight in weights if weight.ndim == 2)


def _output(given: Given, result: Any) -> Tensor:
    return next(_tensors([given.get("out"), result]))


def _name(packet: Any) -> str:
    return str(packet).rpartition(".")[2]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def count(run: Callable[[], object]) -> list[Operation]:
    """The operations of one call of `run`."""
    with OperationCounter() as counter:
        run()
    return counter.operations


def roofline(operations: Iterable[Operation], ceilings: Ceilings) -> float:
    """s: for every operation the larger of its arithmetic's and its traffic's time, added up."""
    return sum(
        max(op.flops / ceilings.flops.get(op.dtype, max(ceilings.flops.values())), op.bytes / ceilings.bandwidth)
        for op in operations
    )


Step = Callable[[int], object]
STAGES = ("decode", "preprocess", "step", "vision", "projector", "text", "head", "post")
FP8 = "float8_e4m3fn"


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
    """Several ways of doing the same steps, measured in turn so that a machine that slows down
    slows all of them.

    Every way sees the same frames in the same order. `times[name][round]` holds the seconds of a
    round's steps.
    """

    def __init__(self, ways: Mapping[str, Step], device: torch.device):
        self.ways = dict(ways)
        self.device = device
        self.next = dict.fromkeys(ways, 0)
        self.times: dict[str, list[list[float]]] = {name: [] for name in ways}

    def warm_up(self, name: str, steps: int) -> None:
        """Steps of one way that do not count."""
        for _ in range(steps):
            self._step(name)

    def round_of(
        self,
        steps: Mapping[str, int],
        order: int = 0,
        attempt: Callable[[str], AbstractContextManager[object]] | None = None,
    ) -> None:
        """A round of so many steps by way. order: which one begins. attempt: entered around each
        way's steps; a way that is gone from `ways` is left out."""
        names = list(self.ways)
        begin = order % max(len(names), 1)
        for name in names[begin:] + names[:begin]:
            with attempt(name) if attempt else nullcontext():
                self.times[name].append([self._step(name) for _ in range(steps[name])])

    def run(self, name: str, steps: int, longest: float) -> list[float]:
        """Seconds of consecutive steps of one way, `steps` of them or as many as take `longest`
        s."""
        times: list[float] = []
        while len(times) < steps and sum(times) < longest:
            times.append(self._step(name))
        return times

    def _step(self, name: str) -> float:
        index = self.next[name]
        self.next[name] += 1
        return seconds(lambda: self.ways[name](index), self.device)


class StageClock:
    """A timer for `predict_action_chunk`: seconds by stage, the device waited for at both ends of
    each.

    What lies in no stage counts as `rest`. A replayed graph that spans several stages counts where
    it begins.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.spent: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
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


def busy_share(step: Callable[[], object], p50: float, device: torch.device) -> float | None:
    """Share of a step's time in which the GPU computes: the kernels' time of one profiled step over
    `p50` s. None on a processor."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        seconds(step, device)
    spent = sum(getattr(event, "self_device_time_total", 0.0) for event in recorded.key_averages())
    return spent * 1e-6 / p50


REPEATS = 5


def measure_ceilings(device: torch.device, dtypes: tuple[str, ...]) -> Ceilings:
    """Ceilings of this machine now: the best of REPEATS large products of random matrices per
    dtype, and of as many copies of a block that no cache holds."""
    on_gpu = device.type != "cpu"
    side = 8192 if on_gpu else 1024
    rates = {name: _matrix_rate(device, getattr(torch, name), side) for name in dtypes if name != FP8}
    if FP8 in dtypes and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        rates[FP8] = _fp8_rate(device, side)
    block = torch.empty((1 << 32) if on_gpu else (1 << 27), dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(block).fill_(2)
    best = min(seconds(lambda: target.copy_(block), device) for _ in range(REPEATS))
    return Ceilings(rates, 2 * block.numel() / best)


def _fp8_rate(device: torch.device, side: int) -> float:
    a, b = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones(side, 1, device=device)

    def product() -> None:
        torch._scaled_mm(a, b.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True)

    product()
    return 2 * side**3 / min(seconds(product, device) for _ in range(REPEATS))


def _matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    repeats = REPEATS
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if device.type == "cpu" and seconds(lambda: torch.mm(a[:64], b), device) > 0.25:
        # a processor without arithmetic of this kind
        a = a[:64]
        repeats = 2
    flops = 2 * a.shape[0] * side * side
    torch.mm(a, b)
    return flops / min(seconds(lambda: torch.mm(a, b), device) for _ in range(repeats))
