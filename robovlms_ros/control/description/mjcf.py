"""MJCF as a RobotTree, by the rules of MuJoCo.

The reader takes compiler, default, include, worldbody with body, frame, joint, freejoint, site and
geom, mesh assets, excluded contacts, and the joint couplings of equality. It skips <replicate>,
<attach>, <composite> and <flexcomp>: their contents move nothing outside of them. The error on an
absent name refers to them.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from robovlms_ros.control.description.robot_tree import (
    SMALLEST_NORM,
    Array,
    Geometry,
    JointKind,
    MeshAsset,
    RobotTree,
    TreeJoint,
    TreeLink,
    read_number,
    read_numbers,
    unit_vector,
)
from robovlms_ros.control.description.xml import DescriptionFault, DescriptionReader, quoted
from robovlms_ros.core.rotations import matrix_from_quaternion, matrix_from_vector, pose_of

KINDS: dict[str, JointKind] = {
    "hinge": "revolute",
    "slide": "prismatic",
    "ball": "ball",
    "free": "floating",
}
SEQUENCE = "three letters of xyzXYZ"
SWITCH = ("auto", "true", "false")
# One of these, in a class or on the element, takes the place of the others and of quat.
ORIENTATIONS = ("axisangle", "xyaxes", "zaxis", "euler")
WITH_DEFAULTS = ("joint", "site", "geom", "mesh")
GENERATORS = ("replicate", "attach", "composite", "flexcomp")
WITHOUT_KINEMATICS = ("inertial", "camera", "light", "plugin")

Attributes = dict[str, str]
DefaultClass = dict[str, Attributes]


@dataclass
class Compiler:
    """The settings of <compiler> that kinematics depends on; of repeated ones the last counts."""

    degrees: bool = True
    autolimits: bool = True
    sequence: str = "xyz"
    alignfree: bool = False
    meshdir: str = ""

    def read(self, element: Element) -> None:
        """Take over the attributes that an element sets. Raises DescriptionFault."""
        self.degrees = _choice(element, "angle", ("degree", "radian"), self.degrees)
        self.autolimits = _choice(element, "autolimits", ("true", "false"), self.autolimits)
        self.alignfree = _choice(element, "alignfree", ("true", "false"), self.alignfree)
        self.meshdir = element.get("meshdir", element.get("assetdir", self.meshdir))
        self.sequence = element.get("eulerseq", self.sequence)
        if len(self.sequence) != 3:
            raise DescriptionFault(
                f"compiler eulerseq = {quoted(self.sequence)}: must be {SEQUENCE}"
            )
        if element.get("coordinate", "local") != "local":
            raise DescriptionFault(
                f"compiler coordinate = {quoted(element.get('coordinate'))}: must be local. "
                "MuJoCo 2.3.3 or older loads the file and saves it with local coordinates"
            )

    def angle(self, value: float) -> float:
        """An angle as written, in rad."""
        return math.radians(value) if self.degrees else value


def _choice(element: Element, name: str, allowed: tuple[str, str], now: bool) -> bool:
    """True for the first of the allowed words, False for the second, `now` for auto or none."""
    written = element.get(name, "auto")
    if written == "auto":
        return now
    if written not in allowed:
        raise DescriptionFault(
            f"{element.tag} {name} = {quoted(written)}: must be {' or '.join(allowed)}"
        )
    return written == allowed[0]


def expand_includes(root: Element, folder: Path | None, reader: DescriptionReader) -> None:
    """Put the contents of each included file in the place of its <include>.

    folder: of the main file; None refuses includes. Raises DescriptionFault or OSError.
    """
    if folder is None:
        include = next(root.iter("include"), None)
        if include is not None:
            raise DescriptionFault(
                f"it includes {quoted(include.get('file'))}, which a description given as text "
                "cannot"
            )
        return
    _expand(root, folder, folder, reader)


def _expand(parent: Element, here: Path, main: Path, reader: DescriptionReader) -> None:
    """here: the folder of the file that holds `parent`."""
    for child in list(parent):
        if child.tag != "include":
            _expand(child, here, main, reader)
            continue
        file = child.get("file")
        if not file:
            raise DescriptionFault("an <include> names no file")
        path = here / file
        # MuJoCo finds a nested include beside its own file or beside the main one.
        if not path.is_file():
            path = main / file
        try:
            included = reader.file(path)
        except DescriptionFault as error:
            raise DescriptionFault(f"{quoted(path)}, which it includes: {error}") from error
        _expand(included, path.parent, main, reader)
        index = list(parent).index(child)
        parent[index : index + 1] = list(included)


def read_mjcf(root: Element) -> RobotTree:
    """The tree of a <mujoco> element without includes. Raises DescriptionFault."""
    return _Reading(root).tree()


@dataclass
class _Scope:
    """A place in the tree of bodies. pose: (4, 4) of the frames inside the link."""

    link: int
    pose: Array
    childclass: str


@dataclass
class _Reading:
    root: Element
    compiler: Compiler = field(default_factory=Compiler)
    classes: dict[str, DefaultClass] = field(default_factory=dict)
    links: list[TreeLink] = field(default_factory=list)
    names: set[tuple[str, str]] = field(default_factory=set)
    unread: dict[str, None] = field(default_factory=dict)

    def tree(self) -> RobotTree:
        for section in self.root.findall("compiler"):
            self.compiler.read(section)
        self.classes = {"main": {tag: {} for tag in WITH_DEFAULTS}}
        for section in self.root.findall("default"):
            if section.get("class", "main") != "main":
                raise DescriptionFault(
                    f"a top-level default has the class {quoted(section.get('class'))}: "
                    "must be main, or nested"
                )
            self._read_class(section, "main")
        self.links.append(TreeLink("world", -1, np.eye(4)))
        self.names.add(("body", "world"))
        for section in self.root.findall("worldbody"):
            self._walk(section, _Scope(0, np.eye(4), "main"))
        coupled = frozenset(
            str(joint.get("joint1"))
            for section in self.root.findall("equality")
            for joint in section.findall("joint")
            if joint.get("joint2") and joint.get("active", "true") != "false"
        )
        excluded = tuple(
            (str(element.get("body1")), str(element.get("body2")))
            for section in self.root.findall("contact")
            for element in section.findall("exclude")
        )
        meshes = dict(
            self._mesh(element)
            for section in self.root.findall("asset")
            for element in section.findall("mesh")
        )
        return RobotTree(tuple(self.links), coupled, tuple(self.unread), meshes, excluded)

    def _mesh(self, element: Element) -> tuple[str, MeshAsset]:
        """Name and contents of a mesh asset; a mesh without a name takes its file's."""
        attributes = self._resolved(element, _Scope(0, np.eye(4), "main"))
        file = attributes.get("file")
        name = attributes.get("name") or Path(file or "").stem
        where = f"mesh {quoted(name)}"
        scale = read_numbers(attributes.get("scale", "1 1 1"), 3, f"{where}: scale")
        position = read_numbers(attributes.get("refpos", "0 0 0"), 3, f"{where}: refpos")
        turn = read_numbers(attributes.get("refquat", "1 0 0 0"), 4, f"{where}: refquat")
        rotation = matrix_from_quaternion(unit_vector(turn, f"{where}: refquat"))
        pose = pose_of(rotation, position)
        if file is not None:
            return name, MeshAsset(str(Path(self.compiler.meshdir) / file), None, scale, pose)
        numbers = attributes.get("vertex", "").split()
        if len(numbers) % 3:
            raise DescriptionFault(f"{where}: vertex has {len(numbers)} numbers, must be 3 each")
        vertices = np.array([read_number(text, f"{where}: vertex") for text in numbers])
        return name, MeshAsset(None, vertices.reshape(-1, 3), scale, pose)

    def _read_class(self, section: Element, name: str) -> None:
        own = self.classes[name]
        for child in section:
            if child.tag in WITH_DEFAULTS:
                own[child.tag] = _laid_over(own[child.tag], child)
        for child in section.findall("default"):
            nested = child.get("class")
            if not nested:
                raise DescriptionFault(f"a default inside the class {quoted(name)} has no class")
            if nested in self.classes:
                raise DescriptionFault(f"two defaults have the class {quoted(nested)}")
            # A copy at this moment: what a later section adds to the outer class does not reach it.
            self.classes[nested] = dict(own)
            self._read_class(child, nested)

    def _resolved(self, element: Element, scope: _Scope) -> Attributes:
        """The attributes of an element over those of its default class."""
        name = self._class(element.get("class"), scope.childclass)
        return _laid_over(self.classes[name][element.tag], element)

    def _class(self, name: str | None, otherwise: str) -> str:
        if name is None:
            return otherwise
        if name not in self.classes:
            raise DescriptionFault(f"unknown default class {quoted(name)}")
        return name

    def _walk(self, parent: Element, scope: _Scope) -> None:
        """Add what lies in a worldbody, body or frame."""
        for child in parent:
            if child.tag in ("body", "frame"):
                self._enter(child, scope)
            elif child.tag in ("joint", "freejoint"):
                self._add_joint(child, scope)
            elif child.tag == "site":
                self._add_site(child, scope)
            elif child.tag == "geom":
                self._add_geom(child, scope)
            elif child.tag in GENERATORS:
                self.unread[child.tag] = None
            elif child.tag not in WITHOUT_KINEMATICS:
                raise DescriptionFault(
                    f"{_where(parent)} holds <{quoted(child.tag)[1:-1]}>, which is not known"
                )

    def _enter(self, element: Element, scope: _Scope) -> None:
        pose = scope.pose @ self._pose(dict(element.attrib), _where(element))
        childclass = self._class(element.get("childclass"), scope.childclass)
        link = scope.link
        if element.tag == "body":
            link = self._add_link(element, scope.link, pose)
            pose = np.eye(4)
        self._walk(element, _Scope(link, pose, childclass))

    def _add_link(self, element: Element, parent: int, pose: Array) -> int:
        name = self._name(element)
        self.links.append(TreeLink(name, parent, pose, is_site=element.tag == "site"))
        return len(self.links) - 1

    def _name(self, element: Element) -> str:
        name = element.get("name", "")
        kind = "joint" if element.tag == "freejoint" else element.tag
        if name and (kind, name) in self.names:
            raise DescriptionFault(f"two {kind} have the name {quoted(name)}")
        self.names.add((kind, name))
        return name

    def _add_site(self, element: Element, scope: _Scope) -> None:
        pose = self._pose(self._resolved(element, scope), _where(element))
        self._add_link(element, scope.link, scope.pose @ pose)

    def _add_geom(self, element: Element, scope: _Scope) -> None:
        attributes = {"type": "sphere", **self._resolved(element, scope)}
        pose = self._pose(attributes, _where(element))
        if "fromto" in attributes and "size" in attributes:
            half = _half_length(attributes["fromto"])
            radius = attributes["size"].split()[:1] or ["0"]
            is_round = attributes["type"] in ("capsule", "cylinder")
            attributes["size"] = " ".join([*radius * (1 if is_round else 2), repr(half)])
        self.links[scope.link].geometry.append(Geometry(scope.pose @ pose, attributes, True))

    def _add_joint(self, element: Element, scope: _Scope) -> None:
        name = self._name(element)
        where = _where(element)
        if scope.link == 0:
            raise DescriptionFault(f"{where} lies in the worldbody, which does not move")
        joints = self.links[scope.link].joints
        if element.tag == "freejoint":
            if _choice(element, "align", ("true", "false"), self.compiler.alignfree):
                # MuJoCo moves the axes of such a body to its inertia, which is not read.
                self.links[scope.link].name = ""
                self.unread["freejoint align"] = None
            joints.append(TreeJoint(name, "floating", np.array([0.0, 0.0, 1.0])))
            return
        attributes = self._resolved(element, scope)
        written = attributes.get("type", "hinge")
        if written not in KINDS:
            raise DescriptionFault(
                f"{where}: type = {quoted(written)}: must be one of {', '.join(KINDS)}"
            )
        kind = KINDS[written]
        if kind not in ("revolute", "prismatic"):
            joints.append(TreeJoint(name, kind, np.array([0.0, 0.0, 1.0])))
            return
        along = read_numbers(attributes.get("axis", "0 0 1"), 3, f"{where}: axis")
        axis = scope.pose[:3, :3] @ unit_vector(along, f"{where}: axis")
        position = _position(attributes, where)
        anchor = scope.pose[:3, :3] @ position + scope.pose[:3, 3]
        reference = read_number(attributes.get("ref", "0"), f"{where}: ref")
        reference = self.compiler.angle(reference) if kind == "revolute" else reference
        lower, upper = self._limits(attributes, kind, where)
        joints.append(TreeJoint(name, kind, axis, anchor, reference, lower, upper))

    def _limits(self, attributes: Attributes, kind: JointKind, where: str) -> tuple[float, float]:
        limited = attributes.get("limited", "auto")
        if limited not in SWITCH:
            raise DescriptionFault(
                f"{where}: limited = {quoted(limited)}: must be one of {', '.join(SWITCH)}"
            )
        parts = attributes.get("range", "0 0").split(maxsplit=2)
        if len(parts) != 2:
            raise DescriptionFault(
                f"{where}: range = {quoted(attributes['range'])}: must be two numbers"
            )
        low, high = (read_number(part, f"{where}: range") for part in parts)
        if limited == "true" and not low < high:
            raise DescriptionFault(f"{where}: is limited, but its range {low} to {high} is empty")
        if (
            limited == "auto"
            and not self.compiler.autolimits
            and "range" in attributes
            and low < high
        ):
            raise DescriptionFault(
                f"{where}: has a range but not limited, and compiler autolimits is false. "
                "Set limited to true or false"
            )
        if limited == "false" or not low < high:
            return -math.inf, math.inf
        if kind == "revolute":
            return self.compiler.angle(low), self.compiler.angle(high)
        return low, high

    def _pose(self, attributes: Attributes, where: str) -> Array:
        """(4, 4) of pos and orientation, or of fromto."""
        fromto = attributes.get("fromto")
        if fromto is None:
            return pose_of(self._rotation(attributes, where), _position(attributes, where))
        if _position(attributes, where).any():
            raise DescriptionFault(f"{where}: has both pos and fromto; keep one")
        ends = read_numbers(fromto, 6, f"{where}: fromto")
        # The z axis points from the second end to the first.
        rotation = _turn_z_to(ends[:3] - ends[3:], f"{where}: fromto")
        return pose_of(rotation, 0.5 * (ends[:3] + ends[3:]))

    def _rotation(self, attributes: Attributes, where: str) -> Array:
        written = [name for name in ORIENTATIONS if name in attributes]
        if not written:
            quaternion = read_numbers(attributes.get("quat", "1 0 0 0"), 4, f"{where}: quat")
            return matrix_from_quaternion(unit_vector(quaternion, f"{where}: quat"))
        name = written[0]
        count = {"axisangle": 4, "xyaxes": 6, "zaxis": 3, "euler": 3}[name]
        where = f"{where}: {name}"
        values = read_numbers(attributes[name], count, where)
        if name == "axisangle":
            return matrix_from_vector(
                unit_vector(values[:3], where) * self.compiler.angle(values[3])
            )
        if name == "zaxis":
            return _turn_z_to(values, where)
        if name == "xyaxes":
            x = unit_vector(values[:3], where)
            y = unit_vector(values[3:] - x * (x @ values[3:]), where)
            return np.stack([x, y, np.cross(x, y)], axis=1)
        return self._euler(values)

    def _euler(self, values: Array) -> Array:
        """(3, 3): lower case turns about the turned axes, upper case about the fixed ones."""
        if not set(self.compiler.sequence) <= set("xyzXYZ"):
            raise DescriptionFault(
                f"compiler eulerseq = {quoted(self.compiler.sequence)}: must be {SEQUENCE}"
            )
        rotation = np.eye(3)
        for letter, value in zip(self.compiler.sequence, values, strict=True):
            axis = np.eye(3)["xyz".index(letter.lower())]
            turn = matrix_from_vector(axis * self.compiler.angle(value))
            rotation = rotation @ turn if letter.islower() else turn @ rotation
        return rotation


def _laid_over(default: Attributes, element: Element) -> Attributes:
    """The attributes of an element over those of a class.

    Raises DescriptionFault for several orientations on one element.
    """
    written = [name for name in (*ORIENTATIONS, "quat") if name in element.attrib]
    if len(written) > 1:
        raise DescriptionFault(
            f"{_where(element)} has several orientations, {', '.join(written)}; keep one"
        )
    replaced = ORIENTATIONS if written and written[0] != "quat" else ()
    return {**{k: v for k, v in default.items() if k not in replaced}, **element.attrib}


def _position(attributes: Attributes, where: str) -> Array:
    written = attributes.get("pos", "0 0 0")
    # MuJoCo takes an empty list for an absent one.
    return read_numbers(written if written.strip() else "0 0 0", 3, f"{where}: pos")


def _half_length(fromto: str) -> float:
    ends = read_numbers(fromto, 6, "fromto")
    return float(0.5 * np.linalg.norm(ends[3:] - ends[:3]))


def _turn_z_to(direction: Array, where: str) -> Array:
    """(3, 3) smallest turn of the z axis to a direction; half a turn about x for the opposite."""
    z = unit_vector(direction, where)
    axis = np.array([-z[1], z[0], 0.0])
    sine = float(np.linalg.norm(axis))
    axis = np.array([1.0, 0.0, 0.0]) if sine < SMALLEST_NORM else axis / sine
    return matrix_from_vector(axis * math.atan2(sine, z[2]))


def _where(element: Element) -> str:
    name = element.get("name")
    return f"{element.tag} {quoted(name)}" if name else f"an unnamed {element.tag}"
