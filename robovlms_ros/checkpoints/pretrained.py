"""From a pretrained VLM to a VLA: the backbone's weights from the model's own files, head and
action token new."""

import logging
from pathlib import Path

import torch

from robovlms_ros.checkpoints.parameter_names import VLM, KeyLayout, with_tied_embedding
from robovlms_ros.checkpoints.weights import INDEX, WEIGHTS, CheckpointError, assign, read_tensors
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.models.backbones.hf_config import find_vlm_folder
from robovlms_ros.models.tokenization import load_tokenizer
from robovlms_ros.models.vla_policy import VLAPolicy

log = logging.getLogger(__name__)
PARTS = ("lang_encoder", "vision_encoder", "")


def policy_from_vlm(
    config: PolicyConfig, seed: int = 0, dtype: torch.dtype | None = None, beside: Path | None = None
) -> VLAPolicy:
    """A policy whose backbone has the weights of `vlm.model_name` (hub cache or folder,
    safetensors, sharded or not).

    Everything else is new: seeded random weights, action token zero, so `is_random` stays True
    until it is trained. A model in several parts (OpenFlamingo) has the parts' own files in
    subfolders `lang_encoder`, `vision_encoder`.
    dtype: of the weights, default float32, as trained. Raises CheckpointError listing every key
        that does not fit.
    """
    folder = vlm_folder(config, beside)
    tokenizer = load_tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = VLAPolicy(config, tokenizer, folder, empty_backbone=True)
    tensors = policy.vlm.adapt_tensors(vlm_tensors(folder))
    layout = KeyLayout(policy, ())

    def canonical(key: str) -> str:
        key = key.removeprefix("module.")
        return layout.canonical(key if key.startswith(VLM) else VLM + key)

    tensors = with_tied_embedding(policy, tensors, canonical)
    newest = {canonical(key): key for key in tensors}  # the model's own file comes after its parts'
    chosen = {key: tensors[key] for key in newest.values()}
    assign(policy.vlm.backbone, chosen, canonical, str(folder), layout.ignored, dtype or torch.float32)
    log.info("backbone of %s: %d tensors from %s; head and action token are new", policy.identity, len(chosen), folder)
    return policy.eval()


def vlm_folder(config: PolicyConfig, beside: Path | None = None) -> Path:
    """Folder of the files of `vlm.model_name`. Raises CheckpointError when there is none."""
    name = config.vlm.model_name
    if name is None:
        raise CheckpointError("vlm.model_name is empty: name the pretrained VLM (a folder, or a cached hub id).")
    folder = find_vlm_folder(name, beside)
    if folder is None:
        raise CheckpointError(
            f"vlm.model_name = '{name}': no config.json there, neither as a folder nor in the local hub cache. "
            "Download the model (config, tokenizer and safetensors files) and give its folder."
        )
    return folder


def vlm_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a model's folder, those of a part's subfolder under the part's name."""
    tensors: dict[str, torch.Tensor] = {}
    for part in PARTS:
        place = folder / part
        files = [place / name for name in (INDEX, WEIGHTS, "checkpoint.pt") if (place / name).is_file()][:1]
        for file in files:
            prefix = f"{part}." if part else ""
            tensors.update({f"{prefix}{key}": tensor for key, tensor in read_tensors(file).items()})
    if not tensors:
        raise CheckpointError(f"{folder}: no {WEIGHTS} or {INDEX} there: the model's weights are not at hand.")
    return tensors
