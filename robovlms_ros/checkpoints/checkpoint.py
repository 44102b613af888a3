"""Policies from disk and to disk.

Our format is a folder: `config.yaml` (the whole PolicyConfig), `config.json` (the VLM's
transformers configuration), `model.safetensors` (tied tensors once), and the tokenizer's files.
"""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from robovlms_ros.checkpoints.fp8_scales import read_scales
from robovlms_ros.checkpoints.parameter_names import KeyLayout, with_tied_embedding
from robovlms_ros.checkpoints.passport import identity
from robovlms_ros.checkpoints.weights import WEIGHTS, CheckpointError, assign, find_weights, read_tensors, unique_state
from robovlms_ros.config.policy import PolicyConfig, config_to_mapping, load_config
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.backbones.spec import template_of
from robovlms_ros.models.vla_policy import VLAPolicy

log = logging.getLogger(__name__)
CONFIG = "config.yaml"
VLM_CONFIG = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Place:
    """Locations of a checkpoint's parts: the weights' file (or shard index), the configuration, the
    VLM's own files."""

    weights: Path
    config: PolicyConfig
    vlm_folder: Path | None


def build_policy(config: PolicyConfig, seed: int = 0, folder: Path | None = None) -> VLAPolicy:
    """A policy with seeded random weights (the caller's random state is kept).

    folder: where a configuration file that names the VLM lies. Its tokenizer: of the named VLM
    where it is at hand, words of `vlm.vocabulary`, else bytes.
    """
    from robovlms_ros.models.backbones.hf_config import find_vlm_folder

    vlm_folder = None
    if config.vlm.size == "full" and config.vlm.model_name is not None:
        vlm_folder = find_vlm_folder(config.vlm.model_name, folder)
    # A full-size model is made in the precision it runs in: in float32 it would take twice the
    # memory for nothing.
    precision = DTYPES[config.vlm.precision] if config.vlm.size == "full" else torch.float32
    usual = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_default_dtype(precision)
        try:
            return VLAPolicy(config, random_tokenizer(config, vlm_folder), vlm_folder).eval()
        finally:
            torch.set_default_dtype(usual)


def random_tokenizer(config: PolicyConfig, vlm_folder: Path | None) -> Any:
    """The tokenizer of a policy without a checkpoint."""
    from robovlms_ros.core.registry import resolve
    from robovlms_ros.models import tokenization

    spec = resolve("backbone", config.model.backbone).spec
    if config.vlm.vocabulary:
        template = template_of(config, spec)
        return tokenization.build_word_tokenizer(
            config.vlm.vocabulary, template, add_bos=spec.bos_offset > 0, add_eos=spec.eos_offset > 0
        )
    if vlm_folder is not None:
        try:
            return tokenization.load_tokenizer(vlm_folder)
        except tokenization.TokenizerError as error:
            log.warning("%s Using bytes as tokens: the weights are random anyway.", error)
    return tokenization.build_byte_tokenizer(spec.prompt, add_bos=spec.bos_offset > 0, add_eos=spec.eos_offset > 0)


def save_policy(policy: VLAPolicy, folder: str | Path, state: Mapping[str, torch.Tensor] | None = None) -> Path:
    """Write `policy` in our format; returns the folder. state: instead of the policy's own tensors
    (tied ones once)."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_dump(config_to_mapping(policy.config), sort_keys=False, allow_unicode=True)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    vlm = json.dumps(policy.vlm.hf_config.to_dict(), indent=1, default=str)
    (folder / VLM_CONFIG).write_text(vlm, encoding="utf-8")
    if policy.prompt is not None:
        policy.prompt.tokenizer.save_pretrained(folder)
    save_file(unique_state(policy) if state is None else dict(state), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors leaves it to its owner alone
    return folder


def load_policy(
    checkpoint: str | Path,
    config: PolicyConfig | str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    require_tokenizer: bool = True,
) -> VLAPolicy:
    """The policy in a checkpoint, ready to run.

    checkpoint: a folder in our format, or a file (or folder) in the published RoboVLMs layout.
        config: instead of the
    folder's config.yaml or the JSON with the checkpoint's stem. dtype: of the weights, default
    `vlm.precision`.
    require_tokenizer: False loads a policy that is only given token ids. Raises CheckpointError
    (files unreadable, keys that do not fit), ConfigError, BackboneError, TokenizerError.
    """
    place = locate(Path(checkpoint).expanduser(), config)
    with parameters_on_meta():
        policy = VLAPolicy(place.config, load_tokenizer_of(place, require_tokenizer), place.vlm_folder)
    fill(policy, read_tensors(place.weights), str(place.weights), dtype)
    policy.fp8_scales = read_scales(place.weights)
    name = place.weights.parent.name if place.weights.name == WEIGHTS else place.weights.stem
    policy.identity = identity(name, place.config, place.weights)
    return policy.to(device).eval()


def fill(
    policy: VLAPolicy, tensors: Mapping[str, torch.Tensor], where: str, dtype: torch.dtype | None = None
) -> VLAPolicy:
    """Put `tensors`, in any known key layout, into `policy`. Raises CheckpointError."""
    tensors = policy.vlm.adapt_tensors(dict(tensors))
    layout = KeyLayout(policy, tensors)
    tensors = with_tied_embedding(policy, tensors, layout.canonical)
    precision = dtype or DTYPES[policy.config.vlm.precision]
    assign(policy, tensors, layout.canonical, where, layout.ignored, precision)
    policy.is_random = False
    return policy


def locate(checkpoint: Path, config: PolicyConfig | str | Path | None = None) -> Place:
    """Files of `checkpoint`, and its configuration. Raises CheckpointError, ConfigError."""
    if not checkpoint.exists():
        raise CheckpointError(
            f"{checkpoint}: no such checkpoint. Give a folder with {CONFIG} and {WEIGHTS}, a .pt or .safetensors file."
        )
    weights = find_weights(checkpoint)
    source = config if config is not None else _config_beside(checkpoint, weights)
    if isinstance(source, PolicyConfig):
        return Place(weights, source, _vlm_folder(source, weights.parent))
    source = Path(source)
    loaded = load_config(source)
    return Place(weights, loaded, _vlm_folder(loaded, weights.parent, source.parent))


def locate_config(checkpoint: Path) -> Path:
    """The configuration file of a checkpoint. Raises CheckpointError."""
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint.")
    return _config_beside(checkpoint, find_weights(checkpoint))


def _config_beside(checkpoint: Path, weights: Path) -> Path:
    folder = weights.parent
    candidates = [folder / f"{weights.stem}.json", folder / f"{weights.stem}.yaml"]
    if checkpoint.is_dir():
        candidates = [folder / CONFIG, folder / f"{folder.name}.json", *candidates]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(
        f"{checkpoint}: no configuration beside it (looked for {', '.join(c.name for c in candidates)}). "
        "Put the training run's JSON there, or name it (config)."
    )


def _vlm_folder(config: PolicyConfig, *beside: Path) -> Path | None:
    """Location of the VLM's config.json: in the checkpoint's own folder, or where `vlm.model_name`
    is found."""
    from robovlms_ros.models.backbones.hf_config import find_vlm_folder

    if (beside[0] / VLM_CONFIG).is_file() and (beside[0] / CONFIG).is_file():
        return beside[0]
    if config.vlm.model_name is None:
        return None
    found = (find_vlm_folder(config.vlm.model_name, folder) for folder in reversed(beside))
    return next((folder for folder in found if folder is not None), None)


def load_tokenizer_of(place: Place, required: bool) -> Any:
    """The tokenizer of a checkpoint: of its own folder, else of the VLM's. Raises TokenizerError
    where required."""
    from robovlms_ros.models.tokenization import TokenizerError, load_tokenizer

    folders = [place.weights.parent]
    if place.vlm_folder is not None and place.vlm_folder not in folders:
        folders.append(place.vlm_folder)
    messages = []
    for folder in folders:
        try:
            return load_tokenizer(folder)
        except TokenizerError as error:
            messages.append(str(error))
    if required:
        raise TokenizerError(" ".join(messages))
    return None


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
