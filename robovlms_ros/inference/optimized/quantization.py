"""Linear layers with fp8 (e4m3) weights, one scale per output.

Activations keep their precision, except on a GPU that multiplies fp8. The weights that are not
quantised (norms, embeddings) are shared with the model that they come from.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.inference.optimized.text_towers import Module, shallow

FP8_LARGEST = 448.0
GROUP = 64
"""Linear layers with a number of inputs that is no multiple of it keep their weights."""


def quantized_tower(tower: Module) -> Module:
    """A second module object whose linear layers hold fp8 weights."""
    made: dict[int, nn.Module] = {}

    def convert(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            if type(module) is nn.Linear and module.in_features % GROUP == 0:
                made[id(module)] = Fp8Linear(module)
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
        if isinstance(other, Fp8Linear):
            tower._modules[name] = other
        elif child is not None and other is not None:
            adopt(child, other)


class Fp8Linear(nn.Module):
    """y = x W^T + b. On CUDA from compute capability 8.9 with bfloat16, both factors are fp8 and
    the product runs on its units."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        self.__dict__["bias"] = linear.bias
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / FP8_LARGEST
        self.kept = nn.Buffer((weight / scale).to(torch.float8_e4m3fn), persistent=False)
        self.scale = nn.Buffer(scale, persistent=False)  # (out, 1) float32
        able = linear.weight.is_cuda and torch.cuda.get_device_capability(linear.weight.device) >= (8, 9)
        fits = self.in_features % 16 == 0 and self.out_features % 16 == 0
        self.multiplies = able and fits and self.dtype == torch.bfloat16

    @property
    def weight(self) -> Tensor:
        """(out, in) in the original precision."""
        return (self.kept.float() * self.scale).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        if not self.multiplies:
            return functional.linear(x, self.weight, self.bias)
        flat = x.flatten(0, -2)
        scale = flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / FP8_LARGEST  # (rows, 1)
        small = (flat / scale).to(torch.float8_e4m3fn)
        y = torch._scaled_mm(small, self.kept.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=x.dtype)
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias
