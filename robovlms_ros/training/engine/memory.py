"""How much memory a training step takes, found without any: the real step, on tensors that have a shape and no data.

The policy's parameters lie on the meta device and a whole step (forward and backward) runs on it; every storage that an
operation makes is counted from its birth to its death. Attention is counted as the fused kernels do it, which keep no
matrix of weights. What the allocator rounds up, what libraries take for themselves (CUDA's context, about 0.5 GiB) and
images on their way are not in it.
"""

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from robovlms_ros.backbones.empty import parameters_on_meta
from robovlms_ros.config import PolicyConfig
from robovlms_ros.config_training import LoraConfig, TrainingConfig
from robovlms_ros.policy.policy import VLAPolicy
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.trainable import prepare

GIB = 2**30
MOMENTS = 2  # AdamW's, in float32
aten = torch.ops.aten


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of a step after the first. parameters, trained: numbers.

    weights: float32, and with mixed precision the copies that are computed with. gradients, moments: float32, of what
    trains. activations: what else there is at that moment, most of it kept by the forward pass for the backward pass;
    where the worst moment is before the gradients are made, less than the forward pass keeps.
    """

    parameters: int
    trained: int
    weights: int
    gradients: int
    moments: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.moments + self.activations


class ShapesOnly(TorchDispatchMode):
    """Operations with a meta tensor among their arguments run on the meta device, others as ever; storages on it are
    counted. peak, now: bytes since the mode began."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def ignore(self, tensor: Tensor) -> None:
        """What existed before."""
        self._alive[id(tensor.untyped_storage())] = tensor.untyped_storage()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if func is aten._local_scalar_dense.default and flat[0].is_meta:
            return True if flat[0].dtype == torch.bool else 1  # transformers asks whether a mask hides nothing
        if func is aten._to_copy.default and not flat[0].is_meta and not flat[0].is_floating_point():
            kwargs = {**kwargs, "device": flat[0].device}  # masks and sizes keep their values: code asks for them
        elif any(x.is_meta for x in flat):
            if func in (aten.index.Tensor, aten.index_put.default, aten._index_put_impl_.default,
                        aten._unsafe_index_put.default):
                args = (args[0], [i for index in args[1] for i in _positions(index)], *args[2:])
            args, kwargs = tree_map(_to_meta, (args, kwargs))
        result = func(*args, **kwargs)
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._count(tensor)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive[key] = weakref.ref(storage)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.pop(key, None)
        self.now -= size


def _positions(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as positions, which alone tell how many there are."""
    if index is None or index.is_meta or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return index.nonzero().unbind(1)


def _to_meta(x: Any) -> Any:
    return x.to("meta") if isinstance(x, Tensor) and not x.is_meta and x.ndim > 0 else x


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps: queries, keys, values, the output, and a number per row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)  # laid out as the kernels do
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Within the block, attention is the fused kernels', and numbers that code writes down keep their values."""
    attention, tensor = functional.scaled_dot_product_attention, torch.tensor

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        return _FusedAttention.apply(query, key, value)

    def write_down(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        if torch.device(kwargs.get("device") or "cpu").type == "meta":
            kwargs.pop("device")
        return tensor(data, *args, **kwargs)

    functional.scaled_dot_product_attention, torch.tensor = attend, write_down
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, torch.tensor = attention, tensor


def estimate(config: PolicyConfig, folder: Path | None = None) -> Memory:
    """The memory of one step of `config.training` in one process. Raises BackboneError, TrainingError.

    folder: where a configuration file that names the VLM lies; its weights are not needed.
    """
    training = config.training
    policy = meta_policy(config, folder)
    with parameters_on_meta():
        prepare(policy, training)
    half = training.precision != "float32"
    if half:
        policy.vlm.to(getattr(torch, training.precision))  # the head computes in float32
    parameters = list(policy.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    buffers = sum(b.numel() * b.element_size() for b in policy.buffers())
    peak, gradients = step_peak(policy, example(policy, training.batch_size))
    weights = 4 * total + buffers + (2 * total if half else 0)
    return Memory(total, trained, weights, 4 * trained, 4 * MOMENTS * trained, peak - gradients)


def step_peak(policy: VLAPolicy, batch: dict[str, Any]) -> tuple[int, int]:
    """Bytes at the worst moment of a forward and backward pass beyond the weights, and those of the gradients."""
    policy.train()
    objective = Objective(policy)
    mode = ShapesOnly()
    for tensor in [*policy.parameters(), *policy.buffers()]:
        mode.ignore(tensor)
    with _stand_ins(), mode:
        objective(batch)["loss"].backward()
    gradients = sum(p.grad.numel() * p.grad.element_size() for p in policy.parameters() if p.grad is not None)
    return mode.peak, gradients


def meta_policy(config: PolicyConfig, folder: Path | None) -> VLAPolicy:
    """The policy without memory for its parameters."""
    from robovlms_ros.backbones.hf_config import find_vlm_folder
    from robovlms_ros.policy.checkpoint import random_tokenizer

    name = config.vlm.model_name
    place = find_vlm_folder(name, folder) if config.vlm.size == "full" and name is not None else None
    with parameters_on_meta():
        return VLAPolicy(config, random_tokenizer(config, place), place)


def example(policy: VLAPolicy, size: int) -> dict[str, Any]:
    """A batch of `size` windows: pixels and targets on the meta device, words and masks real."""
    config, side = policy.config, policy.vlm.image_size
    window, chunk, dims = config.model.history_length, config.model.action_chunk_size, config.action_head.action_dim
    words = config.vlm.vocabulary[:6] or ("pick", "up", "the", "red", "cube", "now")
    tokens = policy.require_prompt().encode([" ".join(words)] * size)
    batch: dict[str, Any] = {
        "images": {c: torch.empty(size, window, 3, side, side, device="meta") for c in config.cameras},
        "arm": torch.empty(size, window, chunk, dims - 1, device="meta"),
        "gripper": torch.empty(size, window, chunk, device="meta"),
        "mask": torch.ones(size, window, chunk, dtype=torch.bool),
        "input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask,
    }
    if config.proprioception is not None:
        batch["proprioception"] = torch.empty(size, window, config.proprioception.size, device="meta")
    return batch


def compare(config: PolicyConfig, folder: Path | None = None) -> dict[str, Memory]:
    """Full fine-tuning and adapters, each with and without gradient checkpointing, beside what `config` says."""
    training = config.training
    lora = training.lora or LoraConfig()
    kinds: dict[str, TrainingConfig] = {"as configured": training}
    for name, block in (("full fine-tuning", {"lora": None, "freeze": (), "train_last_layers": None}),
                        (f"LoRA, rank {lora.rank}", {"lora": lora, "freeze": (), "train_last_layers": None})):
        for checkpointing in (False, True):
            label = f"{name}, gradient checkpointing" if checkpointing else name
            changes: dict[str, Any] = {**block, "gradient_checkpointing": checkpointing}
            kinds[label] = dataclasses.replace(training, **changes)
    return {k: estimate(dataclasses.replace(config, training=v), folder) for k, v in kinds.items()}


def table(rows: dict[str, Memory]) -> str:
    """The comparison in GiB, one line each."""
    first = next(iter(rows.values()))
    width = max(map(len, rows))
    names = ("weights", "gradients", "moments", "activations", "total")
    lines = [f"{first.parameters / 1e6:,.0f} million parameters; GiB at the worst moment of a step, one process",
             f"{'':<{width}}  {'trained':>10}" + "".join(f"{name:>13}" for name in names)]
    for label, memory in rows.items():
        numbers = "".join(f"{getattr(memory, name) / GIB:13.2f}" for name in names)
        lines.append(f"{label:<{width}}  {memory.trained / 1e6:8,.1f} M{numbers}")
    return "\n".join(lines)
