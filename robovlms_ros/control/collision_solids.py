"""Solids of a robot and its surroundings, their forward kinematics and their distances.

The solids come from the same tree as the kinematics (URDF or MJCF). A link that the gripper
moves is the hull of its whole stroke, whatever the gripper does. Joints that are neither the arm's
nor the gripper's stay at their neutral position.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.collision_config import WorldBody
from robovlms_ros.control.description.model import ArmJoint, ArmModel, find_frame
from robovlms_ros.control.description.robot_tree import Array, RobotTree, apply
from robovlms_ros.control.description.shapes import (
    CollisionGeometryError,
    Shape,
    bounding_capsule,
    hull_shape,
    import_coal,
    make_hull,
    outline,
)
from robovlms_ros.core.rotations import matrix_from_euler, pose_of, skew

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Solid:
    """One solid. body: name of its link or world body.

    joint: model joint that carries it, 0 is fixed. geometry: coal's; pose: (4, 4) of it in the
    joint's axes. ends (2, 3), radius: of the capsule around it, in the joint's axes; None for a
    half-space. exact: it is that capsule.
    slab: (2, 3) lowest and highest coordinates of a fixed box, cylinder or half-space in its own
        axes, infinite where its faces do not bound it; None for other solids.
    """

    body: str
    joint: int
    shape: Shape
    geometry: Any
    pose: Array
    ends: Array | None
    radius: float
    exact: bool
    slab: Array | None = None


@dataclass(frozen=True)
class SolidPairs:
    """Pairs of solids, (P,) each: indices, distances to keep (m), and of which kind they are.

    reach: (P, J) m per rad (or m per m), bound of the relative motion of two bodies; the rows of
        pairs with a fixed body are 0, their motion is measured.
    world: one is a world body. intended: contact within touch_depth is allowed.
    exact: the capsules or planes give the distance itself.
    """

    first: Index
    second: Index
    margin: Array
    reach: Array
    world: NDArray[np.bool_]
    intended: NDArray[np.bool_]
    exact: NDArray[np.bool_]


@dataclass(frozen=True)
class CollisionModel:
    """Solids, pairs and the forward kinematics of one robot. Read-only: any thread may use it.

    base: (4, 4) pose of base_frame in the root's axes. left_out: links that always collide.
    errors: m, by link, by which shapes extend beyond the meshes that they take the place of.
    """

    joints: tuple[ArmJoint, ...]
    coupling: Array
    offset: Array
    base: Array
    solids: tuple[Solid, ...]
    pairs: SolidPairs
    left_out: tuple[tuple[str, str], ...] = ()
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def moving(self) -> Index:
        """Indices of the solids that the arm moves."""
        return np.array([i for i, solid in enumerate(self.solids) if solid.joint], dtype=np.int64)

    def poses(self, positions: Array) -> tuple[Array, Array]:
        """Rotations (V + 1, N, 3, 3) and origins (V + 1, N, 3) of the model's joints, root first.

        positions: (N, J). Vectorised over N; equals pinocchio's forward kinematics.
        """
        values = (positions @ self.coupling.T + self.offset).T  # (V, N)
        count = len(positions)
        rotations = np.empty((len(self.joints) + 1, count, 3, 3))
        origins = np.empty((len(self.joints) + 1, count, 3))
        rotations[0] = np.eye(3)
        origins[0] = 0.0
        # Rodrigues' formula behind the placement: constant, sine and 1 - cosine parts.
        still, along, across = self._turns
        local = still + along * np.sin(values)[:, :, None, None]
        local += across * (1.0 - np.cos(values))[:, :, None, None]  # (V, N, 3, 3)
        for index, joint in enumerate(self.joints, start=1):
            parent = rotations[joint.parent]
            np.matmul(parent, local[index - 1], out=rotations[index])
            np.matmul(parent, joint.placement[:3, 3], out=origins[index])
            origins[index] += origins[joint.parent]
            if joint.kind == "prismatic":
                origins[index] += (rotations[index] @ joint.axis) * values[index - 1][:, None]
        return rotations, origins

    @cached_property
    def _turns(self) -> Array:
        """(3, V, 1, 3, 3): a joint's rotation is first + sine * second + (1 - cosine) * third."""
        parts = []
        for joint in self.joints:
            placement = joint.placement[:3, :3]
            generator = skew(joint.axis) if joint.kind == "revolute" else np.zeros((3, 3))
            parts.append([placement, placement @ generator, placement @ generator @ generator])
        return np.array(parts).reshape(-1, 3, 1, 3, 3).swapaxes(0, 1)


def path_to_root(joints: tuple[ArmJoint, ...], joint: int) -> list[int]:
    """Indices of the model's joints from one to the root, the root left out."""
    path = []
    while joint:
        path.append(joint)
        joint = joints[joint - 1].parent
    return path


def link_solids(
    tree: RobotTree, arms: list[ArmModel], shapes: Mapping[int, list[Shape]]
) -> list[Solid]:
    """The solids of the links; a link that the gripper moves is the hull of its whole stroke."""
    solids = []
    for index, found in shapes.items():
        name = tree.links[index].name or f"body {index}"
        joint, pose = arms[0].links[index]
        placed = [arm.links[index][1] for arm in arms]
        if all(np.allclose(pose, other, atol=1e-6) for other in placed):
            solids += [_solid(name, joint, pose, shape) for shape in found]
        else:
            points = [apply(other @ s.pose, outline(s)) for s in found for other in placed]
            stroke = hull_shape(np.concatenate(points), "hull", name)
            solids.append(_solid(name, joint, np.eye(4), stroke))
    return solids


def _solid(body: str, joint: int, link: Array, shape: Shape) -> Solid:
    """link: (4, 4) of the link in the joint's axes."""
    pose = link @ shape.pose
    bound = bounding_capsule(shape)
    slab = _slab(shape) if joint == 0 else None
    if bound is None:
        if joint:
            raise CollisionGeometryError(
                f"'{body}' moves and is a half-space: give it a finite shape"
            )
        return Solid(body, joint, shape, _geometry(shape), pose, None, 0.0, False, slab)
    ends = bound.ends @ link[:3, :3].T + link[:3, 3]
    return Solid(body, joint, shape, _geometry(shape), pose, ends, bound.radius, bound.exact, slab)


def _geometry(shape: Shape) -> Any:
    coal = import_coal()
    size = shape.size
    if shape.kind == "half_space":
        return coal.Halfspace(np.array([0.0, 0.0, 1.0]), 0.0)
    if shape.kind == "hull":
        return make_hull(coal, outline(shape))
    if shape.kind == "sphere":
        return coal.Sphere(size[0])
    if shape.kind == "box":
        return coal.Box(*(2.0 * edge for edge in size))
    return getattr(coal, shape.kind.capitalize())(size[0], 2.0 * size[1])


def _slab(shape: Shape) -> Array | None:
    high = np.full(3, np.inf)
    low = -high
    if shape.kind == "half_space":
        high[2] = 0.0
    elif shape.kind == "box":
        high[:] = shape.size
        low[:] = -high
    elif shape.kind == "cylinder":
        high[2] = shape.size[1]
        low[2] = -shape.size[1]
    else:
        return None
    return np.stack([low, high])


def world_solid(body: WorldBody, tree: RobotTree, arm: ArmModel, base: Array) -> Solid:
    joint = 0
    frame = base
    if body.frame is not None:
        joint, frame = arm.links[find_frame(tree, body.frame)]
    pose = pose_of(matrix_from_euler(np.array(body.rpy)), np.array(body.position))
    if body.type == "box":
        shape = Shape("box", tuple(0.5 * edge for edge in body.size), pose)
    elif body.type == "cylinder":
        shape = Shape("cylinder", (body.size[0], 0.5 * body.size[1]), pose)
    else:
        shape = Shape(body.type, body.size, pose)
    return _solid(body.name, joint, frame, shape)


def solid_distance(
    first: Solid, first_pose: tuple[Array, Array], second: Solid, second_pose: tuple[Array, Array]
) -> tuple[float, Array]:
    """m between two solids (negative: their overlap), and the point (3,) of the second one next to
    the first, in the root's axes.

    first_pose, second_pose: rotation (3, 3) and origin (3,) of the joints that carry them. Raises
    CollisionGeometryError.
    """
    coal = import_coal()
    result = coal.DistanceResult()
    try:
        distance = coal.distance(
            first.geometry,
            _placement(coal, first.pose, first_pose),
            second.geometry,
            _placement(coal, second.pose, second_pose),
            coal.DistanceRequest(),
            result,
        )
    except RuntimeError as error:
        raise CollisionGeometryError(
            f"the distance of {first.body} and {second.body} cannot be computed: {error}."
        ) from error
    return float(distance), np.array(result.getNearestPoint2()).reshape(3)


def _placement(coal: Any, pose: Array, joint: tuple[Array, Array]) -> Any:
    rotation, origin = joint
    transform = getattr(coal, "Transform3s", None) or coal.Transform3f
    return transform(rotation @ pose[:3, :3], rotation @ pose[:3, 3] + origin)


def distance_at(model: CollisionModel, i: int, j: int, rotations: Array, origins: Array) -> float:
    """rotations (V + 1, 3, 3) and origins (V + 1, 3) of one configuration."""
    first = model.solids[i]
    second = model.solids[j]
    return solid_distance(
        first,
        (rotations[first.joint], origins[first.joint]),
        second,
        (rotations[second.joint], origins[second.joint]),
    )[0]
