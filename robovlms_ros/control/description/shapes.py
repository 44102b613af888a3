"""Collision shapes of a robot description: primitives, and meshes as hulls, boxes or capsules.

A shape that takes the place of a mesh contains the whole mesh. `Shape.error` is the largest
distance from a point of the shape to the mesh's convex hull (box, capsule) or the depth of the
deepest concavity that the hull fills.
"""

import importlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.description.robot_tree import (
    Array,
    Geometry,
    MeshAsset,
    RobotTree,
    apply,
    read_number,
    read_numbers,
)
from robovlms_ros.control.description.xml import DescriptionFault, quoted
from robovlms_ros.core.caps import MAX_MESH_BYTES
from robovlms_ros.core.file_boundary import file_boundary, require_file
from robovlms_ros.core.rotations import pose_of
from robovlms_ros.core.types import RoboVLMsError

Indices = NDArray[np.int64]
ShapeKind = Literal["sphere", "capsule", "cylinder", "box", "hull", "half_space"]
UNLIMITED = 1e-9
"""Half-spaces have no radius; shapes below this size are points."""
ERROR_SAMPLES = 200
_SAME = 1e-6


class CollisionGeometryError(RoboVLMsError):
    """A collision geometry cannot be loaded, or is missing."""


@dataclass(frozen=True)
class Shape:
    """One convex solid.

    size: m; sphere (radius,), capsule and cylinder (radius, half of the length along z without the
        caps), box half edges (3,), hull and half-space ().
    pose: (4, 4) in its link; a half-space is solid below z = 0.
    vertices: (V, 3) of a hull, in the shape's axes.
    error: m, see the module. contact: MuJoCo's contype and conaffinity.
    """

    kind: ShapeKind
    size: tuple[float, ...]
    pose: Array
    vertices: Array | None = None
    error: float = 0.0
    contact: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class BoundingCapsule:
    """A segment (2, 3) in the link's axes and a radius, m, that contain a shape.

    exact: the shape is this capsule.
    """

    ends: Array
    radius: float
    exact: bool


@cache
def import_coal() -> Any:
    """The coal module, or its predecessor hppfcl. Raises CollisionGeometryError."""
    for name in ("coal", "hppfcl"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise CollisionGeometryError(
        "the collision check needs coal, which comes with pinocchio and cannot be imported. "
        "Install it with `pip install pin` or, beside an apt ROS, `sudo apt install "
        "ros-$ROS_DISTRO-pinocchio`, or set collision.check: none in the robot's YAML."
    )


def link_shapes(
    tree: RobotTree, folder: Path | None, meshes: Literal["hull", "box", "capsule"]
) -> dict[int, list[Shape]]:
    """The collision shapes by index of their link. Sites and shapes without contact bits have none.

    folder: of the description, for relative mesh files; None for a description given as text.
    Raises DescriptionFault or CollisionGeometryError that names link and file.
    """
    found = {}
    for index, link in enumerate(tree.links):
        where = f"link {quoted(link.name)}"
        shapes = [
            _shape(geometry, tree.meshes, folder, meshes, where) for geometry in link.geometry
        ]
        solid = [shape for shape in shapes if shape is not None and any(shape.contact)]
        if solid:
            found[index] = _merge_capsules(solid)
    return found


def _shape(
    geometry: Geometry,
    assets: Mapping[str, MeshAsset],
    folder: Path | None,
    meshes: Literal["hull", "box", "capsule"],
    where: str,
) -> Shape | None:
    attributes = geometry.attributes
    kind = attributes["type"]
    where = f"{where}: collision {kind}"
    if geometry.of_mjcf:
        contact = (_bits(attributes, "contype", where), _bits(attributes, "conaffinity", where))
        if not any(contact):
            return None
        if "mesh" in attributes:
            shape = _mjcf_mesh(attributes, assets, folder, meshes, where)
        else:
            shape = _mjcf_primitive(kind, attributes.get("size", ""), where)
        shape = replace(shape, contact=contact)
    elif kind == "mesh":
        path = resolve_mesh(attributes.get("filename", ""), folder, where)
        scale = read_numbers(attributes.get("scale", "1 1 1"), 3, f"{where}: scale")
        shape = _replaced_mesh(path, scale, np.eye(4), meshes, where)
    else:
        shape = _urdf_primitive(kind, attributes, where)
    return replace(shape, pose=geometry.pose @ shape.pose)


def _bits(attributes: Mapping[str, str], name: str, where: str) -> int:
    return int(read_number(attributes.get(name, "1"), f"{where}: {name}"))


def _positive(values: Iterable[float], where: str) -> tuple[float, ...]:
    size = tuple(float(value) for value in values)
    if not all(value > 0 for value in size):
        raise DescriptionFault(f"{where} has the size {list(size)}: must be above 0")
    return size


def _urdf_primitive(kind: str, attributes: Mapping[str, str], where: str) -> Shape:
    if kind == "box":
        edges = read_numbers(attributes.get("size", ""), 3, f"{where}: size")
        return Shape("box", _positive(0.5 * edges, where), np.eye(4))
    if kind not in ("sphere", "cylinder", "capsule"):
        allowed = "box, sphere, cylinder, capsule or mesh"
        raise DescriptionFault(f"{where}: the geometry is not known: must be {allowed}")
    radius = read_number(attributes.get("radius", ""), f"{where}: radius")
    if kind == "sphere":
        return Shape("sphere", _positive([radius], where), np.eye(4))
    length = read_number(attributes.get("length", ""), f"{where}: length")
    size = _positive([radius, 0.5 * length], where)
    return Shape("cylinder" if kind == "cylinder" else "capsule", size, np.eye(4))


def _mjcf_primitive(kind: str, written: str, where: str) -> Shape:
    if kind == "plane":
        return Shape("half_space", (), np.eye(4))
    counts: dict[str, int] = {"sphere": 1, "capsule": 2, "cylinder": 2, "box": 3, "ellipsoid": 3}
    if kind not in counts:
        raise DescriptionFault(
            f"{where}: the geometry is not supported: must be plane, mesh or one of "
            f"{', '.join(counts)}. Set its contype and conaffinity to 0 to leave it out"
        )
    numbers = written.split()[: counts[kind]]
    size = _positive(read_numbers(" ".join(numbers), counts[kind], f"{where}: size"), where)
    if kind == "ellipsoid":
        # The smallest box that contains it; its corners are the furthest from it.
        error = max(size) * (math.sqrt(3.0) - 1.0)
        return Shape("box", size, np.eye(4), error=error)
    kinds: dict[str, ShapeKind] = {
        "sphere": "sphere",
        "capsule": "capsule",
        "cylinder": "cylinder",
        "box": "box",
    }
    return Shape(kinds[kind], size, np.eye(4))


def _mjcf_mesh(
    attributes: Mapping[str, str],
    assets: Mapping[str, MeshAsset],
    folder: Path | None,
    meshes: Literal["hull", "box", "capsule"],
    where: str,
) -> Shape:
    name = attributes["mesh"]
    if attributes["type"] != "mesh":
        raise DescriptionFault(
            f"{where}: a primitive fitted to the mesh {quoted(name)} is not supported: write its "
            'size, or type="mesh"'
        )
    if name not in assets:
        raise DescriptionFault(f"{where}: the mesh {quoted(name)} is not among the assets")
    asset = assets[name]
    if asset.file is None:
        assert asset.vertices is not None
        return hull_shape(_placed(asset.vertices, asset.scale, asset.pose), meshes, where)
    path = resolve_mesh(asset.file, folder, where)
    return _replaced_mesh(path, asset.scale, asset.pose, meshes, where)


def resolve_mesh(name: str, folder: Path | None, where: str) -> Path:
    """The file of a mesh; package:// is looked up below the ament prefixes.

    Raises CollisionGeometryError that names the file and the places.
    """
    if name.startswith("package://"):
        package, _, rest = name.removeprefix("package://").partition("/")
        prefixes = [p for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
        places = [Path(prefix) / "share" / package / rest for prefix in prefixes]
        remedy = f"Source the workspace that holds the package '{package}'"
    else:
        path = Path(name.removeprefix("file://"))
        if not path.is_absolute() and folder is None:
            raise CollisionGeometryError(
                f"{where}: the mesh file {quoted(name)} is relative, and the description comes "
                "from a topic. Use package:// or file:// with an absolute path."
            )
        places = [path if folder is None else folder / path]
        remedy = "Give the file"
    for place in places:
        if name and place.is_file():
            return place
    searched = ", ".join(map(str, places)) or "no ament prefix: AMENT_PREFIX_PATH is empty"
    raise CollisionGeometryError(
        f"{where}: the mesh file {quoted(name)} was not found ({searched}). {remedy}, or set "
        "collision.check: none in the robot's YAML."
    )


def _placed(vertices: Array, scale: Array, pose: Array) -> Array:
    """Vertices (V, 3) of a mesh in the axes of its origin, scaled."""
    return ((vertices * scale) - pose[:3, 3]) @ pose[:3, :3]


def _replaced_mesh(
    path: Path, scale: Array, pose: Array, meshes: Literal["hull", "box", "capsule"], where: str
) -> Shape:
    require_file(CollisionGeometryError, path, MAX_MESH_BYTES, "MAX_MESH_BYTES")
    coal = import_coal()
    remedy = "Give an STL, OBJ or DAE file"
    with file_boundary(CollisionGeometryError, f"{where}: {path}", remedy, "a mesh"):
        mesh = coal.MeshLoader().load(str(path), np.ones(3))
        vertices = np.array(mesh.vertices(), dtype=np.float64).reshape(-1, 3)
        corners = [mesh.tri_indices(i) for i in range(mesh.num_tris)]
        triangles = np.array([[t[0], t[1], t[2]] for t in corners], dtype=np.int64)
    return hull_shape(_placed(vertices, scale, pose), meshes, f"{where}: {path}", triangles)


def hull_shape(
    vertices: Array,
    meshes: Literal["hull", "box", "capsule"],
    where: str,
    triangles: Indices | None = None,
) -> Shape:
    """The hull of points (V, 3), or the box or capsule around it.

    triangles: (T, 3) indices of the mesh, for the error of its hull. Raises CollisionGeometryError.
    """
    finite = len(vertices) >= 4 and bool(np.isfinite(vertices).all())
    flat = not finite or np.linalg.matrix_rank(vertices - vertices.mean(axis=0), tol=1e-7) < 3
    if flat:
        raise CollisionGeometryError(
            f"{where}: {len(vertices)} vertices that span no volume. Give a solid mesh."
        )
    coal = import_coal()
    hull, points, faces = _convex_hull(coal, vertices)
    if meshes == "hull":
        error = 0.0 if triangles is None else _concavity(coal, vertices, triangles, points[faces])
        return Shape("hull", (), np.eye(4), points, error)
    if meshes == "box":
        shape = _fit_box(points)
        surface = _corners(shape)
    else:
        shape = _fit_capsule(points)
        surface = _capsule_surface(shape)
    # The distance to a convex set is convex: a box is furthest at a corner.
    error = max(_point_distance(coal, hull, point) for point in surface)
    return replace(shape, error=error)


def _convex_hull(coal: Any, vertices: Array) -> tuple[Any, Array, Indices]:
    """coal's hull, its vertices (V, 3) and its faces (F, 3)."""
    points = coal.StdVec_Vec3s() if hasattr(coal, "StdVec_Vec3s") else coal.StdVec_Vec3f()
    for vertex in np.unique(vertices, axis=0):
        points.append(vertex)
    hull = coal.Convex.convexHull(points, True, "Qt")
    corners = np.array([hull.point(i) for i in range(hull.num_points)]).reshape(-1, 3)
    polygons = [hull.polygons(i) for i in range(hull.num_polygons)]
    faces = np.array([[face[0], face[1], face[2]] for face in polygons], dtype=np.int64)
    return hull, corners, faces


def make_hull(coal: Any, vertices: Array) -> Any:
    """coal's convex hull of points (V, 3)."""
    return _convex_hull(coal, vertices)[0]


def _transform(coal: Any, position: Array) -> Any:
    kind = getattr(coal, "Transform3s", None) or coal.Transform3f
    return kind(np.eye(3), np.asarray(position, dtype=np.float64))


def _point_distance(coal: Any, geometry: Any, point: Array) -> float:
    """m from a point to a geometry; 0 inside."""
    dot = coal.Sphere(UNLIMITED)
    request = coal.DistanceRequest()
    result = coal.DistanceResult()
    here = _transform(coal, point)
    origin = _transform(coal, np.zeros(3))
    return max(0.0, float(coal.distance(dot, here, geometry, origin, request, result)))


def _concavity(coal: Any, vertices: Array, triangles: Indices, faces: Array) -> float:
    """m, the largest distance of middles of the hull's faces (F, 3, 3) and edges to the mesh."""
    mesh = coal.BVHModelOBBRSS()
    mesh.beginModel(len(triangles), len(vertices))
    mesh.addVertices(np.ascontiguousarray(vertices))
    mesh.addTriangles(np.ascontiguousarray(triangles))
    mesh.endModel()
    areas = np.linalg.norm(np.cross(faces[:, 1] - faces[:, 0], faces[:, 2] - faces[:, 0]), axis=1)
    largest = np.argsort(-areas)[:ERROR_SAMPLES]
    chosen = faces[largest]
    edges = 0.5 * (chosen + np.roll(chosen, 1, axis=1))
    points = np.concatenate([chosen.mean(axis=1), edges.reshape(-1, 3)])
    return max(_point_distance(coal, mesh, point) for point in points)


def _principal_axes(points: Array) -> Array:
    """(3, 3) right-handed axes in columns, the longest extent last."""
    centred = points - points.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2]
    extents = np.ptp(centred @ axes.T, axis=0)
    axes = axes[np.argsort(extents)].T
    axes[:, 0] *= np.sign(np.linalg.det(axes))
    return axes


def _fit_box(points: Array) -> Shape:
    axes = _principal_axes(points)
    inside = points @ axes
    middle = 0.5 * (inside.min(axis=0) + inside.max(axis=0))
    half = 0.5 * np.ptp(inside, axis=0)
    return Shape("box", tuple(half.tolist()), pose_of(axes, axes @ middle))


def _corners(shape: Shape) -> Array:
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return apply(shape.pose, signs * np.array(shape.size))


def _fit_capsule(points: Array) -> Shape:
    """The smallest of the capsules along the three principal axes."""
    axes = _principal_axes(points)
    fits = []
    for turn in range(3):
        rotation = np.roll(axes, turn, axis=1)
        inside = points @ rotation
        middle = 0.5 * (inside.min(axis=0) + inside.max(axis=0))
        across = np.linalg.norm(inside[:, :2] - middle[:2], axis=1)
        least = float(across.max())
        for radius in least * np.array([1.0, 1.03, 1.1, 1.2]):
            reach = np.sqrt(np.maximum(radius**2 - across**2, 0.0))
            low = float((inside[:, 2] + reach).min())
            high = float((inside[:, 2] - reach).max())
            half = max(0.5 * (high - low), UNLIMITED)
            # Where one ball contains everything, its middle must still reach both ends.
            centre = np.array([middle[0], middle[1], 0.5 * (low + high)])
            ends = np.clip(inside[:, 2] - centre[2], -half, half) + centre[2]
            radius = float(np.hypot(across, inside[:, 2] - ends).max())
            volume = math.pi * radius**2 * (2 * half + 4 / 3 * radius)
            fits.append((volume, radius, half, pose_of(rotation, rotation @ centre)))
    _, radius, half, pose = min(fits, key=lambda fit: fit[0])
    return Shape("capsule", (radius, half), pose)


def _capsule_surface(shape: Shape) -> Array:
    radius, half = shape.size
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(ERROR_SAMPLES, 3))
    directions *= radius / np.linalg.norm(directions, axis=1, keepdims=True)
    directions[:, 2] += half * np.sign(directions[:, 2])
    return apply(shape.pose, directions)


def outline(shape: Shape) -> Array:
    """(V, 3) points in the shape's own axes whose hull contains it."""
    if shape.kind == "hull":
        assert shape.vertices is not None
        return shape.vertices
    if shape.kind == "box":
        return _corners(replace(shape, pose=np.eye(4)))
    radius = shape.size[0]
    half = shape.size[1] if len(shape.size) > 1 else 0.0
    if shape.kind in ("sphere", "capsule"):
        half += radius
    return _corners(Shape("box", (radius, radius, half), np.eye(4)))


def bounding_capsule(shape: Shape) -> BoundingCapsule | None:
    """The capsule around a shape; None for a half-space."""
    if shape.kind == "half_space":
        return None
    if shape.kind == "hull":
        assert shape.vertices is not None
        fitted = _fit_capsule(shape.vertices)
        return _capsule(replace(fitted, pose=shape.pose @ fitted.pose), exact=False)
    if shape.kind == "box":
        return _capsule(_around_box(shape), exact=False)
    return _capsule(shape, exact=shape.kind != "cylinder")


def _around_box(shape: Shape) -> Shape:
    fitted = _fit_capsule(_corners(replace(shape, pose=np.eye(4))))
    return replace(fitted, pose=shape.pose @ fitted.pose)


def _capsule(shape: Shape, exact: bool) -> BoundingCapsule:
    radius = shape.size[0]
    half = shape.size[1] if len(shape.size) > 1 else 0.0
    axis = shape.pose[:3, 2] * half
    middle = shape.pose[:3, 3]
    return BoundingCapsule(np.stack([middle - axis, middle + axis]), radius, exact)


def _merge_capsules(shapes: list[Shape]) -> list[Shape]:
    """The shapes with each cylinder and the two balls on its ends as one capsule.

    URDF has no capsule of its own; descriptions write it as these three.
    """
    merged = list(shapes)
    for cylinder in [shape for shape in shapes if shape.kind == "cylinder"]:
        radius, half = cylinder.size
        middle = cylinder.pose[:3, 3]
        axis = cylinder.pose[:3, 2] * half
        balls = []
        for end in (middle - axis, middle + axis):
            balls += [
                ball
                for ball in merged
                if ball.kind == "sphere"
                and abs(ball.size[0] - radius) < _SAME
                and np.linalg.norm(ball.pose[:3, 3] - end) < _SAME
            ][:1]
        if len(balls) == 2:
            dropped = {id(cylinder), id(balls[0]), id(balls[1])}
            merged = [shape for shape in merged if id(shape) not in dropped]
            merged.append(replace(cylinder, kind="capsule"))
    return merged
