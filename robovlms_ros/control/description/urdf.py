"""URDF as a RobotTree, by the rules of its parser in ROS, urdfdom.

The reader takes link, joint, origin, axis, limit (lower and upper), mimic and collision. It skips
everything else, so that effort, inertia, meshes and leftovers of xacro cannot be at fault.
"""

import math
from xml.etree.ElementTree import Element

import numpy as np

from robovlms_ros.control.description.robot_tree import (
    Array,
    Geometry,
    JointKind,
    Mimic,
    RobotTree,
    TreeJoint,
    TreeLink,
    read_number,
    read_numbers,
    unit_vector,
)
from robovlms_ros.control.description.xml import DescriptionFault, quoted
from robovlms_ros.core.rotations import matrix_from_euler, matrix_from_quaternion, pose_of

KINDS: dict[str, JointKind] = {
    "revolute": "revolute",
    "continuous": "revolute",
    "prismatic": "prismatic",
    "fixed": "fixed",
    "floating": "floating",
    "planar": "planar",
}


def read_urdf(root: Element) -> RobotTree:
    """The tree of a <robot> element. Raises DescriptionFault."""
    links = _named(root, "link")
    joints = _named(root, "joint")
    if not links:
        raise DescriptionFault("it has no link")
    children: dict[str, list[Element]] = {name: [] for name in links}
    parent_joint: dict[str, str] = {}
    for name, joint in joints.items():
        parent = _link_of(joint, "parent", name, links)
        child = _link_of(joint, "child", name, links)
        if child in parent_joint:
            first = quoted(parent_joint[child])
            raise DescriptionFault(
                f"link {quoted(child)} is the child of two joints, {first} and {quoted(name)}"
            )
        parent_joint[child] = name
        children[parent].append(joint)
    roots = [name for name in links if name not in parent_joint]
    if len(roots) != 1:
        found = ", ".join(map(quoted, roots[:10])) or "none: the joints form a circle"
        raise DescriptionFault(
            f"one link must have no parent, the root of the tree; such links: {found}"
        )
    return _grow(roots[0], links, children)


def _grow(root: str, links: dict[str, Element], children: dict[str, list[Element]]) -> RobotTree:
    tree: list[TreeLink] = []
    waiting: list[tuple[int, Element | None]] = [(-1, None)]
    while waiting:
        parent, joint = waiting.pop()
        if joint is None:
            name = root
            link = TreeLink(name, -1, np.eye(4))
        else:
            name = str(_child(joint, "child").get("link"))
            placement = _origin(joint, f"joint {quoted(joint.get('name'))}")
            link = TreeLink(name, parent, placement, [_joint(joint)])
        link.geometry.extend(_geometry(links[name]))
        waiting.extend((len(tree), j) for j in reversed(children[name]))
        tree.append(link)
    if len(tree) != len(links):
        reached = {link.name for link in tree}
        apart = ", ".join(quoted(name) for name in links if name not in reached)[:200]
        raise DescriptionFault(
            f"links are not connected to {quoted(root)}, their joints form a circle: {apart}"
        )
    return RobotTree(tuple(tree))


def _named(root: Element, tag: str) -> dict[str, Element]:
    """The direct children of a tag by name: a <joint> in a <transmission> is no joint."""
    named: dict[str, Element] = {}
    for element in root.findall(tag):
        name = element.get("name")
        if not name:
            raise DescriptionFault(f"a <{tag}> has no name")
        if name in named:
            raise DescriptionFault(f"two <{tag}> have the name {quoted(name)}")
        named[name] = element
    return named


def _child(element: Element, tag: str) -> Element:
    """The first child of a tag, an empty element where there is none."""
    found = element.find(tag)
    return Element(tag) if found is None else found


def _link_of(joint: Element, tag: str, name: str, links: dict[str, Element]) -> str:
    link = _child(joint, tag).get("link")
    if not link:
        raise DescriptionFault(f"joint {quoted(name)} has no <{tag} link=...>")
    if link not in links:
        raise DescriptionFault(
            f"joint {quoted(name)}: its {tag} link {quoted(link)} is not a link of the robot"
        )
    return link


def _origin(element: Element, where: str) -> Array:
    origin = _child(element, "origin")
    position = read_numbers(origin.get("xyz", "0 0 0"), 3, f"{where}: origin xyz")
    quaternion = origin.get("quat_xyzw")
    if quaternion is None:
        return pose_of(
            matrix_from_euler(read_numbers(origin.get("rpy", "0 0 0"), 3, f"{where}: origin rpy")),
            position,
        )
    if "rpy" in origin.attrib:
        raise DescriptionFault(f"{where}: origin has both rpy and quat_xyzw; keep one")
    values = unit_vector(
        read_numbers(quaternion, 4, f"{where}: origin quat_xyzw"), f"{where}: origin quat_xyzw"
    )
    return pose_of(matrix_from_quaternion(np.roll(values, 1)), position)


def _joint(joint: Element) -> TreeJoint:
    name = str(joint.get("name"))
    where = f"joint {quoted(name)}"
    written = joint.get("type", "")
    if written not in KINDS:
        raise DescriptionFault(
            f"{where}: type = {quoted(written)}: must be one of {', '.join(KINDS)}"
        )
    kind = KINDS[written]
    if kind not in ("revolute", "prismatic"):
        return TreeJoint(name, kind, np.array([1.0, 0.0, 0.0]))
    along = read_numbers(_child(joint, "axis").get("xyz", "1 0 0"), 3, f"{where}: axis xyz")
    axis = unit_vector(along, f"{where}: axis xyz")
    lower = -math.inf
    upper = math.inf
    if written != "continuous":
        limit = joint.find("limit")
        if limit is None:
            raise DescriptionFault(f"{where} of type {written} has no <limit>")
        lower = read_number(limit.get("lower", "0"), f"{where}: limit lower")
        upper = read_number(limit.get("upper", "0"), f"{where}: limit upper")
    return TreeJoint(name, kind, axis, lower=lower, upper=upper, mimic=_mimic(joint, where))


def _mimic(joint: Element, where: str) -> Mimic | None:
    mimic = joint.find("mimic")
    if mimic is None:
        return None
    master = mimic.get("joint")
    if not master:
        raise DescriptionFault(f"{where}: <mimic> names no joint")
    multiplier = read_numbers(mimic.get("multiplier", "1"), 1, f"{where}: mimic multiplier")
    offset = read_numbers(mimic.get("offset", "0"), 1, f"{where}: mimic offset")
    return Mimic(master, float(multiplier[0]), float(offset[0]))


def _geometry(link: Element) -> list[Geometry]:
    """The collision shapes, with the attributes of <box>, <mesh> and so on, the tag as `type`."""
    shapes: list[Geometry] = []
    for collision in link.findall("collision"):
        pose = _origin(collision, f"collision of link {quoted(link.get('name'))}")
        shapes.extend(
            Geometry(pose, {"type": shape.tag, **shape.attrib})
            for shape in _child(collision, "geometry")
        )
    return shapes
