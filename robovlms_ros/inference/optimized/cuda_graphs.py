"""Functions of tensors with fixed shapes, recorded once as a CUDA graph and replayed: one launch
instead of thousands.

A recorded function reads its inputs from buffers of its own and writes to outputs of its own, so a
call copies in, replays, and hands out copies. Nothing in it may wait for the device or depend on a
value on the host; one that does fails while it is recorded, and reports the reason.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)
Function = Callable[..., tuple[Tensor, ...]]
WARM_UP = 3
SHAPES_KEPT = 8


class GraphCapture(Protocol):
    """Records a function on given inputs; what comes back replays it and returns its outputs'
    buffers."""

    def __call__(self, function: Function, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]: ...


def cuda_recorder(function: Function, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A CUDA graph. Raises RuntimeError where the function cannot be recorded."""
    device = inputs[0].device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function(*inputs)
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    # Other threads may go on using the device while this one records.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function(*inputs)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


class CudaGraphCallable:
    """`function`, recorded once per shape of its inputs. Shared by threads. It may change its
    inputs in place: callers' tensors stay as they are, so what changes has to be among the
        outputs."""

    def __init__(self, name: str, function: Function, recorder: GraphCapture = cuda_recorder):
        self.name = name
        self.function = function
        self._recorder = recorder
        self._recorded: dict[tuple[object, ...], tuple[list[Tensor], Callable[[], tuple[Tensor, ...]]] | None] = {}
        self._lock = threading.Lock()
        self.refused = ""

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs. A shape that cannot be recorded runs as it is from then on;
        `refused` holds the reason."""
        key = tuple((tuple(x.shape), x.dtype) for x in inputs)
        with self._lock:
            if key not in self._recorded:
                self._recorded[key] = self._record(inputs) if len(self._recorded) < SHAPES_KEPT else None
            recorded = self._recorded[key]
            if recorded is not None:
                buffers, replay = recorded
                for buffer, given in zip(buffers, inputs, strict=True):
                    buffer.copy_(given)
                return tuple(output.clone() for output in replay())
        return self.function(*inputs)

    def _record(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], tuple[Tensor, ...]]] | None:
        buffers = [x.clone() for x in inputs]
        try:
            return buffers, self._recorder(self.function, buffers)
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.refused = f"{self.name}: {reason}"
            log.warning("CUDA graph of %s refused, it runs as it is: %s", self.name, reason)
            return None
