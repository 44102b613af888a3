"""Linear layers with weights in fewer bits, for GPUs that the whole model does not fit. Activations
keep their precision, except with fp8 on a GPU that multiplies it.

int8: one scale per output. int4: two numbers in a byte, one scale and offset per 64 inputs. fp8
    (e4m3): one scale per
output. The weights that are not quantised (norms, embeddings) are shared with the model that they
come from.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.inference.optimized.options import FastPathError
from robovlms_ros.inference.optimized.text_towers import Module, shallow

GROUP = 64
FP8_LARGEST = 448.0


def quantized_tower(tower: Module, preset: str) -> Module:
    """A second module object whose linear layers hold `preset` (int8, int4, fp8) weights. Raises
    FastPathError."""
    if preset not in LINEARS:
        raise FastPathError(f"quantize '{preset}': must be one of {', '.join(LINEARS)}.")
    made: dict[int, nn.Module] = {}

    def convert(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            if type(module) is nn.Linear and module.in_features % GROUP == 0:
                made[id(module)] = LINEARS[preset](module)
            else:
                clone = shallow(module)
                for name, child in module._modules.items():
                    clone._modules[name] = None if child is None else convert(child)
                made[id(module)] = clone
        return made[id(module)]

    return convert(tower)  # type: ignore[return-value]


def adopt(tower: nn.Module, quantized: nn.Module) -> None:
    """Put the linear layers of `quantized` (made from `tower`) in the place of `tower`'s own, whose
    weights are freed: it cannot be saved or trained any more."""
    for name, child in tower._modules.items():
        other = quantized._modules[name]
        if isinstance(other, QuantizedLinear):
            tower._modules[name] = other
        elif child is not None and other is not None:
            adopt(child, other)


class QuantizedLinear(nn.Module):
    """Base: y = x W^T + b with W made from what is kept."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        self.__dict__["bias"] = linear.bias

    @property
    def weight(self) -> Tensor:
        """(out, in) in the original precision."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        return functional.linear(x, self.weight, self.bias)


class Int8Linear(QuantizedLinear):
    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        self.kept = nn.Buffer((weight / scale).round().to(torch.int8), persistent=False)
        self.scale = nn.Buffer(scale.to(self.dtype), persistent=False)  # (out, 1)

    @property
    def weight(self) -> Tensor:
        return self.kept.to(self.dtype) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out); scaled after the product, which leaves the weights at one
        conversion."""
        y = functional.linear(x, self.kept.to(x.dtype)) * self.scale[:, 0]
        return y if self.bias is None else y + self.bias


class Int4Linear(QuantizedLinear):
    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        weight = linear.weight.detach().float().unflatten(1, (-1, GROUP))  # (out, groups, GROUP)
        low = weight.amin(-1, keepdim=True)
        high = weight.amax(-1, keepdim=True)
        scale = ((high - low) / 15).clamp_min(1e-12)
        level = ((weight - low) / scale).round().clamp(0, 15).to(torch.uint8)
        # (out, groups, GROUP / 2)
        self.kept = nn.Buffer(level[..., 0::2] | (level[..., 1::2] << 4), persistent=False)
        self.scale = nn.Buffer(scale.to(self.dtype), persistent=False)
        self.low = nn.Buffer(low.to(self.dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        level = torch.stack((self.kept & 15, self.kept >> 4), dim=-1).flatten(-2)
        return (level.to(self.dtype) * self.scale + self.low).flatten(1)


class Fp8Linear(QuantizedLinear):
    """On CUDA from compute capability 8.9 with bfloat16, both factors are fp8 and the product runs
    on its units."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear)
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / FP8_LARGEST
        self.kept = nn.Buffer((weight / scale).to(torch.float8_e4m3fn), persistent=False)
        self.scale = nn.Buffer(scale, persistent=False)  # (out, 1) float32
        able = linear.weight.is_cuda and torch.cuda.get_device_capability(linear.weight.device) >= (8, 9)
        fits = self.in_features % 16 == 0 and self.out_features % 16 == 0
        self.multiplies = able and fits and self.dtype == torch.bfloat16

    @property
    def weight(self) -> Tensor:
        return (self.kept.float() * self.scale).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        if not self.multiplies:
            return super().forward(x)
        flat = x.flatten(0, -2)
        scale = flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / FP8_LARGEST  # (rows, 1)
        small = (flat / scale).to(torch.float8_e4m3fn)
        y = torch._scaled_mm(small, self.kept.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=x.dtype)
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


LINEARS: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear, "fp8": Fp8Linear}
