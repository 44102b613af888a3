"""The collision model of a robot: its solids, and the pairs of them that must not touch.

Left out are rigidly joined and adjacent links, pairs that collide in nearly every configuration,
and those that the MJCF, an SRDF or the robot's YAML excludes.
"""

from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from robovlms_ros.control.collision_solids import (
    CollisionModel,
    Solid,
    SolidPairs,
    distance_at,
    link_solids,
    path_to_root,
    world_solid,
)
from robovlms_ros.control.description.model import (
    ArmJoint,
    ArmModel,
    KinematicsError,
    build_model,
    check_joints,
    find_frame,
    import_pinocchio,
    load_tree,
    place_of,
)
from robovlms_ros.control.description.robot_tree import Array, RobotTree
from robovlms_ros.control.description.shapes import CollisionGeometryError, Shape, link_shapes
from robovlms_ros.control.description.xml import DescriptionFault, DescriptionReader, quoted
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.schema import did_you_mean

STROKE = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Openings of the gripper whose hull is checked."""

ALWAYS = 0.95
"""A pair that collides in this part of random configurations is left out, as by MoveIt."""
SAMPLES = 200
TURN_OFF = "set collision.check: none in the robot's YAML to run without the check"


def load_collision_model(
    robot: RobotSpec, description: str | Path | None = None
) -> CollisionModel | None:
    """The model of a RobotSpec, None where its collision check is off.

    description: path or text of a URDF or MJCF in place of the robot's own. Raises KinematicsError,
    CollisionGeometryError, ConfigError.
    """
    if robot.collision_scope == "none":
        return None
    source = robot.description_path if description is None else description
    if source is None:
        raise CollisionGeometryError(
            f"the collision check of {robot.name} needs its description, which comes from the "
            f"topic '{robot.description.topic}'. Set description.file, or {TURN_OFF}."
        )
    tree = load_tree(source)
    folder = source.parent if isinstance(source, Path) else None
    if isinstance(source, str) and "<" not in source:
        folder = Path(source).parent
    try:
        return _build(robot, tree, folder)
    except (DescriptionFault, CollisionGeometryError) as error:
        text = str(error).rstrip(".")
        raise CollisionGeometryError(f"{place_of(source)}: {text}.") from error


def _build(robot: RobotSpec, tree: RobotTree, folder: Path | None) -> CollisionModel:
    check_joints(tree, robot.joints)
    base = find_frame(tree, robot.base_frame)
    # MJCF's <equality> couplings are not read: such joints stay at their neutral position.
    eef = find_frame(tree, robot.eef_frame)
    tips = (eef,) if tree.coupled else tuple(range(len(tree.links)))
    pin = import_pinocchio()
    arms = [
        build_model(pin, tree, robot.joints, tips, _gripper_positions(robot, tree, opening))
        for opening in STROKE
    ]
    base_joint, base_pose = arms[0].links[base]
    if base_joint != 0:
        raise KinematicsError(f"base_frame '{robot.base_frame}' moves with the joints")
    shapes = link_shapes(tree, folder, robot.collision.meshes)
    _require_geometry(robot, tree, arms[0], shapes)
    solids = link_solids(tree, arms, shapes)
    scope_world = robot.world if robot.collision_scope == "all" else ()
    solids += [world_solid(body, tree, arms[0], base_pose) for body in scope_world]
    partial = CollisionModel(
        arms[0].joints, arms[0].coupling, arms[0].offset, base_pose, tuple(solids), _no_pairs(robot)
    )
    excluded = _excluded_pairs(robot, tree)
    candidates = _candidates(robot, partial, excluded)
    kept, left_out = _without_always_colliding(robot, partial, candidates)
    errors = {
        tree.links[index].name: max(shape.error for shape in found)
        for index, found in shapes.items()
        if any(shape.error > 0.0 for shape in found)
    }
    pairs = _pairs(robot, partial, kept)
    return CollisionModel(
        partial.joints,
        partial.coupling,
        partial.offset,
        base_pose,
        partial.solids,
        pairs,
        left_out,
        errors,
    )


def _gripper_positions(robot: RobotSpec, tree: RobotTree, opening: float) -> dict[str, float]:
    gripper = robot.gripper
    if gripper is None or gripper.joint not in tree.joints():
        return {}
    return {gripper.joint: gripper.position(opening)}


def _require_geometry(
    robot: RobotSpec, tree: RobotTree, arm: ArmModel, shapes: Mapping[int, list[Shape]]
) -> None:
    if not any(arm.links[index][0] for index in shapes):
        raise CollisionGeometryError(
            f"no link that the joints of {robot.name} move has collision geometry, so that the "
            f"collision check cannot run: add <collision> elements to the links, or {TURN_OFF}"
        )
    moved = {arm.links[index][0] for index in shapes}
    for joint, name in enumerate(robot.joints, start=1):
        # A joint without a solid on or beyond it moves nothing that is checked.
        if not any(_is_beyond(arm.joints, carrier, joint) for carrier in moved):
            raise CollisionGeometryError(
                f"joint {name} moves no collision geometry: add <collision> elements to its link, "
                f"or {TURN_OFF}"
            )


def _is_beyond(joints: tuple[ArmJoint, ...], carrier: int, joint: int) -> bool:
    return joint in path_to_root(joints, carrier)


def _excluded_pairs(robot: RobotSpec, tree: RobotTree) -> set[frozenset[str]]:
    """Pairs of names that the MJCF, the SRDF or the YAML leaves out. Raises for an unknown name."""
    links = {link.name for link in tree.links if link.name and not link.is_site}
    bodies = {body.name for body in robot.world}
    shared = links & bodies
    if shared:
        raise CollisionGeometryError(f"world bodies have the names of links: {sorted(shared)}")
    excluded = {frozenset(pair) for pair in tree.excluded}
    for pair in robot.collision.ignore:
        _require_names(pair, links | bodies, "collision.ignore")
        excluded.add(frozenset(pair))
    for body in robot.world:
        _require_names(body.may_touch, links, f"world body '{body.name}': may_touch")
    if robot.collision.srdf is not None:
        excluded |= read_srdf(robot.folder / robot.collision.srdf)
    return excluded


def _require_names(names: tuple[str, ...], known: set[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise CollisionGeometryError(
                f"{where}: '{name}' is no link or body of the robot.{did_you_mean(name, known)}"
            )


def read_srdf(path: Path) -> set[frozenset[str]]:
    """The pairs of links whose collisions an SRDF disables. Raises CollisionGeometryError."""
    try:
        root = DescriptionReader().file(path)
    except (OSError, DescriptionFault) as error:
        raise CollisionGeometryError(
            f"collision.srdf = '{path}' cannot be read: {error}. Give the SRDF of the robot, "
            "relative to its YAML"
        ) from error
    if root.tag != "robot":
        raise CollisionGeometryError(
            f"{path}: the root is <{quoted(root.tag)[1:-1]}>, must be <robot>"
        )
    return {_srdf_pair(element, path) for element in root.findall("disable_collisions")}


def _srdf_pair(element: Element, path: Path) -> frozenset[str]:
    names = [element.get("link1"), element.get("link2")]
    if not all(names):
        raise CollisionGeometryError(f"{path}: a <disable_collisions> lacks link1 or link2")
    return frozenset(map(str, names))


def _candidates(
    robot: RobotSpec, model: CollisionModel, excluded: set[frozenset[str]]
) -> list[tuple[int, int]]:
    """Pairs of solids that move against each other, but for adjacent and excluded ones."""
    found = []
    bodies = {body.name for body in robot.world}
    solids = model.solids
    for i, first in enumerate(solids):
        for j in range(i + 1, len(solids)):
            second = solids[j]
            if first.joint == second.joint:
                continue
            if frozenset((first.body, second.body)) in excluded:
                continue
            world = bool({first.body, second.body} & bodies)
            if not world and _adjacent(model.joints, first.joint, second.joint):
                continue
            if not world and not _collide_by_bits(first.shape, second.shape):
                continue
            # Messages name the one that moves first.
            found.append((i, j) if first.joint else (j, i))
    return found


def _adjacent(joints: tuple[ArmJoint, ...], first: int, second: int) -> bool:
    parents = [0 if joint == 0 else joints[joint - 1].parent for joint in (first, second)]
    return bool((first and parents[0] == second) or (second and parents[1] == first))


def _collide_by_bits(first: Shape, second: Shape) -> bool:
    forward = first.contact[0] & second.contact[1]
    backward = second.contact[0] & first.contact[1]
    return bool(forward or backward)


def _no_pairs(robot: RobotSpec) -> SolidPairs:
    none = np.zeros(0, dtype=np.int64)
    flags = np.zeros(0, dtype=np.bool_)
    reach = np.zeros((0, len(robot.joints)))
    return SolidPairs(none, none, np.zeros(0), reach, flags, flags, flags)


def _without_always_colliding(
    robot: RobotSpec, model: CollisionModel, candidates: list[tuple[int, int]]
) -> tuple[list[tuple[int, int]], tuple[tuple[str, str], ...]]:
    """The candidates without pairs of links that collide in nearly every configuration."""
    rng = np.random.default_rng(0)
    low = np.maximum(robot.lower(), -2 * np.pi)
    high = np.minimum(robot.upper(), 2 * np.pi)
    rotations, origins = model.poses(rng.uniform(low, high, (SAMPLES, len(low))))
    by_links: dict[tuple[str, str], list[tuple[int, int]]] = {}
    bodies = {body.name for body in robot.world}
    for i, j in candidates:
        names = (model.solids[i].body, model.solids[j].body)
        if not bodies & set(names):
            by_links.setdefault(names, []).append((i, j))
    always = {
        names
        for names, pairs in by_links.items()
        if _always_collide(model, pairs, rotations, origins)
    }
    kept = [
        (i, j) for i, j in candidates if (model.solids[i].body, model.solids[j].body) not in always
    ]
    return kept, tuple(sorted(always))


def _always_collide(
    model: CollisionModel, pairs: list[tuple[int, int]], rotations: Array, origins: Array
) -> bool:
    misses = 0
    for k in range(SAMPLES):
        if not any(distance_at(model, i, j, rotations[:, k], origins[:, k]) < 0 for i, j in pairs):
            misses += 1
        if misses > (1.0 - ALWAYS) * SAMPLES:
            return False
    return True


def _pairs(robot: RobotSpec, model: CollisionModel, kept: list[tuple[int, int]]) -> SolidPairs:
    """The kept pairs as arrays. Raises CollisionGeometryError for one that is too near at home."""
    bodies = {body.name: body for body in robot.world}
    margins = []
    reach = []
    intended = []
    world = []
    exact = []
    for i, j in kept:
        first = model.solids[i]
        second = model.solids[j]
        body = bodies.get(second.body) or bodies.get(first.body)
        names = {first.body, second.body}
        allowed = body is not None and bool(names & set(body.may_touch))
        margin = robot.collision.self_margin
        if body is not None:
            margin = robot.collision.margin if body.margin is None else body.margin
        margins.append(-robot.collision.touch_depth if allowed else margin)
        intended.append(allowed)
        world.append(body is not None)
        reach.append(_relative_reach(robot, model, first, second))
        # A half-space's plane gives the distance of a capsule itself.
        plane = second.shape.kind == "half_space" and first.exact
        exact.append((first.exact and second.exact) or plane)
    pairs = SolidPairs(
        np.array([i for i, _ in kept], dtype=np.int64),
        np.array([j for _, j in kept], dtype=np.int64),
        np.array(margins),
        np.array(reach).reshape(len(kept), len(robot.joints)),
        np.array(world, dtype=np.bool_),
        np.array(intended, dtype=np.bool_),
        np.array(exact, dtype=np.bool_),
    )
    _require_free_home(robot, model, pairs)
    return pairs


def _relative_reach(robot: RobotSpec, model: CollisionModel, first: Solid, second: Solid) -> Array:
    """(J,) m per rad or m: bound of the motion of two moving solids against each other."""
    reach = np.zeros(len(robot.joints))
    if first.joint == 0 or second.joint == 0:
        return reach
    paths = [path_to_root(model.joints, solid.joint) for solid in (first, second)]
    shared = set(paths[0]) & set(paths[1])
    for path, solid in zip(paths, (first, second), strict=True):
        assert solid.ends is not None
        extent = float(np.linalg.norm(solid.ends, axis=1).max()) + solid.radius
        for joint in path:
            if joint in shared:
                break
            here = model.joints[joint - 1]
            share = np.abs(model.coupling[joint - 1])
            if here.kind == "prismatic":
                reach += share
                extent += _travel(robot, share)
            else:
                reach += share * extent
            extent += float(np.linalg.norm(here.placement[:3, 3]))
    return reach


def _travel(robot: RobotSpec, share: Array) -> float:
    """m, the largest distance of a prismatic joint from its zero."""
    return float(share @ np.maximum(np.abs(robot.lower()), np.abs(robot.upper())))


def _require_free_home(robot: RobotSpec, model: CollisionModel, pairs: SolidPairs) -> None:
    rotations, origins = model.poses(np.array([robot.home]))
    for p in range(len(pairs.first)):
        i = int(pairs.first[p])
        j = int(pairs.second[p])
        distance = distance_at(model, i, j, rotations[:, 0], origins[:, 0])
        if distance < pairs.margin[p]:
            names = (model.solids[i].body, model.solids[j].body)
            raise CollisionGeometryError(
                f"at home {names[0]} and {names[1]} are {distance:.3f} m apart, allowed is "
                f"{pairs.margin[p]:.3f} m (margin or self_margin of collision, or a world body's). "
                f"Correct the world block or the margin, or name the pair {list(names)} in collision.ignore"
            )
