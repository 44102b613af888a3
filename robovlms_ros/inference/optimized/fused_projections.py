"""Linear layers that read the same input as one product: queries, keys and values; gate and up.

The joined weights are the only ones: the layers' own become views of them, so the plain path runs
the same numbers from the same memory. Norm weights are not folded in: in half precision that rounds
every weight once more, and compiled code multiplies by them for nothing.
"""

import torch
from torch import Tensor, nn

from robovlms_ros.inference.optimized.text_towers import Module, shallow

GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
OWNERS = ("self_attn", "mlp")


class JoinedLinear(nn.Module):
    """Several linear layers of one input. `part` computes all of them at the first call with an
    input and hands the others out at the next ones."""

    def __init__(self, linears: list[nn.Linear]):
        super().__init__()
        self.sizes = [linear.out_features for linear in linears]
        self.linear = nn.Linear(1, 1, device="meta")
        self.linear.in_features = linears[0].in_features
        self.linear.out_features = sum(self.sizes)
        for name in ("weight", "bias"):
            setattr(self.linear, name, _joined([getattr(linear, name) for linear in linears]))
        self._last: tuple[Tensor, tuple[Tensor, ...]] | None = None

    def part(self, x: Tensor, index: int) -> Tensor:
        """x (..., in) to the output (..., out) of layer `index`."""
        known = self._last  # read once: another thread may replace it
        if known is None or known[0] is not x:
            known = (x, self.linear(x).split(self.sizes, dim=-1))
        self._last = None if index == len(self.sizes) - 1 else known
        return known[1][index]


class JoinedPart(nn.Module):
    """One of the layers of a JoinedLinear."""

    def __init__(self, joined: JoinedLinear, index: int):
        super().__init__()
        self.joined = joined
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out)."""
        return self.joined.part(x, self.index)


def fused_tower(tower: Module) -> Module:
    """A second object of `tower` whose projections of one input are joined; `tower` where there are
    none."""
    joined = 0

    def convert(module: nn.Module, name: str) -> nn.Module:
        nonlocal joined
        clone = shallow(module)
        for child_name, child in module._modules.items():
            if child is not None:
                clone._modules[child_name] = convert(child, child_name)
        for group in GROUPS:
            linears = [module._modules.get(part) for part in group]
            if name in OWNERS and _fit(linears):
                whole = JoinedLinear(linears)  # type: ignore[arg-type]
                for index, part in enumerate(group):
                    clone._modules[part] = JoinedPart(whole, index)
                joined += 1
        return clone

    fused = convert(tower, "")
    return fused if joined else tower  # type: ignore[return-value]


def _fit(linears: list[nn.Module | None]) -> bool:
    """True for plain linear layers of one input, all with a bias or all without."""
    if not all(type(linear) is nn.Linear for linear in linears):
        return False
    return len({(linear.in_features, linear.bias is None) for linear in linears}) == 1  # type: ignore[union-attr]


@torch.no_grad()
def _joined(parameters: list[nn.Parameter | None]) -> nn.Parameter | None:
    """The parameters behind each other; each becomes a view of the result. Parameters that are
    views of one tensor already are not copied again."""
    given = [parameter for parameter in parameters if parameter is not None]
    if not given:
        return None
    whole = torch.cat([parameter.detach() for parameter in given])
    for parameter, view in zip(given, whole.split([len(p) for p in given]), strict=True):
        parameter.data = view
    return nn.Parameter(whole, requires_grad=False)
