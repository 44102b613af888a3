"""Backbones, heads and controllers by name. Ours are tables; third parties add theirs by entry
points."""

import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from robovlms_ros.core.schema import ConfigError, did_you_mean, shown

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
CONTROLLERS = {
    "joint_trajectory": "robovlms_ros.control.controller_types:JointTrajectory",
    "follow_joint_trajectory": "robovlms_ros.control.controller_types:FollowJointTrajectory",
    "servo_twist": "robovlms_ros.control.controller_types:ServoTwist",
    "servo_pose": "robovlms_ros.control.controller_types:ServoPose",
    "cartesian_pose": "robovlms_ros.control.controller_types:CartesianPose",
    "forward_position": "robovlms_ros.control.controller_types:ForwardPosition",
    "chunk_only": "robovlms_ros.control.controller_types:ChunkOnly",
}
# Known to RoboVLMs, but their code exists only as remote code of the model hub, which is never run
# here.
REMOTE_CODE_ONLY = {"moondream": "smolvlm", "uform": "smolvlm"}


@dataclass(frozen=True)
class PluginKind:
    """One kind of named class.

    place: the configuration key that names it. ours: name -> `module:Class`. group: entry point
    group of third parties, None where they cannot add any.
    """

    place: str
    ours: dict[str, str]
    group: str | None = None

    def third_party(self) -> dict[str, str]:
        """Name -> `module:Class` of the installed entry points, less the names of ours."""
        if self.group is None:
            return {}
        found = {entry.name: entry.value for entry in entry_points(group=self.group)}
        return {name: value for name, value in found.items() if name not in self.ours}


KINDS = {
    "backbone": PluginKind("model.backbone", BACKBONES, "robovlms_ros.backbones"),
    "head": PluginKind("action_head.type", HEADS),
    "controller": PluginKind("controller.type", CONTROLLERS, "robovlms_ros.controllers"),
}


def names(kind: str) -> list[str]:
    """The names that `resolve(kind, ...)` accepts; kind is a key of KINDS."""
    return sorted({**KINDS[kind].ours, **KINDS[kind].third_party()})


def resolve(kind: str, name: str, place: str | None = None) -> Any:
    """The class called `name`, imported now; `place` names the key in messages, with its file.

    Raises ConfigError for an unknown or a refused name.
    """
    place = place or KINDS[kind].place
    if kind == "backbone" and name in REMOTE_CODE_ONLY:
        raise ConfigError(
            f"model.backbone = '{name}': exists only as remote code of the model hub, which is not run here. "
            f"Nearest supported backbone: '{REMOTE_CODE_ONLY[name]}'."
        )
    target = KINDS[kind].ours.get(name) or KINDS[kind].third_party().get(name)
    if target is None:
        near = did_you_mean(name[:100], names(kind))
        raise ConfigError(f"{place} = {shown(name)}: unknown.{near}")
    return load(target, f"{kind} '{name}'")


def load(target: str, what: str) -> Any:
    """The class of `module:Class`, imported now. Raises ConfigError that begins with `what`."""
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{what} cannot be imported from '{target}': {error}") from error
