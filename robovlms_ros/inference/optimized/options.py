"""Options of the fast path. Each part has a switch of its own for measurements and tests."""

from dataclasses import dataclass, fields, replace
from typing import Literal

from robovlms_ros.core.types import RoboVLMsError

Quantization = Literal["none", "fp8"]
MODES = ("auto", "max", "off", "fp8")
REMOVED = ("int8", "int4")
"""Former modes. On a processor their products took 1.4 to 27 times as long as those of the weights
that they replaced (docs/fast_path.md), and both sets of weights were in memory at configure."""
REMEDY = "int8 and int4 were removed. Use bfloat16 weights (dtype: bfloat16) and fast_path auto."


class FastPathError(RoboVLMsError):
    """The policy, the library or the device does not support a requested fast path."""


@dataclass(frozen=True)
class FastPathOptions:
    """The parts of the fast path.

    enabled: False is the plain path whatever else is set.
    prompt_cache: prompt tokens embedded once per instruction, in a layout of fixed length.
    last_layer_action_only: queries and MLP of the last decoder layer for the columns that the head
        reads, no others.
    staggered_lstm: the LSTM's sliding window by staggered states; other heads: the newest frame
        alone where that is exact.
    batch_cameras: all cameras' frames through the vision tower in one batch.
    device_preprocess: resize and normalise on the policy's device, from uint8.
    fused_weights: projections of one input (queries, keys and values; gate and up) as one product.
    cuda_graphs: a step from the images to the answer replayed as one CUDA graph; where the history
        or the head does not allow it, vision, text model and head by themselves.
    compile: torch.compile of vision and text model.
    prompt_bucket: text lengths are rounded up to a multiple of it; 0 is 32 with compile, 8 with
        cuda_graphs, else 1.
    quantize: weights of the text model's linear layers in fp8. The answers change; the
        verification measures by how much.
    """

    enabled: bool = True
    prompt_cache: bool = True
    last_layer_action_only: bool = True
    staggered_lstm: bool = True
    batch_cameras: bool = True
    device_preprocess: bool = False
    fused_weights: bool = False
    cuda_graphs: bool = False
    compile: bool = False
    prompt_bucket: int = 0
    quantize: Quantization = "none"

    @property
    def exact(self) -> bool:
        """True if the answers are the plain path's up to rounding."""
        return self.quantize == "none"

    @staticmethod
    def only(*names: str) -> "FastPathOptions":
        """The options with the named parts alone (quantize is not one of them). Raises
        FastPathError."""
        known = PARTS
        unknown = [name for name in names if name not in known]
        if unknown:
            raise FastPathError(f"fast path: no part '{unknown[0]}'; there are {', '.join(known)}.")
        return replace(FastPathOptions(), **{name: name in names for name in known})  # type: ignore[arg-type]


PARTS = tuple(f.name for f in fields(FastPathOptions) if f.name not in ("enabled", "quantize", "prompt_bucket"))


def options_for(mode: str, device_type: str) -> FastPathOptions | None:
    """The options that a mode means on a device ("cpu", "cuda"); None for `off`, the plain path.

    auto: all that is exact there and ready at once, on CUDA with preprocessing there, joined weights
    and CUDA graphs. max: torch also compiles, which takes minutes at the first start. Raises FastPathError.
    """
    if mode in REMOVED:
        raise FastPathError(f"fast path '{mode}': {REMEDY}")
    if mode not in MODES:
        raise FastPathError(f"fast path '{mode}': must be one of {', '.join(MODES)}.")
    if mode == "off":
        return None
    on_gpu = device_type == "cuda"
    options = FastPathOptions(device_preprocess=on_gpu, fused_weights=on_gpu, cuda_graphs=on_gpu, compile=mode == "max")
    return replace(options, quantize="fp8") if mode == "fp8" else options


def steps_down(options: FastPathOptions) -> tuple[FastPathOptions, ...]:
    """`options`, then with less of what depends on the machine: no compiled code, then no CUDA
    graphs either."""
    steps = [options]
    for name in ("compile", "cuda_graphs"):
        if getattr(steps[-1], name):
            steps.append(replace(steps[-1], **{name: False}))  # type: ignore[arg-type]
    return tuple(steps)
