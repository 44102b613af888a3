"""Weight files: safetensors (one or sharded) and PyTorch archives, memory-mapped, without running
any code in them."""

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from robovlms_ros.checkpoints.weights import CheckpointError
from robovlms_ros.core.file_boundary import file_boundary
from robovlms_ros.core.structured_text import from_json
from robovlms_ros.core.text_safety import printable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "The file is truncated or of another kind; fetch it again."
ARCHIVES = (".pt", ".pth", ".ckpt", ".bin")


class _Code(CheckpointError):
    """An archive that holds more than tensors and plain values."""


def find_weights(checkpoint: Path) -> Path:
    """The weights' file of a checkpoint: the file itself, or the one in the folder. Raises
    CheckpointError."""
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
    """Every tensor of a weights file, memory-mapped. Raises CheckpointError with the reason it
    cannot be read."""
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in ARCHIVES:
        return _state_dict(_read_archive(path), path)
    raise CheckpointError(f"{path}: '{path.suffix}' is no weights file; give .safetensors or {', '.join(ARCHIVES)}.")


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    with file_boundary(CheckpointError, index, AGAIN, "an index of safetensors shards"):
        table = from_json(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(table.values()))
        climbing = [name for name in files if Path(name).name != name]
    if climbing:
        raise CheckpointError(
            f"{index}: names the shard '{printable(climbing[0])}': allowed are names of files in the index's own "
            "folder. Put the shards beside the index."
        )
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
    from safetensors import safe_open

    with (
        file_boundary(CheckpointError, path, AGAIN, "safetensors"),
        safe_open(path, framework="pt", device="cpu") as file,
    ):
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    raise AssertionError("the boundary raises or the file was read")


def _read_archive(path: Path) -> Any:
    try:
        with file_boundary(CheckpointError, path, AGAIN, "a PyTorch archive"):
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            except UnpicklingError as error:
                raise _Code(str(error)) from error
    except _Code as error:
        reason = printable(str(error).splitlines()[0], 300)
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors and plain values ({reason}), and code in a checkpoint is "
            "never run. Save the state dict alone, or convert it to safetensors where you trust it."
        ) from error


def _state_dict(archive: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors under `state_dict` or `model_state_dict`, or the archive itself where it is a
    plain state dict."""
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
