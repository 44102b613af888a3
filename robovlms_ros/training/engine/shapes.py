"""Running a policy on tensors that have a shape and no data: what stands in for values, kernels and autocast.

On the meta device attention is counted as the fused kernels do it, which keep no matrix of weights, and products in
mixed precision follow autocast's rules, of which torch has none for that device.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

aten = torch.ops.aten
PRODUCTS: tuple[tuple[Any, str], ...] = (
    (functional, "linear"), (functional, "conv2d"), (functional, "conv3d"), (torch, "matmul"), (torch, "bmm"),
    (torch, "baddbmm"), (torch, "einsum"), (Tensor, "matmul"), (Tensor, "__matmul__"),
)
"""What autocast computes in half precision, of what the backbones use."""


class ShapesOnly(TorchDispatchMode):
    """Operations with a meta tensor among their arguments run on the meta device, others as ever; storages on it are
    counted. peak, now: bytes since the mode began."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def ignore(self, tensor: Tensor) -> None:
        """What existed before."""
        self._alive[id(tensor.untyped_storage())] = tensor.untyped_storage()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if func is aten._local_scalar_dense.default and flat[0].is_meta:
            return True if flat[0].dtype == torch.bool else 1  # transformers asks whether a mask hides nothing
        if func is aten._to_copy.default and flat[0].is_meta and not flat[0].is_floating_point() and _to_cpu(kwargs):
            return torch.zeros(flat[0].shape, dtype=kwargs.get("dtype") or flat[0].dtype)  # guessed tokens
        if func is aten._to_copy.default and not flat[0].is_meta and not flat[0].is_floating_point():
            kwargs = {**kwargs, "device": flat[0].device}  # masks and sizes keep their values: code asks for them
        elif any(x.is_meta for x in flat):
            if func in (aten.index.Tensor, aten.index_put.default, aten._index_put_impl_.default,
                        aten._unsafe_index_put.default):
                args = (args[0], [i for index in args[1] for i in _positions(index)], *args[2:])
            args, kwargs = tree_map(_to_meta, (args, kwargs))
        result = func(*args, **kwargs)
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size


def _to_cpu(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"


def _positions(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as positions, which alone tell how many there are."""
    if index is None or index.is_meta or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return index.nonzero().unbind(1)


def _to_meta(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) and not x.is_meta and x.ndim > 0 else x


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps: queries, keys, values, the output, and a number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)  # laid out as the kernels do
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@contextmanager
def stand_ins(mixed: "MixedPrecision | None" = None) -> Iterator[None]:
    """Within the block, attention is the fused kernels', and numbers that code writes down keep their values."""
    attention, tensor = functional.scaled_dot_product_attention, torch.tensor

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if mixed is not None and torch.is_autocast_enabled("cpu"):
            query, key, value = (mixed.half(x) for x in (query, key, value))
        return _FusedAttention.apply(query, key, value)

    def write_down(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        if torch.device(kwargs.get("device") or "cpu").type == "meta":
            kwargs.pop("device")
        return tensor(data, *args, **kwargs)

    functional.scaled_dot_product_attention, torch.tensor = attend, write_down
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, torch.tensor = attention, tensor


class MixedPrecision:
    """Autocast on the meta device. Within the block, products take float32 operands as copies in `precision`; of what
    trains, each copy is made once and kept until the forward pass ends. None: nothing is changed.

    Where autocast is on is told by the CPU's, which `forward` sets and code may unset.
    """

    def __init__(self, precision: torch.dtype | None):
        self.precision = precision
        self._copies: dict[int, Tensor] | None = None
        self._originals = [(owner, name, getattr(owner, name)) for owner, name in PRODUCTS]

    def __enter__(self) -> "MixedPrecision":
        if self.precision is not None:
            for owner, name, product in self._originals:
                setattr(owner, name, self._rounded(product))
        return self

    def __exit__(self, *_: Any) -> None:
        for owner, name, product in self._originals:
            setattr(owner, name, product)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward pass."""
        self._copies = {}
        try:
            with torch.autocast("cpu", dtype=self.precision or torch.bfloat16, enabled=self.precision is not None):
                yield
        finally:
            self._copies = None

    def _rounded(self, product: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.is_autocast_enabled("cpu"):
                args, kwargs = tree_map(self.half, (args, kwargs))
            return product(*args, **kwargs)

        return call

    def half(self, x: Any) -> Any:
        """A float32 tensor on the meta device in the precision that is computed in; anything else as it is."""
        if not isinstance(x, Tensor) or not x.is_meta or x.dtype != torch.float32:
            return x
        if self._copies is None or not (x.is_leaf and x.requires_grad):
            return x.to(self.precision)
        if id(x) not in self._copies:
            self._copies[id(x)] = x.to(self.precision)
        return self._copies[id(x)]
