"""A robot description as a tree of links: the common form of URDF and MJCF."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from robovlms_ros.control.description.xml import DescriptionFault, quoted
from robovlms_ros.core.caps import MAX_DESCRIPTION_NUMBER
from robovlms_ros.core.types import Array

JointKind = Literal["revolute", "prismatic", "fixed", "ball", "floating", "planar"]

NUMBER_LENGTH = 100
SMALLEST_NORM = 1e-14


@dataclass(frozen=True)
class Mimic:
    """A joint's position as multiplier * (position of `joint`) + offset."""

    joint: str
    multiplier: float
    offset: float


@dataclass(frozen=True)
class TreeJoint:
    """One joint of a link, in the link's axes.

    axis: (3,) unit vector. anchor: (3,) m, a point of the axis.
    reference: rad or m, the position at which the link lies at its placement.
    lower, upper: rad or m, infinite where the description sets no limit.
    """

    name: str
    kind: JointKind
    axis: Array
    anchor: Array = field(default_factory=lambda: np.zeros(3))
    reference: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf
    mimic: Mimic | None = None

    @property
    def moves(self) -> bool:
        """True for one degree of freedom."""
        return self.kind in ("revolute", "prismatic")


@dataclass(frozen=True)
class Geometry:
    """One shape.

    pose: (4, 4) in its link. attributes: as the description writes them, `type` among them.
    of_mjcf: lengths are halves there, and contact bits decide which shapes collide.
    """

    pose: Array
    attributes: Mapping[str, str]
    of_mjcf: bool = False


@dataclass(frozen=True)
class MeshAsset:
    """A mesh that an MJCF names: a file, or its vertices (V, 3) in m.

    pose: (4, 4) of the mesh's origin in the file's axes, applied before the scale.
    """

    file: str | None
    vertices: Array | None
    scale: Array
    pose: Array


@dataclass
class TreeLink:
    """One link, body or site.

    parent: index in the tree, -1 for the root. placement: (4, 4) in the parent's axes.
    joints: applied one after the other, the first one next to the parent.
    """

    name: str
    parent: int
    placement: Array
    joints: list[TreeJoint] = field(default_factory=list)
    geometry: list[Geometry] = field(default_factory=list)
    is_site: bool = False


@dataclass(frozen=True)
class RobotTree:
    """links: depth first, each parent before its children; the first one is the root.

    coupled: names of joints that an MJCF's <equality> ties to another joint.
    unread: tags of elements whose contents are not in the tree.
    meshes: by name, of an MJCF. excluded: pairs of bodies whose contact an MJCF excludes.
    """

    links: tuple[TreeLink, ...]
    coupled: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()
    meshes: Mapping[str, MeshAsset] = field(default_factory=dict)
    excluded: tuple[tuple[str, str], ...] = ()

    def joints(self) -> dict[str, TreeJoint]:
        """The joints by name; unnamed ones are absent."""
        return {j.name: j for link in self.links for j in link.joints if j.name}

    def find_link(self, name: str) -> int | None:
        """The index of the link or body `name`, else of the site of that name, else None."""
        found = [i for i, link in enumerate(self.links) if link.name == name]
        return min(found, key=lambda i: self.links[i].is_site, default=None)

    def child_of(self, joint: str) -> str | None:
        """The name of the link that a joint moves."""
        found = [link.name for link in self.links for j in link.joints if j.name == joint]
        return found[0] if found else None

    def ancestors(self, link: int) -> list[int]:
        """The indices from a link to the root, both included."""
        path = []
        while link >= 0:
            path.append(link)
            link = self.links[link].parent
        return path


def read_number(text: str, where: str) -> float:
    """A finite number. Raises DescriptionFault."""
    text = text.strip()
    try:
        # float() also takes underscores and digits of other scripts; ROS and MuJoCo do not.
        well_formed = text.isascii() and "_" not in text and len(text) <= NUMBER_LENGTH
        value = float(text) if well_formed else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DescriptionFault(f"{where} = {quoted(text)}: must be a finite number")
    return value


def read_numbers(text: str, count: int, where: str) -> Array:
    """(count,) numbers separated by white space, at most MAX_DESCRIPTION_NUMBER large.

    Raises DescriptionFault.
    """
    parts = text.split(maxsplit=count)
    if len(parts) != count:
        raise DescriptionFault(
            f"{where} = {quoted(text)}: must be {count} numbers separated by spaces"
        )
    values = np.array([read_number(part, where) for part in parts])
    if np.abs(values).max() > MAX_DESCRIPTION_NUMBER:
        raise DescriptionFault(
            f"{where} = {quoted(text)}: larger than {MAX_DESCRIPTION_NUMBER:.0e}"
        )
    return values


def unit_vector(vector: Array, where: str) -> Array:
    """The vector divided by its length. Raises DescriptionFault for a vector of length 0."""
    norm = float(np.linalg.norm(vector))
    if norm < SMALLEST_NORM:
        raise DescriptionFault(f"{where} = {vector.tolist()}: has no direction")
    return vector / norm


def apply(pose: Array, points: Array) -> Array:
    """(N, 3) points at a pose (4, 4)."""
    return points @ pose[:3, :3].T + pose[:3, 3]
