"""Detection of operations that a CUDA graph capture refuses, before a capture is begun.

A capture that fails inside torch may leave its memory pool and stream unusable for the process. A
dispatch mode (torch.utils._python_dispatch) sees every operation of an ordinary run instead.
"""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result on the host, or whose output's size, depends on values on the device.
VALUE_DEPENDENT = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "histc",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
COPIES = {"_to_copy", "copy_"}
TENSOR_REPEATS = (torch.ops.aten.repeat_interleave.Tensor, torch.ops.aten.repeat_interleave.self_Tensor)
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class HostSyncMode(TorchDispatchMode):
    """Collects the operations of a run that wait for the device or depend on its values.

    found: one line each, `operation at file:line`, in order of appearance and without repetition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in VALUE_DEPENDENT:
            self._note(name)
        elif name in COPIES and _devices(given) | _devices([output]) > {"cpu"}:
            self._note(f"{name} between host and device")
        elif name in INDEXING and any(leaf.dtype == torch.bool for leaf in given[1:]):
            self._note(f"{name} by a boolean mask")
        elif func in TENSOR_REPEATS and not (kwargs or {}).get("output_size"):
            self._note("repeat_interleave without output_size")
        return output

    def _note(self, operation: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        place = next(
            (frame for frame in reversed(frames) if not frame.filename.endswith("host_syncs.py")),
            frames[-1],
        )
        line = f"{operation} at {'/'.join(place.filename.split('/')[-2:])}:{place.lineno}"
        if line not in self.found:
            self.found.append(line)


def _devices(tensors: Sequence[Any]) -> set[str]:
    return {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)}


def host_syncs(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> list[str]:
    """Operations of `function(*inputs)` that a capture refuses; empty when there are none.

    transformers skips its checks of mask values while a stream is captured, so the run pretends that one is.
    """
    capturing = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        with HostSyncMode() as mode:
            function(*inputs)
    finally:
        torch.cuda.is_current_stream_capturing = capturing
    return mode.found
