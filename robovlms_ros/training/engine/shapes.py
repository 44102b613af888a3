"""A training step on tensors that have a shape and no data, and the memory that it takes.

torch's FakeTensorMode computes shapes, kernels and autocast of a processor. Its MemTracker
(torch 2.13) does not serve: it hooks the gradient of every parameter and fails at a frozen one.
Storages are therefore counted here. Masks and token ids keep their values: code depends on them.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
aten = torch.ops.aten
INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
)


def fake(tensor: Tensor) -> Tensor:
    """A fake tensor in the place of a meta tensor; others as they are."""
    if not tensor.is_meta:
        return tensor
    with FAKE:
        return torch.empty_like(tensor, device="cpu")


def fake_parameters(module: nn.Module) -> None:
    """Put fake parameters in the place of those on the meta device; tied ones stay one tensor."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for child in module.modules():
        for name, old in child._parameters.items():
            if old is not None:
                new = made.setdefault(old, nn.Parameter(fake(old), old.requires_grad))
                child._parameters[name] = new


class MemoryCount(TorchDispatchMode):
    """Counts the storages of fake tensors from birth to death. now, peak: bytes, without those of
    `existing`."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._existing = [tensor.untyped_storage() for tensor in existing]
        self._alive = {id(storage) for storage in self._existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fakes = [x for x in tree_leaves((args, kwargs)) if isinstance(x, FakeTensor)]
        if fakes and func is aten._local_scalar_dense.default:
            # transformers reads whether a mask hides nothing.
            return True if fakes[0].dtype == torch.bool else 1
        if fakes and func in INDEXING:
            args = (args[0], [i for index in args[1] for i in _positions(index)], *args[2:])
        result = func(*args, **(kwargs or {}))
        if fakes and func is aten.argmax.default:
            return torch.zeros(
                result.shape, dtype=result.dtype
            )  # guessed tokens are read as numbers
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _positions(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as positions: the shape of the result depends on their number."""
    if index is None or isinstance(index, FakeTensor) or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return index.nonzero().unbind(1)
