"""The table of docs/robot_yaml.md lists every key of a robot's YAML, with its default."""

import dataclasses
import typing
from pathlib import Path

from robovlms_ros.control import controller_types
from robovlms_ros.control.collision_config import CollisionConfig, WorldBody
from robovlms_ros.control.controller_types import Gripper
from robovlms_ros.control.lerobot_block import LeRobotBlock
from robovlms_ros.control.robot import (
    Box,
    Description,
    GateConfig,
    IKSettings,
    JointLimits,
    RobotSpec,
)
from robovlms_ros.core.registry import CONTROLLERS

TABLE = Path(__file__).parents[2] / "docs" / "robot_yaml.md"
BLOCKS = {
    "": RobotSpec, "description": Description, "limits": JointLimits, "limits.workspace": Box,
    "gate": GateConfig, "ik": IKSettings, "collision": CollisionConfig, "world[]": WorldBody,
    "lerobot": LeRobotBlock,
}
BLOCK_KEYS = {
    "description", "limits", "workspace", "gate", "ik", "collision", "world", "controller",
    "gripper", "lerobot",
}


def shown(field):
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"


def keys_of(block, kind):
    """key -> default of a dataclass's own keys; blocks in it are listed by themselves."""
    for field in dataclasses.fields(kind):
        if field.name in (*BLOCK_KEYS, "folder", "type") and kind is not WorldBody:
            continue
        yield f"{block}.{field.name}".lstrip("."), shown(field)


def variants():
    """(block, dataclass) of every type of controller and gripper."""
    for place in CONTROLLERS.values():
        yield "controller", getattr(controller_types, place.rpartition(":")[2])
    for kind in typing.get_args(Gripper):
        yield "gripper", kind


def expected():
    found = {}
    for block, kind in BLOCKS.items():
        found.update(keys_of(block, kind))
    for block, kind in variants():
        for key, default in keys_of(block, kind):
            found.setdefault(key, set()).add(default)
    found["controller.type"] = "required"
    found["gripper.type"] = "required"
    return {key: {value} if isinstance(value, str) else value for key, value in found.items()}


def test_table_lists_every_key_and_default():
    rows = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            assert len(cells) == 4, line
            assert cells[0].strip("`") not in rows, line
            rows[cells[0].strip("`")] = set(cells[1].split(" or "))
    assert rows == expected()


def test_every_type_is_named():
    text = TABLE.read_text(encoding="utf-8")
    for _, kind in variants():
        tag = typing.get_args(typing.get_type_hints(kind)["type"])[0]
        assert f"`{tag}`" in text
