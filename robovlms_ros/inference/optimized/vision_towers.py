"""The vision tower without layers that nothing reads, and with joined weights.

The model itself is left as it is: second module objects share every weight with it.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn

from robovlms_ros.inference.optimized.fused_projections import fused_tower
from robovlms_ros.inference.optimized.text_towers import shallow
from robovlms_ros.models.backbones.base import BaseRoboVLM

Model = TypeVar("Model", bound=nn.Module)


def lean_encoder(vlm: BaseRoboVLM, fused: bool) -> BaseRoboVLM:
    """`vlm`, or a second object of it whose `encode_images` skips the vision layers behind
    `vision_depth` and keeps SmolVLM's positions. fused: the vision tower's projections of one input are one product."""
    tower = vlm.vision_tower
    lean = fused_tower(tower) if fused else tower
    if type(getattr(tower, "embeddings", None)).__name__ == "SmolVLMVisionEmbeddings":
        lean = _replaced(
            lean, lean.embeddings, _with_fixed_positions(lean.embeddings, vlm.image_size)
        )
    if vlm.vision_depth is not None:
        lean = _without_layers_behind(lean, vlm.vision_depth)
    return vlm if lean is tower else _replaced(vlm, tower, lean)


@torch.no_grad()
def _with_fixed_positions(embeddings: Model, size: int) -> Model:
    """SmolVLM's embeddings for whole images of `size` pixels. transformers finds the patches'
    positions by a boolean mask at every call, which waits for the device; here the model's own
    answer is kept."""
    weight = embeddings.patch_embedding.weight
    side = size // embeddings.patch_size
    found: list[Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(
        lambda _, given: found.append(given[0])
    )
    whole = torch.ones(1, side, side, dtype=torch.bool, device=weight.device)
    embeddings(weight.new_zeros(1, 3, size, size), whole)
    hook.remove()
    clone = shallow(embeddings)

    def forward(pixel_values: Tensor, patch_attention_mask: Tensor) -> Tensor:
        patches = clone.patch_embedding(pixel_values).flatten(2).transpose(1, 2)  # (N, n, d)
        return patches + clone.position_embedding(found[0])

    clone.__dict__["forward"] = forward
    return clone


def _without_layers_behind(tower: Model, depth: int) -> Model:
    """`tower` whose encoder layers behind the first `depth` return their input."""
    name, layers = next(
        (name, module)
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList)
    )
    # Objects of their own: transformers installs hooks on layers once per model that holds them.
    kept = [shallow(layer) if i < depth else _skipped(layer) for i, layer in enumerate(layers)]
    return _replaced(tower, layers, nn.ModuleList(kept)) if name else tower


def _skipped(layer: nn.Module) -> nn.Module:
    """An object of the layer's class, by which transformers collects hidden states and counts
    them."""
    clone = shallow(layer)
    clone.__dict__["forward"] = _unchanged
    return clone


def _unchanged(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
    return hidden_states


def _replaced(model: Model, old: nn.Module, new: nn.Module) -> Model:
    """A second object of `model` with `new` in the place of its descendant `old`."""
    clone = shallow(model)
    for name, child in model._modules.items():
        if child is old:
            clone._modules[name] = new
        elif child is not None and any(module is old for module in child.modules()):
            clone._modules[name] = _replaced(child, old, new)
    return clone
