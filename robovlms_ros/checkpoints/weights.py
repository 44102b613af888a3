"""Weight files into modules: every key accounted for, no needless copy, no code of a file run.

Files are safetensors (one or sharded) and PyTorch archives, memory-mapped. A module is built with
its parameters on the meta device (no memory), then the file's tensors become its parameters. Keys
may come from
any generation of transformers: `canonical` brings file and module to the same names.
"""

import hashlib
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from robovlms_ros.core.file_boundary import file_boundary
from robovlms_ros.core.structured_text import from_json
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import RoboVLMsError


class CheckpointError(RoboVLMsError):
    """A checkpoint cannot be read or does not fit the policy: the message lists every key
    concerned."""


def apply_rules(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """`key` after each (pattern, replacement) in order."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def tied_groups(module: nn.Module) -> list[list[str]]:
    """Parameter names that are one tensor, each group in order, the first name being the one that
    is saved."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return list(groups.values())


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state with tied tensors once, contiguous, ready for safetensors."""
    later = {name for group in tied_groups(module) for name in group[1:]}
    return {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items() if k not in later}


def assign(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    canonical: Callable[[str], str],
    where: str,
    ignored: Callable[[str], bool] = lambda key: False,
    dtype: torch.dtype | None = None,
) -> None:
    """Make `tensors` the parameters and buffers of `module`, without a copy where the dtype fits.

    canonical: maps file keys and module keys to common names. ignored: file keys (canonical) that
        carry no weight.
    Raises CheckpointError listing all missing, unexpected, wrong-shape and non-finite keys.
    """
    wanted = module.state_dict()
    found, faults = match(module, tensors, canonical, where, ignored)
    refuse(faults, where)
    groups = {name: group for group in tied_groups(module) for name in group}
    for key, tensor in found.items():
        _place(module, groups.get(key, [key]), tensor, wanted[key], dtype)


def match(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    canonical: Callable[[str], str],
    where: str,
    ignored: Callable[[str], bool] = lambda key: False,
) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """The module's key for every tensor that fits, and the keys that do not, by kind of fault.
    Reads every value."""
    wanted = module.state_dict()
    groups = {name: group for group in tied_groups(module) for name in group}
    by_name = _canonical_table(tensors, canonical, where)
    targets = {canonical(key): key for key in wanted}
    faults: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrong shape": [], "not finite": []}
    faults["unexpected"] = [by_name[k] for k in by_name if k not in targets and not ignored(k)]
    found: dict[str, Tensor] = {}
    for name, key in targets.items():
        if name not in by_name:
            continue
        tensor = tensors[by_name[name]]
        if tensor.shape != wanted[key].shape:
            shapes = f"{tuple(tensor.shape)} in the file, {tuple(wanted[key].shape)} in the policy"
            faults["wrong shape"].append(f"{by_name[name]}: {shapes}")
        elif tensor.is_floating_point() and not _all_finite(tensor):
            faults["not finite"].append(by_name[name])
        else:
            found[key] = tensor
    present = {targets[name] for name in by_name if name in targets}
    faults["missing"] = [key for key in wanted if not present & set(groups.get(key, [key]))]
    return found, faults


def _canonical_table(tensors: Mapping[str, Tensor], canonical: Callable[[str], str], where: str) -> dict[str, str]:
    table: dict[str, str] = {}
    for key in tensors:
        name = canonical(key)
        if name in table and table[name] != key and not torch.equal(tensors[table[name]], tensors[key]):
            raise CheckpointError(f"{where}: '{table[name]}' and '{key}' are the same parameter with different values.")
        table[name] = key
    return table


def _all_finite(tensor: Tensor) -> bool:
    parts = tensor.reshape(-1).split(1 << 22)
    return all(bool(torch.isfinite(part).all()) for part in parts)


def _place(module: nn.Module, names: list[str], tensor: Tensor, old: Tensor, dtype: torch.dtype | None) -> None:
    if tensor.is_floating_point():
        tensor = tensor.to(dtype or old.dtype)
    parameter: Any = None
    for name in names:
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        if leaf in owner._parameters:
            if parameter is None:
                parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
            owner._parameters[leaf] = parameter
        else:
            owner._buffers[leaf] = tensor


def refuse(faults: Mapping[str, list[str]], where: str) -> None:
    """Raise CheckpointError listing `faults`, if there are any."""
    if not any(faults.values()):
        return
    parts = [f"{len(keys)} {kind}: {listing(keys)}" for kind, keys in faults.items() if keys]
    raise CheckpointError(
        f"{where}: the weights do not fit the policy that its configuration describes. {'; '.join(parts)}. "
        "Give the configuration that the checkpoint was trained with, or another checkpoint."
    )


def listing(keys: list[str]) -> str:
    """The first twelve keys, and how many more there are."""
    shown = ", ".join(keys[:12])
    return shown if len(keys) <= 12 else f"{shown}, ... and {len(keys) - 12} more"


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


def weight_files(path: Path) -> list[Path]:
    """The files of a weights file or an index of shards, in order. Raises CheckpointError."""
    if not path.name.endswith(".index.json"):
        return [path]
    return [path.parent / name for name in sorted(set(_shard_table(path).values()))]


def weights_digest(path: Path) -> str:
    """SHA-256 of the weights' files, in hexadecimal digits. Raises CheckpointError."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _shard_table(index: Path) -> dict[str, str]:
    """Tensor -> name of its shard."""
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
    return table


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    table = _shard_table(index)
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(index):
        tensors.update(_read_safetensors(file))
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
