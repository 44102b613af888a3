"""Tensors into a module: every key accounted for, nothing copied that need not be.

A module is built with its parameters on the meta device (no memory), then the tensors of a
memory-mapped file become its parameters. Keys may come from any generation of transformers:
`canonical` brings file and module to the same names.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

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


def _all_finite(tensor: Tensor, rows: int = 1 << 22) -> bool:
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(part).all()) for part in flat.split(rows))


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
    parts = [f"{len(keys)} {kind}: {_listing(keys)}" for kind, keys in faults.items() if keys]
    raise CheckpointError(
        f"{where}: the weights do not fit the policy that its configuration describes. {'; '.join(parts)}. "
        "Give the configuration that the checkpoint was trained with, or another checkpoint."
    )


def _listing(keys: list[str], most: int = 12) -> str:
    shown = ", ".join(keys[:most])
    return shown if len(keys) <= most else f"{shown}, ... and {len(keys) - most} more"
