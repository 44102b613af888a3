"""FLOPs and bytes of a run, operation by operation, and the least time that they need: the roofline.

Counted are matrix products, convolutions, attention and recurrent layers, as torch executes them. A multiplication and
an addition are two FLOPs (torch.utils.flop_counter's convention, whose formulas are used; causal attention counts
in full there). Bytes: every input and output once. Roofline: Williams et al., CACM 52(4), 2009.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


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
        counted = _formula(packet) is not None
        if not counted:
            # In inference mode composite operations arrive whole.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if counted:
            self._count(packet, args, kwargs, result)
        return result

    def _count(self, packet: Any, args: Any, kwargs: Any, result: Any) -> None:
        formula = _formula(packet)
        assert formula is not None
        read, written = list(_tensors((args, kwargs))), list(_tensors(result))
        dtype = next(t.dtype for t in read if t.is_floating_point())
        moved = sum(t.numel() * t.element_size() for t in [*read, *written[:1]])
        name = str(packet).rpartition(".")[2]
        flops = int(formula(*args, **kwargs, out_val=result))
        self.operations.append(Operation(name, str(dtype).removeprefix("torch."), flops, moved))


def _formula(packet: Any) -> Callable[..., int] | None:
    name = str(packet).rpartition(".")[2]
    if name.startswith("_scaled_dot_product") and "backward" not in name:
        return _attention  # torch's own formula refuses fewer heads of keys than of queries
    if packet in flop_registry:
        return flop_registry[packet]
    if name in RECURRENT:
        return RECURRENT[name]
    return None


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Of tensors (batch, heads, tokens, width); keys and values may have fewer heads, each for a group of queries."""
    heads = query.shape[1]
    keys, values = ((x.shape[0], heads, *x.shape[2:]) for x in (key, value))
    return sdpa_flop_count(query.shape, keys, values)


def _recurrent(steps: Tensor, weights: Iterable[Tensor]) -> int:
    """Products of every time step's input and state with the layer's matrices. steps: (..., ..., features)."""
    rows = steps.numel() // steps.shape[-1]
    return sum(2 * rows * weight.numel() for weight in weights if weight.ndim == 2)


def _mkldnn_layer(steps: Tensor, w_input: Tensor, w_state: Tensor, *_: Any, **__: Any) -> int:
    return _recurrent(steps, (w_input, w_state))


def _cudnn_layers(steps: Tensor, weights: list[Tensor], *_: Any, **__: Any) -> int:
    return _recurrent(steps, weights)


def _lstm(steps: Tensor, states: list[Tensor], weights: list[Tensor], *_: Any, **__: Any) -> int:
    return _recurrent(steps, weights)


# In inference mode the LSTM arrives whole; taken apart it would run another way than it does (and not in bfloat16).
RECURRENT: dict[str, Callable[..., int]] = {
    "lstm": _lstm,
    "mkldnn_rnn_layer": _mkldnn_layer,
    "_cudnn_rnn": _cudnn_layers,
}


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
