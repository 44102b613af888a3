"""Processes and precision of a run: accelerate, where a run
can be resumed."""

from typing import Any

import torch
from torch import nn

from robovlms_ros.config.training import TrainingConfig
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine.batches import TrainingError

PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
ROUNDED = (nn.Linear, nn.Conv2d, nn.Conv3d)
_HERE = "Choose several GPUs (each a copy of the model) or FSDP version 2 in `accelerate config`."


def build_accelerator(training: TrainingConfig, device: torch.device | str | None = None) -> Any:
    """Accelerate by the configuration and the environment (`accelerate launch`). Raises
    TrainingError.

    device: of a run in one process, in the place of accelerate's choice.
    """
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState, GradientState
    except ImportError as error:
        raise TrainingError("training needs the library accelerate: `pip install accelerate`.") from error
    # Another run in this process may have computed in another precision, or on another device.
    AcceleratorState._reset_state(reset_partial_state=device is not None)
    GradientState._reset_state()
    # Some towers have parameters that their features do not pass through.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    on = None if device is None else torch.device(device)
    if on is not None and on.type == "cuda":
        torch.cuda.set_device(on.index or 0)
    accelerator = Accelerator(
        cpu=on is not None and on.type == "cpu", mixed_precision=PRECISIONS[training.precision],
        gradient_accumulation_steps=training.accumulation,
        kwargs_handlers=handlers,
    )
    require_supported(accelerator)
    return accelerator


def require_supported(accelerator: Any) -> None:
    """Raises TrainingError, naming what to choose, for what a run's state and checkpoints could not
    be written from.

    accelerator: of accelerate; `distributed_type` and, with FSDP, `is_fsdp2` are read.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind == "FSDP" and not accelerator.is_fsdp2:
        raise TrainingError(
            "accelerate is set to FSDP version 1, which flattens parameters: the names that the run's state and its "
            "checkpoints are written by are lost. Set fsdp_version: 2 (in `accelerate config`, or `accelerate launch "
            "--fsdp_version 2`)."
        )
    if kind == "DEEPSPEED":
        raise TrainingError(
            f"accelerate is set to DeepSpeed, which keeps the optimiser's moments in files of its own. {_HERE}"
        )
    if kind in ("MEGATRON_LM", "XLA"):
        raise TrainingError(f"accelerate is set to {kind}, which this package has no support for. {_HERE}")


def hold_frozen(policy: VLAPolicy, training: TrainingConfig) -> VLAPolicy:
    """Keep what does not train in the precision that it is computed in, where that changes no
    number; in place.

    These are the weights of linear layers and convolutions, which mixed precision rounds in every
    step anyway. Embeddings, norms and loose parameters are added and multiplied in float32: they
    stay, as does what trains.
    """
    if training.precision == "float32":
        return policy
    precision = getattr(torch, training.precision)
    modules = list(policy.vlm.modules())
    rounded = [m for m in modules if isinstance(m, ROUNDED)]
    # A word embedding that serves as the output layer too is looked up in float32.
    shared = {id(p) for m in modules if not isinstance(m, ROUNDED) for p in m.parameters(recurse=False)}
    for module in rounded:
        for parameter in module.parameters(recurse=False):
            if not parameter.requires_grad and parameter.dtype == torch.float32 and id(parameter) not in shared:
                parameter.data = parameter.data.to(precision)
    return policy
