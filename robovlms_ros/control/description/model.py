"""A robot description (URDF or MJCF) as a pinocchio model of the arm's joints alone."""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robovlms_ros.control.description.mjcf import expand_includes, read_mjcf
from robovlms_ros.control.description.robot_tree import (
    Array,
    JointKind,
    RobotTree,
    TreeJoint,
)
from robovlms_ros.control.description.urdf import read_urdf
from robovlms_ros.control.description.xml import DescriptionFault, DescriptionReader, quoted
from robovlms_ros.core.rotations import matrix_from_vector, pose_of
from robovlms_ros.core.types import RoboVLMsError

SHOWN_NAMES = 60


class KinematicsError(RoboVLMsError):
    """A description cannot be loaded, or lacks joints and frames of the robot's YAML."""


def import_pinocchio() -> Any:
    """The pinocchio module. Raises KinematicsError that names the package to install."""
    try:
        return importlib.import_module("pinocchio")
    except ImportError as error:
        raise KinematicsError(
            f"inverse kinematics needs pinocchio, which cannot be imported ({error}). "
            "Install it with `pip install pin` or, beside an apt ROS, "
            "`sudo apt install ros-$ROS_DISTRO-pinocchio`."
        ) from error


def place_of(description: str | Path) -> str:
    """The name of a description in messages."""
    return "the robot description" if _is_text(description) else str(description)


def load_tree(description: str | Path) -> RobotTree:
    """The tree of a URDF or MJCF, given as text or as a path. Raises KinematicsError."""
    place = place_of(description)
    reader = DescriptionReader()
    kind = ""
    try:
        is_text = _is_text(description)
        root = reader.text(str(description)) if is_text else reader.file(Path(description))
        kind = root.tag
        if kind == "robot":
            return read_urdf(root)
        if kind == "mujoco":
            expand_includes(
                root, None if _is_text(description) else Path(description).parent, reader
            )
            return read_mjcf(root)
    except OSError as error:
        raise KinematicsError(f"{place} cannot be read: {error}.") from error
    except DescriptionFault as error:
        if not kind:
            raise KinematicsError(f"{place} cannot be read as XML: {error}.") from error
        raise KinematicsError(f"{place} is not a valid <{kind}> description: {error}.") from error
    raise KinematicsError(
        f"{place} has the root element <{quoted(kind)[1:-1]}>: must be <robot> (URDF) or "
        "<mujoco> (MJCF)."
    )


def _is_text(description: str | Path) -> bool:
    return isinstance(description, str) and ("<" in description or not description.strip())


@dataclass(frozen=True)
class ArmJoint:
    """A joint of the model. parent: of the model, 0 is the root. placement: (4, 4) in its axes."""

    parent: int
    placement: Array
    axis: Array
    kind: JointKind


@dataclass(frozen=True)
class ArmModel:
    """A pinocchio model of the arm's joints, and of those that mimic them.

    joints: the model's, from its joint 1 on; each parent before its children.
    links: (pinocchio joint, (4, 4) pose in its axes) per link of the tree.
    coupling (V, J), offset (V,): pinocchio's configuration is coupling @ positions + offset.
    """

    model: Any
    joints: tuple[ArmJoint, ...]
    links: tuple[tuple[int, Array], ...]
    coupling: Array
    offset: Array


def build_model(
    pin: Any,
    tree: RobotTree,
    arm: tuple[str, ...],
    tips: tuple[int, ...],
    locked: Mapping[str, float] | None = None,
) -> ArmModel:
    """The model with every joint locked but those of the arm and their mimics.

    tips: indices of links; mimic joints are followed on the way from the root to these.
    locked: positions of other joints, rad or m. A locked joint that it lacks lies at position 0 in
    a URDF, at its `ref` in an MJCF. Raises DescriptionFault.
    """
    positions = locked or {}
    known = tree.joints()
    on_the_way = {link for tip in tips for link in tree.ancestors(tip)}
    model = pin.Model()
    links: list[tuple[int, Array]] = []
    joints: list[ArmJoint] = []
    coupling: list[Array] = []
    offset: list[float] = []
    for index, link in enumerate(tree.links):
        parent, pose = links[link.parent] if index else (0, np.eye(4))
        pose = pose @ link.placement
        for joint in link.joints:
            row = np.zeros(len(arm))
            constant = positions.get(joint.name, joint.reference)
            if joint.name in arm:
                row[arm.index(joint.name)] = 1.0
                constant = 0.0
            elif index in on_the_way:
                row, constant = _followed(joint, known, arm, tree.coupled, positions)
            pose = pose @ pose_of(position=joint.anchor)
            if row.any():
                placement = pin.SE3(pose[:3, :3], pose[:3, 3])
                joints.append(ArmJoint(parent, pose, joint.axis, joint.kind))
                parent = model.addJoint(parent, _joint_model(pin, joint), placement, joint.name)
                coupling.append(row)
                offset.append(constant)
                pose = _motion(joint, -joint.reference)
            elif constant != joint.reference:
                pose = pose @ _motion(joint, constant - joint.reference)
            pose = pose @ pose_of(position=-joint.anchor)
        links.append((parent, pose))
    return ArmModel(
        model,
        tuple(joints),
        tuple(links),
        np.array(coupling).reshape(len(coupling), len(arm)),
        np.array(offset),
    )


def _followed(
    joint: TreeJoint,
    known: dict[str, TreeJoint],
    arm: tuple[str, ...],
    coupled: frozenset[str],
    positions: Mapping[str, float],
) -> tuple[Array, float]:
    """(J,) and a constant: the position of another joint as a linear function of the arm's."""
    if joint.name and joint.name in coupled:
        raise DescriptionFault(
            f"joint {quoted(joint.name)} on the way to the tool follows another joint by "
            "<equality>, which is not read. Give a description without that joint"
        )
    factor = 1.0
    constant = 0.0
    seen: list[str] = []
    while joint.mimic is not None and joint.name not in arm:
        if joint.name in seen:
            raise DescriptionFault(
                f"joint {quoted(joint.name)} mimics itself, by {', '.join(map(quoted, seen[:10]))}"
            )
        seen.append(joint.name)
        if joint.mimic.joint not in known:
            raise DescriptionFault(
                f"joint {quoted(joint.name)} mimics {quoted(joint.mimic.joint)}, which is no joint"
            )
        constant += factor * joint.mimic.offset
        factor *= joint.mimic.multiplier
        joint = known[joint.mimic.joint]
    row = np.zeros(len(arm))
    if joint.name in arm:
        row[arm.index(joint.name)] = factor
        return row, constant
    return row, constant + factor * positions.get(joint.name, joint.reference)


def _motion(joint: TreeJoint, value: float) -> Array:
    """(4, 4) motion of a joint about its anchor."""
    if joint.kind == "revolute":
        return pose_of(matrix_from_vector(joint.axis * math.remainder(value, 2 * math.pi)))
    return pose_of(position=joint.axis * value)


def _joint_model(pin: Any, joint: TreeJoint) -> Any:
    letter = "R" if joint.kind == "revolute" else "P"
    for axis, unit in zip("XYZ", np.eye(3), strict=True):
        if np.array_equal(joint.axis, unit):
            return getattr(pin, f"JointModel{letter}{axis}")()
    unaligned = (
        pin.JointModelRevoluteUnaligned if letter == "R" else pin.JointModelPrismaticUnaligned
    )
    return unaligned(np.array(joint.axis))


def check_joints(tree: RobotTree, arm: tuple[str, ...]) -> None:
    """Refuse absent joints, joints without one degree of freedom, and mimics of other joints.

    Raises DescriptionFault.
    """
    known = tree.joints()
    missing = [j for j in arm if j not in known]
    if missing:
        movable = [name for name, joint in known.items() if joint.kind != "fixed"]
        raise DescriptionFault(
            f"joints {', '.join(missing)} are not in the robot's description, which has: "
            f"{_listed(movable)}{unread_note(tree)}"
        )
    for name in arm:
        joint = known[name]
        if not joint.moves:
            raise DescriptionFault(
                f"joint '{name}' of type {joint.kind} has not one degree of freedom; "
                "an arm's joints are revolute, continuous or prismatic"
            )
        if joint.mimic is not None:
            raise DescriptionFault(
                f"joint '{name}' mimics {quoted(joint.mimic.joint)}: it is no joint of its own. "
                "Name the joint that it mimics instead"
            )


def find_frame(tree: RobotTree, name: str) -> int:
    """The index of a link, body or site. Raises DescriptionFault."""
    found = tree.find_link(name)
    if found is not None:
        return found
    child = tree.child_of(name)
    names = sorted({link.name for link in tree.links if link.name})
    joint = f". '{name}' is a joint: name the link that it moves, {quoted(child)}" if child else ""
    raise DescriptionFault(
        f"frame '{name}' is not in the robot's description, which has: "
        f"{_listed(names)}{joint}{unread_note(tree)}"
    )


def unread_note(tree: RobotTree) -> str:
    """The part of a message on the elements that are not read, empty where there are none."""
    if not tree.unread:
        return ""
    return (
        f". It also holds <{'>, <'.join(tree.unread)}>, whose contents are not read: write them out"
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return (", ".join(quoted(n)[1:-1] for n in names[:SHOWN_NAMES]) or "none") + more
