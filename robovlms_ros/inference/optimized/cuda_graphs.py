"""Functions of tensors with fixed shapes, recorded once as a CUDA graph and replayed with one
launch.

A recorded function reads its inputs from buffers of its own and writes to outputs of its own, so a
call copies in, replays, and returns copies. No operation in it may wait for the device or depend on
a value on the host. A capture that fails inside torch may leave its memory pool and stream unusable
for the process: a dispatch mode (torch.utils._python_dispatch) finds such operations in an ordinary
    run before.
"""

import logging
import threading
import traceback
from collections import OrderedDict
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
TENSOR_REPEATS = (
    torch.ops.aten.repeat_interleave.Tensor,
    torch.ops.aten.repeat_interleave.self_Tensor,
)
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
        elif name == "lift_fresh" and _devices([output]) - {"cpu"}:
            self._note("tensor of host values")
        elif (
            name in COPIES
            and _devices(given) | _devices([output]) > {"cpu"}
            and not _travels(args, kwargs)
        ):
            self._note(f"{name} between host and device")
        elif name in INDEXING and any(leaf.dtype == torch.bool for leaf in given[1:]):
            self._note(f"{name} by a boolean mask")
        elif func in TENSOR_REPEATS and not (kwargs or {}).get("output_size"):
            self._note("repeat_interleave without output_size")
        return output

    def _note(self, operation: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
        place = next(
            (frame for frame in reversed(frames) if frame.filename != __file__),
            frames[-1],
        )
        line = f"{operation} at {'/'.join(place.filename.split('/')[-2:])}:{place.lineno}"
        if line not in self.found:
            self.found.append(line)


def _devices(tensors: Sequence[Any]) -> set[str]:
    return {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)}


def _travels(args: Sequence[Any], kwargs: dict[str, Any] | None) -> bool:
    """True for a copy between pinned memory and the device that nothing waits for."""
    host = [
        leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.device.type == "cpu"
    ]
    waits_not = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2] is True)
    return bool(waits_not) and all(leaf.is_pinned() for leaf in host)


def host_syncs(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[str]:
    """Operations of `function(*inputs)` that a capture refuses; empty when there are none.

    transformers skips its checks of mask values while a stream is captured, so the run pretends
    that one is.
    """
    capturing = torch.cuda.is_current_stream_capturing
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        with HostSyncMode() as mode:
            function(*inputs)
    finally:
        torch.cuda.is_current_stream_capturing = capturing
    return mode.found


log = logging.getLogger(__name__)
Function = Callable[..., tuple[Tensor, ...]]
WARM_UP = 3
SHAPES_KEPT = 8
REPLAY_TOLERANCE = 0.05
"""Largest difference of a replay from the function, as a part of the largest output: rounding in
half precision may depend on the kernels that were chosen."""

Key = tuple[object, ...]


GraphCapture = Callable[[Function, Sequence[Tensor]], Callable[[], tuple[Tensor, ...]]]
"""Records a function on given inputs; what comes back replays it and returns its outputs'
buffers."""


class CudaRecorder:
    """Records functions as CUDA graphs on their inputs' device. The graphs share a memory pool:
    none of them may be replayed while another one's outputs are still read (`lock`)."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._pool: Any = None

    def __call__(
        self, function: Function, inputs: Sequence[Tensor]
    ) -> Callable[[], tuple[Tensor, ...]]:
        """See GraphCapture. Raises RuntimeError where the function cannot be recorded."""
        device = inputs[0].device
        with torch.cuda.device(device):
            stream = torch.cuda.Stream(device)
            caller = torch.cuda.current_stream(device)
            stream.wait_stream(caller)
            with torch.cuda.stream(stream):
                # A capture that fails may leave torch's allocator unusable: what it refuses is
                # found before.
                refused = host_syncs(function, inputs)
                if refused:
                    raise RuntimeError(f"the function waits for the device: {'; '.join(refused)}")
                for _ in range(WARM_UP):
                    function(*inputs)
            caller.wait_stream(stream)
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            # A refused capture leaves the other graphs whole: the next one gets another pool.
            pool = self._pool or torch.cuda.graph_pool_handle()
            self._pool = None
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                outputs = function(*inputs)
            self._pool = pool
        on_host = any(output.device.type == "cpu" for output in outputs)

        def replay() -> tuple[Tensor, ...]:
            with torch.cuda.device(device):
                graph.replay()
                if on_host:
                    torch.cuda.current_stream(device).synchronize()
            return outputs

        return replay


class CudaGraphCallable:
    """`function`, recorded once per shape of its inputs, for the SHAPES_KEPT shapes used last.

    Shared by threads. The function may change its inputs in place: callers' tensors stay as they
    are, so changed values have to be among the outputs.

    constant: number of last inputs whose values never change: the same object is copied once.
    device: of the buffers, where inputs come from the host; None is the inputs' own.
    """

    def __init__(
        self,
        name: str,
        function: Function,
        recorder: GraphCapture | None = None,
        constant: int = 0,
        device: torch.device | None = None,
    ):
        self.name = name
        self.function = function
        self.sealed = False
        """True: a shape that was not recorded yet runs as it is, and `refused` names it."""
        self.refused = ""
        self._recorder = recorder or CudaRecorder()
        self._constant = constant
        self._device = device
        self._recorded: OrderedDict[Key, RecordedFunction | None] = OrderedDict()
        self._lock = getattr(self._recorder, "lock", None) or threading.RLock()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's outputs. A shape that cannot be recorded runs as it is from then on;
        `refused` holds the reason."""
        key = tuple((tuple(x.shape), x.dtype) for x in inputs)
        with self._lock:
            if key not in self._recorded and not self.sealed:
                if len(self._recorded) >= SHAPES_KEPT:
                    self._recorded.popitem(last=False)
                self._recorded[key] = self._record(inputs)
            recorded = self._recorded.get(key)
            if recorded is not None:
                self._recorded.move_to_end(key)
                recorded.load(inputs)
                return tuple(output.clone() for output in recorded.replay())
            if key not in self._recorded:
                self.refused = f"{self.name}: a shape that was not recorded at configure"
        return self.function(*self._on_device(inputs))

    def _on_device(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        return [x if self._device is None else x.to(self._device) for x in inputs]

    def _record(self, inputs: Sequence[Tensor]) -> "RecordedFunction | None":
        buffers = [x.clone() for x in self._on_device(inputs)]
        try:
            recording = RecordedFunction(
                buffers, self._recorder(self.function, buffers), self._constant
            )
            self._check(recording, inputs)
            return recording
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.refused = f"{self.name}: {reason}"
            log.warning("CUDA graph of %s refused, it runs as it is: %s", self.name, reason)
            return None

    def _check(self, recording: "RecordedFunction", inputs: Sequence[Tensor]) -> None:
        """Raise RuntimeError unless a replay computes its outputs from its buffers: an empty graph
        does not."""
        recording.load(inputs)
        for output in recording.replay():
            output.fill_(0)
        recording.load(inputs)
        outputs = recording.replay()
        found = [output.float().clone() for output in outputs]
        expected = self.function(*[x.clone() for x in self._on_device(inputs)])
        wait_for([*expected, *self._on_device(inputs)])
        for output, value in zip(found, expected, strict=True):
            scale = value.float().abs().max().item() if value.numel() else 0.0
            difference = (output - value.float()).abs().max().item() if value.numel() else 0.0
            if not difference <= REPLAY_TOLERANCE * scale + 1e-6:
                raise RuntimeError(
                    f"the replay differs from the function by {difference:.3g} of {scale:.3g}"
                )


def wait_for(tensors: Sequence[Tensor]) -> None:
    """Wait for the CUDA device that one of the tensors lies on, if any does."""
    devices = {x.device for x in tensors if x.device.type == "cuda"}
    for device in devices:
        torch.cuda.current_stream(device).synchronize()


class RecordedFunction:
    """A recorded function with its buffers. constant: see CudaGraphCallable."""

    def __init__(
        self, buffers: list[Tensor], replay: Callable[[], tuple[Tensor, ...]], constant: int
    ) -> None:
        self.replay = replay
        self._buffers = buffers
        self._changing = len(buffers) - constant
        self._held: list[Tensor | None] = [None] * constant

    def load(self, inputs: Sequence[Tensor]) -> None:
        """Copy the inputs into the buffers; a constant one only when it is another object."""
        for i, (buffer, given) in enumerate(zip(self._buffers, inputs, strict=True)):
            place = i - self._changing
            if place >= 0:
                if self._held[place] is given:
                    continue
                self._held[place] = given
            buffer.copy_(given, non_blocking=True)
