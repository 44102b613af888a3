"""Trainable parameters of a policy: freezing, low-rank adapters (peft), gradient
checkpointing."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robovlms_ros.config.training import LoraConfig, TrainingConfig
from robovlms_ros.models.backbones.base import BaseRoboVLM
from robovlms_ros.models.perceiver import GatedCrossAttention, PerceiverResampler
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine.batches import TrainingError

log = logging.getLogger(__name__)
ADAPTER = "default"


def prepare(policy: VLAPolicy, config: TrainingConfig) -> VLAPolicy:
    """Set `requires_grad`, add adapters, switch on checkpointing, by `config`; in place.
    Raises TrainingError."""
    for parameter in policy.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for name in config.freeze:
        vlm = policy.vlm
        parts = {
            "vision": vlm.vision_tower,
            "text": vlm.text_tower,
            "word_embedding": vlm.word_embedding,
            "backbone": vlm.backbone,
        }
        parts[name].requires_grad_(False)
    if config.train_last_layers is not None:
        layers = decoder_layers(policy)
        if config.train_last_layers > len(layers):
            raise TrainingError(
                f"training.train_last_layers = {config.train_last_layers}: the language model has {len(layers)} layers."
            )
        for layer in list(layers)[-config.train_last_layers :]:
            layer.requires_grad_(True)
    if config.lora is not None:
        policy.vlm.backbone.requires_grad_(False)
        add_adapters(policy, config.lora)
    if config.gradient_checkpointing:
        checkpoint_gradients(policy)
    return policy


def initialise(policy: VLAPolicy, seed: int) -> None:
    """Random weights as a small model needs them, whatever the family's own are: places as loud as
    pixels, words and an action token as loud as features.

    SigLIP's own position embeddings have a seventh of the norm of what a white table adds to every
    patch. Where another tower's weights are smaller than SigLIP's, they are scaled to its norms.
    Kosmos-2 projects image features of unit norm, which its latent queries would drown. Flamingo's
    gates are closed at first, and its latents would drown the image that they attend to.
    """
    generator = torch.Generator().manual_seed(seed)
    vlm = policy.vlm
    words = vlm.hidden_size**0.5 / getattr(vlm.text_tower, "embed_scale", vlm.input_scale)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("position_embedding.weight"):
                _raise_norm(parameter, parameter.shape[1] ** -0.5)
                parameter.mul_(4.0)
            elif name.endswith("image_to_text_projection.dense.weight"):
                parameter.mul_(parameter.shape[1] ** 0.5)
            elif name.endswith(("attn_gate", "ff_gate")):
                parameter.fill_(1.0)
            elif name.endswith("perceiver.latents"):
                parameter.mul_(0.1)
            elif name.endswith("action_token"):
                parameter.copy_(0.08 * words * torch.randn(parameter.shape, generator=generator))
        for module in (m for part in _image_parts(vlm) for m in part.modules()):
            if isinstance(module, nn.Linear):
                xavier = (2.0 / (module.in_features + module.out_features)) ** 0.5
                _raise_norm(module.weight, xavier)
        vlm.word_embedding.weight.mul_(words)


def _image_parts(vlm: BaseRoboVLM) -> list[nn.Module]:
    """The vision tower, and Flamingo's modules between it and the words."""
    between = (PerceiverResampler, GatedCrossAttention)
    return [vlm.vision_tower, *(m for m in vlm.modules() if isinstance(m, between))]


def _raise_norm(weight: Tensor, usual: float) -> None:
    """Scale a weight whose standard deviation is below 0.7 of the usual one."""
    own = weight.std()
    if own < 0.7 * usual:
        weight.mul_(usual / own)


def decoder_layers(policy: VLAPolicy) -> nn.ModuleList:
    """The language model's layers: its largest list of modules. Raises TrainingError where it
    has none."""
    lists = [m for m in policy.vlm.text_tower.modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise TrainingError(f"backbone '{policy.vlm.spec.name}': no list of layers was found in its language model.")
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()))


def checkpoint_gradients(policy: VLAPolicy) -> None:
    """transformers' own gradient checkpointing in every model that has it. Raises TrainingError
    where none has."""
    from transformers import PreTrainedModel

    models = [m for m in policy.vlm.modules() if isinstance(m, PreTrainedModel) and m.supports_gradient_checkpointing]
    if not models:
        raise TrainingError(
            f"training.gradient_checkpointing with backbone '{policy.vlm.spec.name}': its models do not support it. "
            "Set it to false, or take a smaller batch_size and more accumulation."
        )
    for model in models:
        # The older name goes with transformers 6.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})


def add_adapters(policy: VLAPolicy, config: LoraConfig) -> None:
    """Adapters in the language model, B zero: the policy answers as before. Raises
    TrainingError: nothing matches."""
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise TrainingError("training.lora needs the library peft: `pip install peft`, or leave out lora.") from error
    tower = policy.vlm.text_tower
    linear = [name for name, module in tower.named_modules() if isinstance(module, nn.Linear)]
    chosen = [n for n in linear if not config.targets or any(f".{n}".endswith(f".{t}") for t in config.targets)]
    if not chosen:
        names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise TrainingError(
            f"training.lora.targets = {list(config.targets)}: no linear layer of the language model has such a name. "
            f"It has {names}."
        )
    settings = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=chosen  # type: ignore
    )
    inject_adapter_in_model(settings, tower, adapter_name=ADAPTER)


def merge_adapters(policy: VLAPolicy, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A policy's state as that of one without adapters, their product added to the weights
    (float32); and the adapters.

    state: of `policy`, whole tensors. The second part is empty without adapters.
    """
    adapters = {k.replace(f".{ADAPTER}.", "."): v for k, v in state.items() if ".lora_" in k}
    merged = {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}
    for key in adapters:
        name, found, _ = key.partition(".lora_A.")
        if not found:
            continue
        layer: Any = policy.get_submodule(name)
        a = adapters[key]
        b = adapters[f"{name}.lora_B.weight"]
        update = layer.scaling[ADAPTER] * (b.float() @ a.float())
        merged[f"{name}.weight"] = merged[f"{name}.weight"].float() + update
    return merged, adapters


def count(policy: nn.Module) -> tuple[int, int]:
    """(all, trained) numbers in the parameters, tied ones once."""
    parameters = list(policy.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def optimiser(module: nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over what trains, for weights that will be on `device`. Raises TrainingError when
    nothing trains."""
    trained = [p for p in module.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError(f"training.freeze = {list(config.freeze)}: nothing is left to train. Freeze less.")
    groups = [{"params": trained, "weight_decay": config.weight_decay}]
    if not config.decay_vectors:
        vectors = [p for p in trained if p.ndim <= 1]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
    # elsewhere the plain loop, which needs no copies of everything either
    fused = device.type == "cuda"
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
