"""FLOPs and bytes of a run, operation by operation, and the least time that they need: the roofline.

Counted are matrix products, convolutions, attention and recurrent layers, as torch executes them. A multiplication and
an addition are two FLOPs (torch.utils.flop_counter's convention, whose formulas count convolutions; causal attention
counts in full). Bytes: every input and output once. Roofline: Williams et al., CACM 52(4), 2009.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

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
    """What a machine reached: FLOP/s of a large matrix product by dtype, bytes/s (read and written) of a large copy."""

    flops: dict[str, float]
    bandwidth: float


class OperationCounter(TorchDispatchMode):
    """Within the block, `operations` collects what runs. Graph replays and compiled code are not seen."""

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
        dtype = next((t.dtype for t in read if t.is_floating_point()), read[0].dtype)  # integer products have none
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
# The first factor's argument. torch's own formulas refuse an out_dtype, which only GPUs have, and know not all of them.
PRODUCTS = {
    "mm": "self", "bmm": "self", "addmm": "mat1", "baddbmm": "batch1", "_addmm_activation": "mat1",
    "_int_mm": "self", "_scaled_mm": "self", "_scaled_mm_v2": "self",
}
# In inference mode these arrive whole; taken apart they would run another way than they do (LSTMs not in bfloat16).
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
    """From the output's rows, one per query and head: keys and values may have fewer heads, each for a group of
    queries (torch 2.11's own formula refuses that)."""
    query, key, value = given["query"], given["key"], given["value"]  # (batch, heads, tokens, width)
    each = 2 * (query.shape[-1] + value.shape[-1])  # of one query with one key
    return each * math.prod(_output(given, result).shape[:-1]) * key.shape[-2]


def _recurrent(given: Given, _: Any) -> int:
    """Products of every time step's input and state with the layers' matrices."""
    steps = given["input"] if "input" in given else given["data"]  # (..., features); `data`: of a packed sequence
    rows = math.prod(steps.shape[:-1])
    weights = _tensors([value for name, value in given.items() if name == "params" or name.startswith("weight")])
    return sum(2 * rows * weight.numel() for weight in weights if weight.ndim == 2)  # neither biases nor weight_buf


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
