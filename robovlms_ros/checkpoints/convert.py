"""A published checkpoint as a folder in our format."""

import dataclasses
from pathlib import Path

import torch

from robovlms_ros.checkpoints.checkpoint import DTYPES, fill, load_tokenizer_of, locate, save_policy
from robovlms_ros.checkpoints.weights import CheckpointError, read_tensors
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.vla_policy import VLAPolicy


def convert(checkpoint: Path, output: Path, config: str | Path | None = None, dtype: str | None = None) -> Path:
    """Write `checkpoint` to the folder `output`; returns it.

    dtype: of the written weights, default the file's own. The policy goes on computing in
        `vlm.precision`. Raises
    CheckpointError (also where `output` holds something), ConfigError.
    """
    if output.exists() and any(output.iterdir()):
        raise CheckpointError(f"{output}: holds files already. Name a new folder.")
    place = locate(checkpoint.expanduser(), config)
    tensors = read_tensors(place.weights)
    with parameters_on_meta():
        policy = VLAPolicy(place.config, load_tokenizer_of(place, required=False), place.vlm_folder)
    fill(policy, tensors, str(place.weights), DTYPES[dtype] if dtype else _own_dtype(tensors))
    # The folder is complete: what the configuration named as the VLM's place is not needed any
    # more.
    policy.config = dataclasses.replace(policy.config, vlm=dataclasses.replace(policy.config.vlm, model_name=None))
    return save_policy(policy, output)


def _own_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """The dtype of most of the file's numbers."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda kind: counts[kind])
