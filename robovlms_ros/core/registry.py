"""Backbones and heads by name. Ours are a table; third parties add backbones by the entry point
group below."""

import importlib
from importlib.metadata import entry_points
from typing import Any

from robovlms_ros.core.schema import ConfigError, did_you_mean

BACKBONES = {
    "paligemma": "robovlms_ros.models.backbones.paligemma:RoboPaligemma",
    "flamingo": "robovlms_ros.models.backbones.flamingo:RoboFlamingo",
    "llava": "robovlms_ros.models.backbones.llava:RoboLLaVA",
    "kosmos": "robovlms_ros.models.backbones.kosmos:RoboKosMos",
    "qwen": "robovlms_ros.models.backbones.qwen:RoboQwen",
    "smolvlm": "robovlms_ros.models.backbones.smolvlm:RoboSmolVLM",
}
HEADS = {
    "lstm": "robovlms_ros.models.heads.lstm:LSTMHead",
    "gpt": "robovlms_ros.models.heads.gpt:GPTHead",
    "fc": "robovlms_ros.models.heads.fc:FCHead",
    "discrete": "robovlms_ros.models.heads.discrete:DiscreteHead",
}
# Known to RoboVLMs, but their code exists only as remote code of the model hub, which is never run
# here.
REMOTE_CODE_ONLY = {"moondream": "smolvlm", "uform": "smolvlm"}
ENTRY_POINT_GROUP = "robovlms_ros.backbones"


def names(kind: str) -> list[str]:
    """The names that `resolve(kind, ...)` knows; kind is `backbone` or `head`."""
    return sorted({**_third_party(), **BACKBONES} if kind == "backbone" else HEADS)


def resolve(kind: str, name: str) -> Any:
    """The class called `name`, imported now. Raises ConfigError for an unknown or a refused
    name."""
    if kind == "backbone" and name in REMOTE_CODE_ONLY:
        raise ConfigError(
            f"model.backbone = '{name}': exists only as remote code of the model hub, which is not run here. "
            f"Nearest supported backbone: '{REMOTE_CODE_ONLY[name]}'."
        )
    table = {**_third_party(), **BACKBONES} if kind == "backbone" else HEADS
    if name not in table:
        place = "model.backbone" if kind == "backbone" else "action_head.type"
        raise ConfigError(f"{place} = '{name}': unknown.{did_you_mean(name, table)}")
    module, _, attribute = table[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"{kind} '{name}' cannot be imported from {table[name]}: {error}") from error


def _third_party() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=ENTRY_POINT_GROUP)}
