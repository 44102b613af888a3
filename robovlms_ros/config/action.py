"""Proprioception inputs of a policy and the meaning of its actions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from robovlms_ros.core.schema import ConfigError, did_you_mean, read_mapping, require
from robovlms_ros.core.types import EEF_NAMES, ActionSpec, Composition, Frame, Rotation, Space

STATE_SIZES = {"eef_position": 3, "eef_rotation_vector": 3, "gripper": 1}


@dataclass(frozen=True)
class ProprioConfig:
    """The robot's state as the policy sees it: the named values side by side, each (value - mean) /
    std.

    names: of `eef_position` (3, m), `eef_rotation_vector` (3, rad), `gripper` (1, opening),
        `joint_positions` (`joints` values). mean, std: one number per value; empty leaves the
        values as they are.
    """

    names: tuple[Literal["eef_position", "eef_rotation_vector", "gripper", "joint_positions"], ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    joints: int = 0

    def __post_init__(self) -> None:
        where = "proprioception"
        require(len(self.names) > 0, f"{where}.names", list(self.names), "at least one name")
        if "joint_positions" in self.names:
            require(self.joints >= 1, f"{where}.joints", self.joints, "the number of joints, with joint_positions")
        for name in ("mean", "std"):
            values = getattr(self, name)
            good = len(values) in (0, self.size) and all(map(math.isfinite, values))
            require(good, f"{where}.{name}", list(values), f"{self.size} finite numbers, or none")
        require(all(s > 0 for s in self.std), f"{where}.std", list(self.std), "above 0")

    @property
    def size(self) -> int:
        """Numbers in the vector."""
        return sum(STATE_SIZES.get(name, self.joints) for name in self.names)


@dataclass(frozen=True)
class NormalizationConfig:
    """One normalisation of actions: raw value to the head's scale in training, back again in
    decoding.

    `min_max`, `quantile`: 2 (a - low) / (high - low) - 1, clipped to [low, high] first if `clip`;
    low and high are the bounds or the q01 and q99 of the data. `mean_std`: (a - mean) / std. One
    number per action dimension, or a single number for all. mask: False leaves a dimension as it
    is; empty is all True. unit: what the numbers are in, where it is declared
    (`ActionConfig.unit`); it must be that of `action.units`.
    """

    method: Literal["min_max", "quantile", "mean_std"]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    mask: tuple[bool, ...] = ()
    clip: bool = True
    unit: str = ""

    def __post_init__(self) -> None:
        where = "action.normalization"
        used = ("mean", "std")
        unused = ("low", "high")
        if self.method != "mean_std":
            used, unused = unused, used
        for name in used:
            values = getattr(self, name)
            good = len(values) > 0 and all(map(math.isfinite, values))
            require(good, f"{where}.{name}", list(values), f"finite numbers, with method '{self.method}'")
        for name in unused:
            require(not getattr(self, name), f"{where}.{name}", getattr(self, name), f"absent with '{self.method}'")
        low = getattr(self, used[0])
        high = getattr(self, used[1])
        require(len(low) == len(high), f"{where}.{used[1]}", list(high), f"as long as {used[0]} ({len(low)})")
        if self.method == "mean_std":
            require(all(s > 0 for s in self.std), f"{where}.std", list(self.std), "above 0")
        else:
            good = all(a < b for a, b in zip(low, high, strict=True))
            require(good, f"{where}.high", list(high), f"above low = {list(low)}")


@dataclass(frozen=True)
class GripperConfig:
    """From the head's gripper logit to an opening.

    open_value: which class opens: 1 (probability above `threshold` means open) or 0. No default: a
        wrong polarity drops what it should hold. rule: `threshold`; `sticky`, a change is held for
        `sticky_steps` executed steps (Google robot); `late_close`, class 1 must come
        `late_close_steps` times in a row before it acts (WidowX).
    """

    open_value: Literal[0, 1]
    threshold: float = 0.5
    rule: Literal["threshold", "sticky", "late_close"] = "threshold"
    sticky_steps: int = 2
    late_close_steps: int = 2

    def __post_init__(self) -> None:
        where = "action.gripper"
        require(0 < self.threshold < 1, f"{where}.threshold", self.threshold, "between 0 and 1")
        for name in ("sticky_steps", "late_close_steps"):
            require(1 <= getattr(self, name) <= 1000, f"{where}.{name}", getattr(self, name), "1 to 1000")


@dataclass(frozen=True)
class UnitsConfig:
    """SI units per unit of the (un-normalised) action: m and rad. CALVIN 0.02 and 0.05, OXE 1 and
    1.

    joint: rad (m) per unit, of joint action spaces.
    """

    translation: float | None = None
    rotation: float | None = None
    joint: float | None = None

    def __post_init__(self) -> None:
        for name in ("translation", "rotation", "joint"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 1e6, f"action.units.{name}", value, "above 0 and at most 1e6")


@dataclass(frozen=True)
class ActionConfig:
    """Meaning of a chunk's numbers. The first fields are `types.ActionSpec`'s; nothing that moves
    an arm has a default.

    The pipeline, in decoding order: inverse mu-law (`mu_law`, the gripper kept), each of
    `normalization` in turn (the first is the one next to the head), `units`, the gripper's rule.
    Training runs it backwards.

    robot: name of the robot whose data the statistics are of; None where they hold for any. Another
        robot is refused.
    """

    space: Space
    frame: Frame
    rotation: Rotation
    composition: Composition
    step_duration: float
    units: UnitsConfig
    gripper: GripperConfig
    names: tuple[str, ...] = EEF_NAMES
    normalization: tuple[NormalizationConfig, ...] = ()
    mu_law: float | None = None
    robot: str | None = None

    def __post_init__(self) -> None:
        step = self.step_duration
        require(0 < step <= 10, "action.step_duration", step, "above 0 and at most 10 s")
        require(self.mu_law is None or 0 < self.mu_law <= 1e6, "action.mu_law", self.mu_law, "above 0")
        needed = ("translation", "rotation") if self.space.startswith("eef") else ("joint",)
        for name in needed:
            if getattr(self.units, name) is None:
                raise ConfigError(
                    f"action.units.{name} is missing: space '{self.space}' needs it and it has no default. "
                    "Give SI units per unit of the action (1.0 when the policy already speaks metres and radians)."
                )
        if self.space.startswith("eef"):
            require(len(self.names) == len(EEF_NAMES), "action.names", list(self.names), f"{len(EEF_NAMES)} names")
        for i, norm in enumerate(self.normalization):
            where = f"action.normalization[{i}].unit"
            allowed = f"that of action.units, '{self.unit}', or absent"
            require(norm.unit in ("", self.unit), where, norm.unit, allowed)

    @property
    def unit(self) -> str:
        """Description of one un-normalised number: `translation 0.02 m, rotation 0.05 rad`."""
        units = self.units
        if self.space.startswith("eef"):
            return f"translation {units.translation:g} m, rotation {units.rotation:g} rad"
        return f"joint {units.joint:g} rad"

    @property
    def spec(self) -> ActionSpec:
        """The meaning that travels with every chunk."""
        return ActionSpec(self.space, self.frame, self.rotation, self.composition, self.step_duration, self.names)

    def check_dimensions(self, action_dim: int) -> None:
        """Raise ConfigError unless names and every statistic fit an action of `action_dim`
        numbers."""
        allowed = f"{action_dim} (action_head.action_dim)"
        require(len(self.names) == action_dim, "action.names", list(self.names), allowed)
        for i, norm in enumerate(self.normalization):
            for name in ("low", "high", "mean", "std", "mask"):
                values = getattr(norm, name)
                good = len(values) in (0, 1, action_dim)
                where = f"action.normalization[{i}].{name}"
                require(good, where, list(values), f"1 or {action_dim} values (action_head.action_dim)")


def resolve_statistics(action: Mapping[str, Any], folder: Path | None, where: str) -> dict[str, Any]:
    """`action` with every `statistics: FILE, key: NAME` of a normalisation replaced by the numbers
    in that file.

    The file is RoboVLMs' and Octo's layout: NAME -> action -> {q01, q99, min, max, mean, std,
    mask}. Raises ConfigError listing the candidates when the key is absent.
    """
    norms = action.get("normalization")
    if isinstance(norms, Mapping):
        norms = [norms]
    if not isinstance(norms, list | tuple):
        return dict(action)
    resolved = [_resolve_one(norm, folder, f"{where}.normalization[{i}]") for i, norm in enumerate(norms)]
    return {**action, "normalization": resolved}


def _resolve_one(norm: Any, folder: Path | None, where: str) -> Any:
    if not isinstance(norm, Mapping) or not {"statistics", "key"} & set(norm):
        return norm
    rest = {k: v for k, v in norm.items() if k not in ("statistics", "key")}
    if "statistics" not in norm:
        raise ConfigError(f"{where}: 'key' without 'statistics'. Name the file that holds the statistics.")
    path = Path(str(norm["statistics"]))
    table = read_mapping(path if path.is_absolute() or folder is None else folder / path)
    key = norm.get("key")
    if key is None or str(key) not in table:
        candidates = did_you_mean(str(key), map(str, table))
        raise ConfigError(f"{where}: key {key!r} is not in {path}.{candidates} Its keys: {', '.join(map(str, table))}.")
    entry = table[str(key)]
    stats = entry.get("action", entry) if isinstance(entry, Mapping) else {}
    sources = {"quantile": {"low": "q01", "high": "q99"}, "min_max": {"low": "min", "high": "max"}}
    wanted = sources.get(str(rest.get("method")), {"mean": "mean", "std": "std"})
    for name, source in wanted.items():
        if source not in stats:
            raise ConfigError(f"{where}: {path}, key '{key}': no '{source}'. It holds: {', '.join(map(str, stats))}.")
        rest.setdefault(name, stats[source])
    for name in ("mask", "unit"):
        if name in stats:
            rest.setdefault(name, stats[name])
    return rest
