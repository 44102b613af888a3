"""From the `vlm` block of a configuration to a transformers configuration: tiny, pretrained, or the
family's own."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robovlms_ros.config.policy import VLMConfig
from robovlms_ros.core.caps import MAX_LAYERS, MAX_WIDTH
from robovlms_ros.core.file_boundary import file_boundary
from robovlms_ros.core.schema import ConfigError, did_you_mean
from robovlms_ros.core.structured_text import from_json
from robovlms_ros.models.backbones.spec import BackboneError, BackboneSpec

CONFIG_FOLDER = Path(__file__).parent / "configs"


def find_vlm_folder(model_name: str, beside: Path | None = None) -> Path | None:
    """Folder of a pretrained VLM's files: beside a configuration file, as a path, or in the local
    hub cache."""
    candidates = [Path(model_name).expanduser()]
    if beside is not None:
        candidates = [beside / model_name, beside / Path(model_name).name, *candidates]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model_name, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def build_hf_config(
    spec: BackboneSpec,
    vlm: VLMConfig,
    vocab_size: int | None = None,
    folder: Path | None = None,
    complete: Callable[[dict[str, Any]], None] = lambda data: None,
) -> Any:
    """The transformers configuration of the VLM. `folder` is where the pretrained model's
    config.json lies, if any; `complete` fills in what follows from the rest of it.

    Raises ConfigError for an unknown setting and BackboneError when no configuration is at hand or
    it is another family's.
    """
    from transformers import AutoConfig

    data = copy.deepcopy(raw_config(spec, vlm, folder))
    data = merge_settings(data, vlm.settings)
    # Any-resolution models keep their tower's size: image_size is then the square that is cut into
    # tiles.
    tiled = "image_grid_pinpoints" in data
    if vlm.image_size is not None and not tiled and "image_size" in data.get("vision_config", {}):
        data["vision_config"]["image_size"] = vlm.image_size
    if vocab_size is not None:
        wraps = [data[name] for name in (*spec.image_prefix, *spec.image_suffix) if data.get(name) is not None]
        _set_path(data, spec.vocab_path, max([vocab_size, *(i + 1 for i in wraps)]))
    complete(data)
    model_type = data.pop("model_type", spec.model_types[0])
    if model_type not in spec.model_types:
        raise BackboneError(
            f"backbone '{spec.name}' runs model_type {' or '.join(spec.model_types)}; the configuration"
            f"{f' in {folder}' if folder else ''} says '{model_type}'. Choose the backbone of that model."
        )
    default = AutoConfig.for_model(model_type).to_dict()
    written = {k: v for k, v in data.items() if k not in vlm.settings}
    _check_names(vlm.settings, merge_settings(default, written), "vlm.settings")
    check_sizes(data, str(folder or "vlm.settings"))
    place = folder or Path("vlm.settings")
    with file_boundary(BackboneError, place, "Correct it.", f"a configuration of {model_type}"):
        return AutoConfig.for_model(model_type, **data)
    raise AssertionError("the boundary raises or the configuration was read")


def check_sizes(data: Mapping[str, Any], where: str) -> None:
    """Raise BackboneError for a size that no model has: memory would be allocated for it."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            check_sizes(value, f"{where}: {name}")
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        deep = any(word in name for word in ("layers", "depth", "heads"))
        wide = any(word in name for word in ("size", "dim", "channels"))
        cap = MAX_LAYERS if deep else MAX_WIDTH
        if (deep or wide) and value > cap:
            label = "MAX_LAYERS" if deep else "MAX_WIDTH"
            raise BackboneError(f"{where}: {name} = {value}: at most {cap} is accepted ({label}).")


def raw_config(spec: BackboneSpec, vlm: VLMConfig, folder: Path | None) -> dict[str, Any]:
    """The configuration as written: the folder's, the tiny one, or the shipped one."""
    if folder is not None:
        path = folder / "config.json"
        with file_boundary(BackboneError, path, "Copy the base VLM's file again.", "a model's configuration"):
            data = from_json(path.read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise BackboneError(f"{path}: holds {type(data).__name__}, must be a mapping of names to values.")
        return data
    wanted = vlm.settings.get("model_type")
    if vlm.size == "tiny":
        model_type = wanted or spec.model_types[0]
        if model_type not in spec.tiny:
            hint = did_you_mean(str(wanted), spec.tiny)
            raise ConfigError(f"vlm.settings.model_type = {wanted!r}: not allowed.{hint}")
        return {"model_type": model_type, **dict(spec.tiny[model_type])}
    name = _shipped_name(spec, vlm)
    return json.loads((CONFIG_FOLDER / name).read_text(encoding="utf-8"))


def _shipped_name(spec: BackboneSpec, vlm: VLMConfig) -> str:
    """The shipped configuration file: of the named model where we have it, else the family's
    first."""
    if vlm.model_name is None and spec.full:
        return next(iter(spec.full.values()))
    stem = Path(vlm.model_name or "").name
    if stem in spec.full:
        return spec.full[stem]
    raise BackboneError(
        f"vlm.model_name = '{vlm.model_name}': no config.json found as a path or in the local hub cache, and its "
        f"configuration is not shipped. Shipped for '{spec.name}': {', '.join(spec.full) or 'none'}."
    )


def merge_settings(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on it, nested mappings key by key."""
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        merged[key] = merge_settings(dict(inner), value) if both else value  # type: ignore[arg-type]
    return merged


def _set_path(data: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data.setdefault(key, {})
    data[path[-1]] = value


def _check_names(settings: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for key, value in settings.items():
        if key not in known and key != "model_type":
            raise ConfigError(f"{where}: unknown key '{key}'.{did_you_mean(key, known)}")
        if isinstance(value, Mapping) and isinstance(known.get(key), Mapping) and known[key]:
            _check_names(value, known[key], f"{where}.{key}")
