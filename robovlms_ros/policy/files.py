"""Weight files: safetensors (one or sharded) and PyTorch archives, memory-mapped, without running any code in them."""

import json
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from robovlms_ros.policy.weights import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ARCHIVES = (".pt", ".pth", ".ckpt", ".bin")


def find_weights(checkpoint: Path) -> Path:
    """The weights' file of a checkpoint: the file itself, or the one in the folder. Raises CheckpointError."""
    if checkpoint.is_file():
        return checkpoint
    for name in (WEIGHTS, INDEX):
        if (checkpoint / name).is_file():
            return checkpoint / name
    archives = sorted(p for p in checkpoint.iterdir() if p.suffix in (*ARCHIVES, ".safetensors"))
    if len(archives) == 1:
        return archives[0]
    found = ", ".join(p.name for p in archives) or "no weights"
    raise CheckpointError(f"{checkpoint}: must hold {WEIGHTS}, {INDEX} or one weights file; it has {found}.")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a weights file, memory-mapped. Raises CheckpointError with the reason it cannot be read."""
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in ARCHIVES:
        return _state_dict(_read_archive(path), path)
    raise CheckpointError(f"{path}: '{path.suffix}' is no weights file; give .safetensors or {', '.join(ARCHIVES)}.")


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors shards ({error}).") from error
    files = sorted(set(table.values()))
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise CheckpointError(f"{index}: shards are missing: {', '.join(absent)}. Fetch them into the same folder.")
    tensors: dict[str, torch.Tensor] = {}
    for name in files:
        tensors.update(_read_safetensors(index.parent / name))
    lost = sorted(set(table) - set(tensors))
    if lost:
        raise CheckpointError(f"{index}: {len(lost)} tensors are in no shard, for instance {lost[0]}.")
    return tensors


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors ({error}). The file is truncated or of another kind; fetch it "
            "again."
        ) from error


def _read_archive(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors and plain values ({reason}), and code in a checkpoint is "
            "never run. Save the state dict alone, or convert it to safetensors where you trust it."
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read as a PyTorch archive ({reason}). The file is truncated or of another kind; fetch "
            "it again."
        ) from error


def _state_dict(archive: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors under `state_dict` or `model_state_dict`, or the archive itself where it is a plain state dict."""
    if isinstance(archive, dict):
        for key in ("state_dict", "model_state_dict"):
            if isinstance(archive.get(key), dict):
                archive = archive[key]
                break
        tensors = {str(k): v for k, v in archive.items() if isinstance(v, torch.Tensor)}
        if tensors and len(tensors) == len(archive):
            return tensors
    raise CheckpointError(
        f"{path}: holds no state dict: looked for 'state_dict', 'model_state_dict', or tensors alone."
    )
