"""FLOPs and bytes of a run, operation by operation, and the least time that they need: the roofline.

Counted are matrix products, convolutions, attention and recurrent layers, as torch executes them. A multiplication and
an addition are two FLOPs (torch.utils.flop_counter's convention, whose formulas count convolutions; causal attention
counts in full). Bytes: every input and output once. Roofline: Williams et al., CACM 52(4), 2009.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

log = logging.getLogger(__name__)


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
        try:
            if formula is not None:
                flops = formula(given, result)
            else:
                flops = int(flop_registry[packet](*args, **kwargs, out_val=result))
        except Exception as error:  # a kernel's new arguments must not cost the whole measurement
            log.warning("FLOPs of %s are not counted: %s", packet, error)
            flops = 0
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
# Kernels below scaled_dot_product_attention, which libraries call themselves: (batch, tokens, heads, width).
TOKENS_FIRST = ("_flash_attention_forward", "_efficient_attention_forward")


def _own_formula(packet: Any) -> Formula | None:
    name = _name(packet)
    if name in PRODUCTS:
        return partial(_product, PRODUCTS[name])
    if name in RECURRENT:
        return _recurrent
    if "backward" in name:
        return None
    if name.startswith(TOKENS_FIRST):
        return partial(_attention, tokens=-3)
    if name.startswith(("_scaled_dot_product", "_cudnn_attention_forward")):
        return partial(_attention, tokens=-2)
    return None


def _product(first: str, given: Given, result: Any) -> int:
    return 2 * _output(given, result).numel() * given[first].shape[-1]


def _attention(given: Given, result: Any, tokens: int) -> int:
    """From the output's rows, one per query and head: keys and values may have fewer heads, each for a group of
    queries (torch 2.11's own formula refuses that). tokens: the dimension of the keys' tokens."""
    query, key, value = given["query"], given["key"], given["value"]
    each = 2 * (query.shape[-1] + value.shape[-1])  # of one query with one key
    for queries, keys in (("cum_seq_q", "cum_seq_k"), ("cu_seqlens_q", "cu_seqlens_k")):
        if given.get(queries) is not None:  # sequences of several lengths, one behind the other: (tokens, heads, width)
            lengths = zip(given[queries].diff().tolist(), given[keys].diff().tolist(), strict=True)
            return each * query.shape[-2] * sum(q * k for q, k in lengths)
    return each * math.prod(_output(given, result).shape[:-1]) * key.shape[tokens]


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
