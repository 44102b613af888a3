"""Linear layers with fp8 (e4m3) weights, one scale per output.

With a calibrated input scale (`robovlms calibrate`) the inputs are fp8 as well, everywhere: a GPU
of compute capability 8.9 multiplies them, elsewhere the same rounding is emulated. Without one,
activations keep their precision, except on such a GPU, where a scale per row is found at every
step. The weights that are not quantised (norms, embeddings) are shared with the model that they
come from.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.inference.optimized.fused_projections import JoinedPart
from robovlms_ros.inference.optimized.text_towers import Module, shallow

FP8_LARGEST = 448.0
GROUP = 64
"""Linear layers with a number of inputs that is no multiple of it keep their weights."""


def quantizable(module: nn.Module) -> bool:
    """True for a linear layer that `quantized_tower` replaces."""
    return type(module) is nn.Linear and module.in_features % GROUP == 0


@contextmanager
def largest_inputs(tower: nn.Module) -> Iterator[dict[str, float]]:
    """Within the block, the dictionary collects the largest magnitude of the inputs of every layer
    that `quantized_tower` replaces, by its name in `tower`."""
    found: dict[str, float] = {}

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[name] = max(found.get(name, 0.0), float(inputs[0].detach().abs().amax()))

    layers = [(name, module) for name, module in tower.named_modules() if quantizable(module)]
    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def quantized_tower(tower: Module, largest_inputs: Mapping[str, float] | None = None) -> Module:
    """A second module object whose linear layers hold fp8 weights.

    largest_inputs: per layer's name in `tower` the largest magnitude of its inputs.
    """
    made: dict[int, nn.Module] = {}
    given = largest_inputs or {}

    def convert(module: nn.Module, name: str) -> nn.Module:
        if id(module) not in made:
            if quantizable(module):
                # Layers of one input have one scale: a joined product takes its first layer's.
                largest = given.get(name.removesuffix(".joined.linear"))
                made[id(module)] = Fp8Linear(module, largest)  # type: ignore[arg-type]
            else:
                clone = shallow(module)
                made[id(module)] = clone
                for child_name, child in module._modules.items():
                    path = f"{name}.{child_name}" if name else child_name
                    clone._modules[child_name] = None if child is None else convert(child, path)
        return made[id(module)]

    return convert(tower, "")  # type: ignore[return-value]


def adopt(tower: nn.Module, quantized: nn.Module) -> None:
    """Put the linear layers of `quantized` (made from `tower`) in the place of `tower`'s own, whose
    weights are freed: it cannot be saved or trained any more."""
    for name, child in tower._modules.items():
        other = quantized._modules[name]
        if isinstance(other, Fp8Linear | JoinedPart):
            tower._modules[name] = other
        elif child is not None and other is not None:
            adopt(child, other)


class Fp8Linear(nn.Module):
    """y = x W^T + b. largest_input: magnitude that is the largest fp8 number; larger ones are
    clipped to it. None: inputs are not rounded, or on a GPU by a scale per row.

    On CUDA from compute capability 8.9 with bfloat16 the product runs on fp8 units.
    """

    def __init__(self, linear: nn.Linear, largest_input: float | None = None):
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        self.__dict__["bias"] = linear.bias
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / FP8_LARGEST
        self.kept = nn.Buffer((weight / scale).to(torch.float8_e4m3fn), persistent=False)
        self.scale = nn.Buffer(scale, persistent=False)  # (out, 1) float32
        self.input_scale = (
            None if largest_input is None else max(largest_input, 1e-12) / FP8_LARGEST
        )
        able = linear.weight.is_cuda and torch.cuda.get_device_capability(linear.weight.device) >= (
            8,
            9,
        )
        fits = self.in_features % 16 == 0 and self.out_features % 16 == 0
        self.multiplies = able and fits and self.dtype == torch.bfloat16
        self._row_scales: dict[int, Tensor] = {}

    @property
    def weight(self) -> Tensor:
        """(out, in) in the original precision."""
        return (self.kept.float() * self.scale).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        if not self.multiplies:
            if self.input_scale is not None:
                x = self._rounded(x).to(x.dtype) * self.input_scale
            return functional.linear(x, self.weight, self.bias)
        flat = x.flatten(0, -2)
        if self.input_scale is None:
            scale = (
                flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / FP8_LARGEST
            )  # (rows, 1)
            small = (flat / scale).to(torch.float8_e4m3fn)
        else:
            scale = self._scales_of(flat)
            small = self._rounded(flat)
        y = torch._scaled_mm(
            small,
            self.kept.t(),
            scale_a=scale,
            scale_b=self.scale.t(),
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return y.unflatten(0, x.shape[:-1])

    def _rounded(self, x: Tensor) -> Tensor:
        """The inputs over their scale in fp8."""
        assert self.input_scale is not None
        # The cast does not saturate: what is larger would become NaN.
        return (
            (x * (1 / self.input_scale)).clamp_(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn)
        )

    def _scales_of(self, flat: Tensor) -> Tensor:
        """(rows, 1) float32, the input's scale for every row, made once per number of rows."""
        rows = len(flat)
        if rows not in self._row_scales:
            self._row_scales[rows] = torch.full(
                (rows, 1), float(self.input_scale or 0.0), device=flat.device
            )
        return self._row_scales[rows]
