"""A robot description (URDF or MJCF) as a pinocchio model of the arm's joints alone."""

import importlib
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from robovlms_ros.types import RoboVLMsError

# What an MJCF needs for kinematics; meshes, geometry and actuation stay out, and with them every path to a file.
MJCF_SECTIONS = ("compiler", "default", "worldbody")
POSE_ATTRIBUTES = ("name", "pos", "quat", "axisangle", "xyaxes", "zaxis", "euler")


class KinematicsError(RoboVLMsError):
    """A description cannot be loaded, or lacks the joints and frames that the robot's YAML names."""


def import_pinocchio() -> Any:
    """The pinocchio module. Raises KinematicsError that names the package to install."""
    try:
        return importlib.import_module("pinocchio")
    except ImportError as error:
        raise KinematicsError(
            f"inverse kinematics needs pinocchio, which cannot be imported ({error}). Install it with `pip install "
            "pin` or, beside an apt ROS, `sudo apt install ros-$ROS_DISTRO-pinocchio`."
        ) from error


def load_model(pin: Any, description: str | Path) -> Any:
    """A pinocchio model of a URDF or MJCF, given as text or as a path. Raises KinematicsError."""
    is_text = isinstance(description, str) and description.lstrip().startswith("<")
    place = "the robot description" if is_text else str(description)
    try:
        text = str(description) if is_text else Path(description).read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        if root.tag == "robot":
            return pin.buildModelFromXML(_urdf(root))
        if root.tag == "mujoco":
            return _build_mjcf(pin, _mjcf(root, None if is_text else Path(description).parent))
    except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
        raise KinematicsError(f"{place} cannot be read as XML: {error}. Give a URDF or MJCF.") from error
    except (RuntimeError, ValueError) as error:
        raise KinematicsError(f"{place} is not a valid <{root.tag}> description: {error}") from error
    raise KinematicsError(f"{place} has the root element <{root.tag}>: must be <robot> (URDF) or <mujoco> (MJCF).")


def reduce_model(pin: Any, model: Any, joints: tuple[str, ...]) -> Any:
    """The model with every joint but `joints` locked at neutral. Raises KinematicsError for a joint it lacks."""
    names = list(model.names)[1:]
    missing = [j for j in joints if j not in names]
    if missing:
        raise KinematicsError(
            f"joints {', '.join(missing)} are not in the robot's description, which has: {', '.join(names)}."
        )
    for joint in joints:
        if model.joints[model.getJointId(joint)].nq != 1:
            raise KinematicsError(f"joint '{joint}' has more than one degree of freedom; an arm's joints have one.")
    locked = [model.getJointId(n) for n in names if n not in joints]
    return pin.buildReducedModel(model, locked, pin.neutral(model))


def _urdf(root: ElementTree.Element) -> str:
    """The URDF with continuous joints made revolute: pinocchio would give them two configuration numbers each."""
    for joint in root.iter("joint"):
        if joint.get("type") == "continuous":
            joint.set("type", "revolute")
            limit = joint.find("limit")
            limit = ElementTree.SubElement(joint, "limit", velocity="1e3", effort="0") if limit is None else limit
            limit.set("lower", "-1e6")
            limit.set("upper", "1e6")
    return ElementTree.tostring(root, encoding="unicode")


def _mjcf(root: ElementTree.Element, folder: Path | None) -> str:
    """The MJCF's tree of bodies and joints, with each site made a body, under one body `world`.

    pinocchio (4.1) places a site as if the fixed bodies above its own body were not there, and reads no further than
    the first body of the world.
    """
    _expand_includes(root, folder)
    world = ElementTree.Element("body", name="world")
    for section in root.findall("worldbody"):
        world.extend(list(section))
        root.remove(section)
    ElementTree.SubElement(root, "worldbody").append(world)
    for section in list(root):
        if section.tag not in MJCF_SECTIONS:
            root.remove(section)
    bodies = {body.get("name") for body in root.iter("body")}
    for parent in list(world.iter("body")):
        for child in list(parent):
            if child.tag == "site" and child.get("name") and child.get("name") not in bodies:
                child.tag = "body"
                child.attrib = {k: v for k, v in child.attrib.items() if k in POSE_ATTRIBUTES}
            elif child.tag not in ("body", "joint", "freejoint", "inertial"):
                parent.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


def _expand_includes(root: ElementTree.Element, folder: Path | None) -> None:
    for parent in list(root.iter()):
        # From the last, so that what an include brings does not move the ones still to be expanded.
        for index, child in reversed(list(enumerate(parent))):
            if child.tag != "include":
                continue
            if folder is None:
                raise ValueError(f"it includes {child.get('file')!r}, which a description given as text cannot")
            included = ElementTree.parse(folder / str(child.get("file"))).getroot()
            _expand_includes(included, folder)
            parent.remove(child)
            for offset, part in enumerate(included):
                parent.insert(index + offset, part)


def _build_mjcf(pin: Any, text: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "robot.xml"
        path.write_text(text, encoding="utf-8")
        return pin.buildModelFromMJCF(str(path))
