"""Memory of a training step, estimated on tensors with a shape and no data (torch's
FakeTensorMode)."""

import dataclasses
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.config.training import LoraConfig, TrainingConfig
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.heads.discrete import DiscreteHead
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine.batches import action_tokens
from robovlms_ros.training.engine.devices import hold_frozen
from robovlms_ros.training.engine.objective import Objective
from robovlms_ros.training.engine.trainable import prepare

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
aten = torch.ops.aten
INDEXING = (
    aten.index.Tensor,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
)


def fake(tensor: Tensor) -> Tensor:
    """A fake tensor in the place of a meta tensor; others as they are."""
    if not tensor.is_meta:
        return tensor
    with FAKE:
        return torch.empty_like(tensor, device="cpu")


def fake_parameters(module: nn.Module) -> None:
    """Put fake parameters in the place of those on the meta device; tied ones stay one tensor."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for child in module.modules():
        for name, old in child._parameters.items():
            if old is not None:
                new = made.setdefault(old, nn.Parameter(fake(old), old.requires_grad))
                child._parameters[name] = new


class MemoryCount(TorchDispatchMode):
    """Counts the storages of fake tensors from birth to death. now, peak: bytes, without those of
    `existing`."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._existing = [tensor.untyped_storage() for tensor in existing]
        self._alive = {id(storage) for storage in self._existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        fakes = [x for x in tree_leaves((args, kwargs)) if isinstance(x, FakeTensor)]
        if fakes and func is aten._local_scalar_dense.default:
            # transformers reads whether a mask hides nothing.
            return True if fakes[0].dtype == torch.bool else 1
        if fakes and func in INDEXING:
            args = (args[0], [i for index in args[1] for i in _positions(index)], *args[2:])
        result = func(*args, **(kwargs or {}))
        if fakes and func is aten.argmax.default:
            return torch.zeros(
                result.shape, dtype=result.dtype
            )  # guessed tokens are read as numbers
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _positions(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask as positions: the shape of the result depends on their number."""
    if index is None or isinstance(index, FakeTensor) or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return index.nonzero().unbind(1)


GIB = 2**30
MOMENTS = 2  # AdamW's, in float32


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of a step after the first. parameters, trained: numbers.

    weights: float32 of what trains, and of the rest as `devices.hold_frozen` keeps it. gradients,
        moments: float32, of
    what trains. activations: what else there is at that moment, most of it kept by the forward pass
    for the backward pass, with mixed precision also the copies of weights that are computed with;
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


def estimate(config: PolicyConfig, folder: Path | None = None) -> Memory:
    """The memory of one step of `config.training` in one process. Raises BackboneError,
    TrainingError.

    folder: where a configuration file that names the VLM lies; its weights are not needed.
    """
    training = config.training
    policy = meta_policy(config, folder)
    with parameters_on_meta():
        prepare(policy, training)
    hold_frozen(policy, training)
    fake_parameters(policy)
    parameters = list(policy.parameters())
    total = sum(p.numel() for p in parameters)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    weights = sum(x.numel() * x.element_size() for x in (*parameters, *policy.buffers()))
    half = None if training.precision == "float32" else getattr(torch, training.precision)
    peak, gradients = step_peak(policy, example(policy, training.batch_size), half)
    return Memory(total, trained, weights, 4 * trained, 4 * MOMENTS * trained, peak - gradients)


def step_peak(
    policy: VLAPolicy, batch: dict[str, Any], half: torch.dtype | None = None
) -> tuple[int, int]:
    """Bytes at the worst moment of a forward and backward pass beyond the weights, and those of the
    gradients.

    half: of mixed precision; None is without.
    """
    policy.train()
    batch = tree_map_only(Tensor, fake, batch)
    objective = Objective(policy)
    with MemoryCount([*policy.parameters(), *policy.buffers()]) as count:
        with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
            loss = objective(batch)["loss"]
        loss.backward()
    grads = [p.grad for p in policy.parameters() if p.grad is not None]
    return count.peak, sum(grad.numel() * grad.element_size() for grad in grads)


def meta_policy(config: PolicyConfig, folder: Path | None) -> VLAPolicy:
    """The policy without memory for its parameters."""
    from robovlms_ros.checkpoints.checkpoint import random_tokenizer
    from robovlms_ros.models.backbones.hf_config import find_vlm_folder

    name = config.vlm.model_name
    place = (
        find_vlm_folder(name, folder) if config.vlm.size == "full" and name is not None else None
    )
    with parameters_on_meta():
        return VLAPolicy(config, random_tokenizer(config, place), place)


def example(policy: VLAPolicy, size: int) -> dict[str, Any]:
    """A batch of `size` windows: pixels and targets on the meta device, words and masks real."""
    config = policy.config
    side = policy.vlm.image_size
    window = config.model.history_length
    chunk = config.model.action_chunk_size
    dims = config.action_head.action_dim
    words = config.vlm.vocabulary[:6] or ("pick", "up", "the", "red", "cube", "now")
    mask = torch.ones(size, window, chunk, dtype=torch.bool)
    batch: dict[str, Any] = {
        "images": {
            c: torch.empty(size, window, 3, side, side, device="meta") for c in config.cameras
        },
        "arm": torch.empty(size, window, chunk, dims - 1, device="meta"),
        "gripper": torch.empty(size, window, chunk, device="meta"),
        "mask": mask,
    }
    if config.proprioception is not None:
        batch["proprioception"] = torch.empty(size, window, config.proprioception.size, device="meta")
    sentences = [" ".join(words)] * size
    if isinstance(policy.head, DiscreteHead):
        actions = torch.zeros(size, window, chunk, dims)
        return {**batch, **action_tokens(policy, sentences, actions, mask)}
    tokens = policy.require_prompt().encode(sentences)
    return {**batch, "input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


def compare(config: PolicyConfig, folder: Path | None = None) -> dict[str, Memory]:
    """Full fine-tuning and adapters, each with and without gradient checkpointing, beside what
    `config` requires."""
    training = config.training
    lora = training.lora or LoraConfig()
    kinds: dict[str, TrainingConfig] = {"as configured": training}
    for name, block in (
        ("full fine-tuning", {"lora": None, "freeze": (), "train_last_layers": None}),
        (f"LoRA, rank {lora.rank}", {"lora": lora, "freeze": (), "train_last_layers": None}),
    ):
        for checkpointing in (False, True):
            label = f"{name}, gradient checkpointing" if checkpointing else name
            changes: dict[str, Any] = {**block, "gradient_checkpointing": checkpointing}
            kinds[label] = dataclasses.replace(training, **changes)
    found = {v: estimate(dataclasses.replace(config, training=v), folder) for v in set(kinds.values())}
    return {name: found[v] for name, v in kinds.items()}


def table(rows: dict[str, Memory]) -> str:
    """The comparison in GiB, one line each."""
    first = next(iter(rows.values()))
    width = max(map(len, rows))
    names = ("weights", "gradients", "moments", "activations", "total")
    lines = [
        f"{first.parameters / 1e6:,.0f} million parameters; GiB at the worst moment of a step, one process",
        f"{'':<{width}}  {'trained':>10}" + "".join(f"{name:>13}" for name in names),
    ]
    for label, memory in rows.items():
        numbers = "".join(f"{getattr(memory, name) / GIB:13.2f}" for name in names)
        lines.append(f"{label:<{width}}  {memory.trained / 1e6:8,.1f} M{numbers}")
    return "\n".join(lines)
