"""Policies of any size with random weights, without a second copy of them in memory."""

import re

import torch
from torch import Tensor, nn

from robovlms_ros.bench.policy.cases import Case, config_of
from robovlms_ros.checkpoints.checkpoint import DTYPES, random_tokenizer
from robovlms_ros.checkpoints.weights import tied_groups
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.vla_policy import VLAPolicy

NORM = re.compile(r"(^|[._])(layer_?norm\d?|layrnorm|norm\d?|ln|ln_\w+|\w+_norm|\w+_layrnorm|\w+_layernorm|norm_\w+)$")


def build(case: Case, device: torch.device, seed: int | None = 0) -> VLAPolicy:
    """The policy of a case on `device`: every weight is drawn where it will stay, in the precision it will have.

    seed: None gives all weights one value, which is quick and enough to measure memory.
    """
    config = config_of(case)
    with parameters_on_meta():
        policy = VLAPolicy(config, random_tokenizer(config, None))
    draw_weights(policy, device, DTYPES[case.dtype], seed)
    policy.identity = case.title
    return policy.to(device).eval()


def draw_weights(module: nn.Module, device: torch.device, dtype: torch.dtype, seed: int | None = 0) -> None:
    """Give every parameter of `module` memory and values: matrices normal with 1 / sqrt(columns), so that activations
    keep their scale through any depth; norms the identity; biases small. Tied parameters stay one tensor."""
    generator = torch.Generator(device).manual_seed(seed or 0)
    for group in tied_groups(module):
        owner_name, _, leaf = group[0].rpartition(".")
        owner = module.get_submodule(owner_name)
        old = owner._parameters[leaf]
        assert old is not None
        values = torch.empty(old.shape, dtype=dtype, device=device)
        if seed is None:
            values.fill_(0.01)
        else:
            _draw(values, owner, owner_name, leaf, generator)
        parameter = nn.Parameter(values, requires_grad=False)
        for name in group:
            place, _, last = name.rpartition(".")
            module.get_submodule(place)._parameters[last] = parameter


def _draw(values: Tensor, owner: nn.Module, owner_name: str, leaf: str, generator: torch.Generator) -> None:
    if leaf == "weight" and (isinstance(owner, nn.LayerNorm) or NORM.search(owner_name)):
        # Gemma's norm multiplies by 1 + weight.
        values.fill_(0.0 if "Gemma" in type(owner).__name__ else 1.0)
    elif values.ndim < 2:
        values.normal_(0.0, 0.02, generator=generator)
    else:
        fan_in = values.shape[-1] if values.ndim == 2 else values[0].numel()
        values.normal_(0.0, min(fan_in, 4096) ** -0.5, generator=generator)


def size_of(policy: VLAPolicy) -> dict[str, int]:
    """Numbers of parameters: `all`, and `without_embedding` of the words."""
    total = sum(parameter.numel() for parameter in policy.parameters())
    return {"all": total, "without_embedding": total - policy.vlm.word_embedding.weight.numel()}
