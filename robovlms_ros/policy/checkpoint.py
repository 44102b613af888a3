"""Policies from disk and to disk.

Our format is a folder: `config.yaml` (the whole PolicyConfig), `config.json` (the VLM's transformers configuration),
`model.safetensors` (tied tensors once), and the tokenizer's files.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import yaml

from robovlms_ros.config import PolicyConfig, config_to_mapping, load_config
from robovlms_ros.policy.policy import VLAPolicy
from robovlms_ros.policy.weights import CheckpointError, apply_rules, assign, parameters_on_meta, unique_state

log = logging.getLogger(__name__)
WEIGHTS, CONFIG, VLM_CONFIG = "model.safetensors", "config.yaml", "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_policy(config: PolicyConfig, seed: int = 0, folder: Path | None = None) -> VLAPolicy:
    """A policy with seeded random weights (the caller's random state is kept).

    folder: where a configuration file that names the VLM lies. Its tokenizer: of the named VLM where it is at hand,
    words of `vlm.vocabulary`, else bytes.
    """
    from robovlms_ros.backbones.hf_config import find_vlm_folder

    vlm_folder = None
    if config.vlm.size == "full" and config.vlm.model_name is not None:
        vlm_folder = find_vlm_folder(config.vlm.model_name, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VLAPolicy(config, random_tokenizer(config, vlm_folder), vlm_folder).eval()


def random_tokenizer(config: PolicyConfig, vlm_folder: Path | None) -> Any:
    """The tokenizer of a policy without a checkpoint."""
    from robovlms_ros.processing import text
    from robovlms_ros.processing.byte_tokenizer import build_byte_tokenizer
    from robovlms_ros.registry import resolve

    spec = resolve("backbone", config.model.backbone).spec
    if config.vlm.vocabulary:
        template = spec.prompt
        if config.vlm.prompt is not None:
            template = text.PromptTemplate(config.vlm.prompt, template.add_special_tokens, template.max_length)
        return text.build_word_tokenizer(
            config.vlm.vocabulary, template, add_bos=spec.bos_offset > 0, add_eos=spec.eos_offset > 0
        )
    if vlm_folder is not None:
        try:
            return text.load_tokenizer(vlm_folder)
        except text.TokenizerError as error:
            log.warning("%s Using bytes as tokens: the weights are random anyway.", error)
    return build_byte_tokenizer(spec.prompt, add_bos=spec.bos_offset > 0, add_eos=spec.eos_offset > 0)


def save_policy(policy: VLAPolicy, folder: str | Path) -> Path:
    """Write `policy` in our format; returns the folder."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_dump(config_to_mapping(policy.config), sort_keys=False, allow_unicode=True)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    vlm = json.dumps(policy.vlm.hf_config.to_dict(), indent=1, default=str)
    (folder / VLM_CONFIG).write_text(vlm, encoding="utf-8")
    if policy.prompt is not None:
        policy.prompt.tokenizer.save_pretrained(folder)
    save_file(unique_state(policy), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def load_policy(
    checkpoint: str | Path,
    config: PolicyConfig | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> VLAPolicy:
    """The policy in a checkpoint folder, ready to run.

    config: instead of the folder's own. dtype: of the weights, default `vlm.precision`. Raises CheckpointError (files
    unreadable, keys that do not fit), ConfigError, TokenizerError.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder. Give a folder with {CONFIG} and {WEIGHTS}.")
    for name in (CONFIG, VLM_CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing; a checkpoint folder holds {CONFIG}, {VLM_CONFIG}, {WEIGHTS}.")
    if config is None:
        config = load_config(folder / CONFIG)
    from robovlms_ros.processing.text import load_tokenizer

    with parameters_on_meta():
        policy = VLAPolicy(config, load_tokenizer(folder), folder)
    rules = policy.vlm.spec.key_rules
    tensors = read_safetensors(folder / WEIGHTS)
    assign(
        policy,
        tensors,
        lambda key: canonical_key(key, rules),
        str(folder / WEIGHTS),
        dtype=dtype or DTYPES[config.vlm.precision],
    )
    policy.is_random = False
    policy.identity = folder.name or policy.identity
    return policy.to(device).eval()


def canonical_key(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """A key of the policy with the VLM's part in its family's common names."""
    prefix = "vlm.backbone."
    return prefix + apply_rules(key[len(prefix) :], rules) if key.startswith(prefix) else key


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, memory-mapped. Raises CheckpointError when it is truncated or not safetensors."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}). The file is truncated or of another kind; fetch it again."
        ) from error
