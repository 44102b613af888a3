"""The gate's collision check:
- shapes: a URDF's cylinder with two balls is a capsule, meshes become hulls, boxes or capsules that
  contain them, with the error; a missing mesh file and a link without geometry are refused by name,
  with the way to turn the check off;
- the vectorised forward kinematics equals pinocchio's;
- adjacent links, links that always collide, and pairs of SRDF, MJCF or YAML are left out;
- a sweep finds the first contact and the least clearance of a motion; what it calls free is free
  wherever it is sampled (property test), and free of contacts in MuJoCo (property test);
- a motion that begins inside a margin may leave it, and come no nearer;
- the gate cuts a motion to rest before its contact within the limits, or refuses it; the status
  names bodies, time and place; intended contacts pass up to their depth;
- a stop that would collide gives way to a shorter one or to the running plan's end, and is never
  withheld.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("pinocchio", reason="pinocchio is not installed: collisions cannot be tested")
from robovlms_ros.control.collision import STEP, CollisionChecker
from robovlms_ros.control.collision_config import CollisionConfig
from robovlms_ros.control.collision_model import load_collision_model, read_srdf
from robovlms_ros.control.collision_solids import distance_at, solid_distance
from robovlms_ros.control.description.model import load_tree
from robovlms_ros.control.description.shapes import (
    CollisionGeometryError,
    _point_distance,
    hull_shape,
    import_coal,
    link_shapes,
    outline,
)
from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import CommandRejected
from robovlms_ros.control.preflight import check_collision
from robovlms_ros.control.robot import RobotSpec, load_robot, parse_robot
from robovlms_ros.control.safety_gate import SafetyGate
from robovlms_ros.control.trajectory import Spline, curve_of
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS, RobotState, TrajectoryCommand

PANDA = load_robot("panda")
NOW = 10 * NANOSECONDS

SLIDER = """
<robot name="slider">
  <link name="base"/>
  <link name="carriage"><collision><geometry><sphere radius="0.1"/></geometry></collision></link>
  <link name="arm">
    <collision><origin xyz="0.2 0 0"/><geometry><box size="0.4 0.02 0.02"/></geometry></collision>
  </link>
  <joint name="slide" type="prismatic">
    <parent link="base"/><child link="carriage"/><axis xyz="1 0 0"/>
    <limit lower="-2" upper="2" effort="1" velocity="2"/></joint>
  <joint name="turn" type="revolute"><parent link="carriage"/><child link="arm"/><axis xyz="0 0 1"/>
    <limit lower="-3" upper="3" effort="1" velocity="2"/></joint>
</robot>
"""


def slider(**changes) -> RobotSpec:
    data = {
        "name": "slider",
        "joints": ["slide", "turn"],
        "description": {"topic": "robot_description"},
        "base_frame": "base",
        "eef_frame": "arm",
        "home": [0.0, 0.0],
        "limits": {
            "position_lower": [-2, -3],
            "position_upper": [2, 3],
            "velocity": [2, 2],
            "acceleration": [8, 8],
            "eef_speed": 10.0,
        },
        "max_start_jump": 0.2,
        "max_age": 0.5,
        "gate": {"speed_scaling_ramp": 0.0},
        "controller": {"type": "joint_trajectory", "topic": "arm/joint_trajectory"},
        "world": [
            {
                "name": "wall",
                "type": "half_space",
                "position": [1.0, 0.0, 0.0],
                "rpy": [0.0, -math.pi / 2, 0.0],
            }
        ],
    }
    return parse_robot({**data, **changes}, "slider.yaml")


def model_of(robot: RobotSpec, text: str = SLIDER):
    return load_collision_model(robot, text)


def move(start, end, duration: float = 1.0, stamp_ns: int = NOW) -> TrajectoryCommand:
    """From rest to rest."""
    positions = np.array([start, end], dtype=np.float64)
    joints = ("slide", "turn") if positions.shape[1] == 2 else PANDA.joints
    return TrajectoryCommand(
        stamp_ns, joints, np.array([0.0, duration]), positions, np.zeros_like(positions)
    )


def sweep(robot: RobotSpec, start, end, text: str = SLIDER):
    return CollisionChecker(model_of(robot, text)).sweep(curve_of(move(start, end)), NOW)


def check(gate: SafetyGate, command: TrajectoryCommand, now_ns: int = NOW):
    measured = RobotState(now_ns, curve_of(command)(np.array([now_ns]))[0][0])
    return gate.check(command, measured, now_ns, now_ns)


def least_distance(model, positions) -> float:
    """The least distance less its margin over all pairs, by coal alone."""
    rotations, origins = model.poses(np.atleast_2d(positions))
    pairs = model.pairs
    return min(
        distance_at(model, int(i), int(j), rotations[:, k], origins[:, k]) - margin
        for k in range(rotations.shape[1])
        for i, j, margin in zip(pairs.first, pairs.second, pairs.margin, strict=True)
    )


# Shapes


def test_a_cylinder_with_balls_on_its_ends_is_one_capsule():
    text = """<robot name="r"><link name="a">
      <collision><origin xyz="0 0 1"/>
        <geometry><cylinder radius="0.1" length="0.4"/></geometry></collision>
      <collision><origin xyz="0 0 1.2"/><geometry><sphere radius="0.1"/></geometry></collision>
      <collision><origin xyz="0 0 0.8"/><geometry><sphere radius="0.1"/></geometry></collision>
      <collision><origin xyz="0 0 0.7"/><geometry><sphere radius="0.1"/></geometry></collision>
    </link></robot>"""
    ball, capsule = link_shapes(load_tree(text), None, "hull")[0]
    assert (ball.kind, ball.pose[2, 3]) == ("sphere", 0.7)
    assert (capsule.kind, capsule.size) == ("capsule", (0.1, 0.2))


@pytest.mark.parametrize("meshes", ["hull", "box", "capsule"])
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_what_takes_the_place_of_a_mesh_contains_it(meshes, seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(30, 3)) * rng.uniform(0.01, 0.3, 3)
    shape = hull_shape(points, meshes, "mesh")
    coal = import_coal()
    solid = {
        "hull": lambda: coal.Convex.convexHull(_vectors(coal, outline(shape)), True, "Qt"),
        "box": lambda: coal.Box(*(2 * np.array(shape.size))),
        "capsule": lambda: coal.Capsule(shape.size[0], 2 * shape.size[1]),
    }[shape.kind]()
    inside = (points - shape.pose[:3, 3]) @ shape.pose[:3, :3]
    assert max(_point_distance(coal, solid, point) for point in inside) < 1e-6
    # No point of its surface is further from the hull than the error, as far as sampling goes.
    hull = coal.Convex.convexHull(_vectors(coal, points), True, "Qt")
    for point in outline(shape)[:40] if meshes != "capsule" else []:
        there = shape.pose[:3, :3] @ point + shape.pose[:3, 3]
        assert _point_distance(coal, hull, there) <= shape.error + 1e-6


def _vectors(coal, points):
    vectors = coal.StdVec_Vec3s()
    for point in points:
        vectors.append(point)
    return vectors


def test_mesh_files_are_read_scaled_and_their_concavity_is_the_error(tmp_path, monkeypatch):
    obj = ["v 0 0 0", "v 2 0 0", "v 2 1 0", "v 1 1 0", "v 1 2 0", "v 0 2 0"]
    obj += [line[:-1] + "1" for line in obj]
    ring = [(i, (i + 1) % 6) for i in range(6)]
    faces = [f"f {a + 1} {b + 1} {b + 7}\nf {a + 1} {b + 7} {a + 7}" for a, b in ring]
    for base, flip in ((1, True), (7, False)):
        for a, b, c in ((0, 1, 3), (1, 2, 3), (0, 3, 5), (3, 4, 5)):
            corner = (a, c, b) if flip else (a, b, c)
            faces.append("f " + " ".join(str(base + i) for i in corner))
    share = tmp_path / "share" / "my_arm" / "meshes"
    share.mkdir(parents=True)
    (share / "l.obj").write_text("\n".join([*obj, *faces]) + "\n")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    text = """<robot name="r"><link name="a"><collision><origin xyz="0 0 1"/><geometry>
      <mesh filename="package://my_arm/meshes/l.obj" scale="0.1 0.1 0.1"/>
      </geometry></collision></link></robot>"""
    (shape,) = link_shapes(load_tree(text), None, "hull")[0]
    np.testing.assert_allclose(np.ptp(shape.vertices, axis=0), [0.2, 0.2, 0.1], atol=1e-9)
    # The middle of the hull's slanted face is 0.05 m from both inner walls.
    assert shape.error == pytest.approx(0.05, abs=1e-6)


MISSING = {
    "package://no_such_package/a.stl": "the package 'no_such_package'",
    "meshes/a.stl": "relative, and the description comes from a topic",
    "file:///absent/a.stl": "/absent/a.stl",
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_mesh_file_is_refused_by_name(name):
    text = SLIDER.replace('<sphere radius="0.1"/>', f'<mesh filename="{name}"/>')
    with pytest.raises(CollisionGeometryError) as error:
        model_of(slider(), text)
    assert (
        name in str(error.value)
        and MISSING[name] in str(error.value)
        and "carriage" in str(error.value)
    )


def test_a_description_without_geometry_is_refused_with_the_way_to_turn_the_check_off():
    bare = SLIDER.replace('<collision><geometry><sphere radius="0.1"/></geometry></collision>', "")
    bare = bare.replace(bare[bare.index("<collision>") : bare.index("</collision>") + 12], "")
    with pytest.raises(CollisionGeometryError, match=r"collision\.check: none"):
        model_of(slider(), bare)
    off = slider(collision={"check": "none"})
    assert load_collision_model(off, bare) is None
    finding = check_collision(slider(), bare)
    assert finding.level == "error" and "collision.check: none" in finding.text
    assert check_collision(off, bare).level == "ok"
    finding = check_collision(slider(world=[]), SLIDER)
    assert finding.level == "warning" and "world block" in finding.text


def test_the_check_is_on_where_the_yaml_has_a_world_block():
    assert slider().collision_scope == "all"
    assert slider(world=[]).collision_scope == "none"
    assert slider(world=[], collision={"check": "self"}).collision_scope == "self"
    assert load_robot("panda").collision_scope == "all"
    assert load_robot("ur5e").collision_scope == "none"


WRONG = {
    "size": ({"world": [{"name": "w", "type": "box", "size": [1.0]}]}, "3 numbers above 0"),
    "type": ({"world": [{"name": "w", "type": "cone"}]}, "'box', 'cylinder'"),
    "margin": ({"collision": {"margin": 0.001}}, "from 0.005 to 1 m"),
    "check": ({"collision": {"check": "on"}}, "not allowed"),
    "ignore": ({"collision": {"ignore": [["a"]]}}, "two names"),
    "twice": ({"world": [{"name": "w", "type": "half_space"}] * 2}, "unique"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_refused(case):
    changes, text = WRONG[case]
    with pytest.raises(ConfigError) as error:
        slider(**changes)
    for part in text.split("'"):
        assert part in str(error.value)


UNKNOWN = {
    "ignore": {"collision": {"ignore": [["carriage", "wal"]]}},
    "may_touch": {
        "world": [
            {"name": "w", "type": "half_space", "position": [0, 0, -1], "may_touch": ["finger"]}
        ]
    },
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_names_that_the_robot_lacks_are_refused(case):
    with pytest.raises(CollisionGeometryError, match="is no link or body"):
        model_of(slider(**UNKNOWN[case]))


def test_a_body_that_the_robot_meets_at_home_is_refused():
    world = [{"name": "box", "type": "box", "size": [0.1, 0.1, 0.1], "position": [0.3, 0.0, 0.0]}]
    with pytest.raises(CollisionGeometryError, match="at home arm and box are"):
        model_of(slider(world=world))


# Pairs and kinematics


def test_forward_kinematics_equals_pinocchio():
    kinematics = Kinematics.for_robot(PANDA)
    model = load_collision_model(PANDA)
    rng = np.random.default_rng(0)
    positions = rng.uniform(PANDA.lower(), PANDA.upper(), (50, 7))
    rotations, origins = model.poses(positions)
    flange = np.array([kinematics.forward(q) for q in positions])
    tool = rotations[7] @ np.array([0.0, 0.0, 0.2035]) + origins[7]
    np.testing.assert_allclose(tool, flange[:, :3, 3], atol=1e-12)


def names_of(model) -> set[frozenset[str]]:
    solids = model.solids
    return {
        frozenset((solids[i].body, solids[j].body))
        for i, j in zip(model.pairs.first, model.pairs.second, strict=True)
    }


THREE = SLIDER.replace(
    "</robot>",
    """
  <link name="tip"><collision><origin xyz="{x} 0 0"/>
    <geometry><sphere radius="0.05"/></geometry></collision></link>
  <joint name="bend" type="revolute"><parent link="arm"/><child link="tip"/>
    <origin xyz="0.4 0 0"/><axis xyz="0 0 1"/>
    <limit lower="-3" upper="3" effort="1" velocity="2"/></joint></robot>""",
)


def three(**changes) -> RobotSpec:
    limits = {
        "position_lower": [-2, -3, -3],
        "position_upper": [2, 3, 3],
        "velocity": [2, 2, 2],
        "acceleration": [8, 8, 8],
        "eef_speed": 10.0,
    }
    return slider(joints=["slide", "turn", "bend"], home=[0.0, 0.0, 0.0], limits=limits, **changes)


def test_adjacent_and_always_colliding_links_are_left_out(tmp_path):
    model = model_of(three(), THREE.format(x=0.1))
    assert frozenset(("carriage", "tip")) in names_of(model)
    assert not {frozenset(("carriage", "arm")), frozenset(("arm", "tip"))} & names_of(model)
    large = THREE.format(x=0.0).replace('radius="0.1"', 'radius="0.5"')
    model = model_of(three(collision={"check": "self"}), large)
    assert model.left_out == (("carriage", "tip"),) and not len(model.pairs.first)


def test_pairs_of_srdf_and_yaml_are_left_out(tmp_path):
    pair = frozenset(("carriage", "tip"))
    ignored = three(collision={"ignore": [["tip", "carriage"], ["tip", "wall"]]})
    names = names_of(model_of(ignored, THREE.format(x=0.1)))
    assert pair not in names and frozenset(("tip", "wall")) not in names
    srdf = tmp_path / "arm.srdf"
    srdf.write_text(
        '<robot name="r"><disable_collisions link1="tip" link2="carriage" reason="Never"/></robot>'
    )
    assert read_srdf(srdf) == {pair}
    robot = replace(three(collision={"srdf": "arm.srdf"}), folder=tmp_path)
    assert pair not in names_of(model_of(robot, THREE.format(x=0.1)))
    with pytest.raises(CollisionGeometryError, match=r"none\.srdf"):
        model_of(replace(robot, collision=CollisionConfig(srdf="none.srdf")), THREE.format(x=0.1))


MJCF = """<mujoco><asset><mesh name="cube" scale=".1 .1 .1"
  vertex="-1 -1 -1 1 -1 -1 -1 1 -1 1 1 -1 -1 -1 1 1 -1 1 -1 1 1 1 1 1"/>
  </asset><worldbody><geom type="plane" size="0 0 1" pos="0 0 -1"/>
  <body name="a"><joint name="j1" axis="0 1 0"/>
    <geom type="capsule" fromto="0 0 0 0.3 0 0" size="0.05"/>
    <body name="b" pos="0.5 0 0"><joint name="j2" axis="0 1 0"/>
      <geom type="mesh" mesh="cube" pos="0.1 0 0"/>
      <geom type="sphere" size="9" contype="0" conaffinity="0"/>
      <body name="c" pos="0.3 0 0"><joint name="j3" axis="0 1 0"/>
        <geom type="box" size="0.05 0.02 0.02"/></body>
  </body></body></worldbody>{rest}</mujoco>"""


def test_mjcf_shapes_contact_bits_and_exclusions():
    robot = slider(
        joints=["j1", "j2", "j3"],
        base_frame="world",
        eef_frame="c",
        home=[0.0] * 3,
        world=[],
        collision={"check": "self"},
        limits={
            "position_lower": [-1] * 3,
            "position_upper": [1] * 3,
            "velocity": [2] * 3,
            "acceleration": [8] * 3,
            "eef_speed": 10.0,
        },
    )
    model = model_of(robot, MJCF.format(rest=""))
    kinds = sorted(solid.shape.kind for solid in model.solids)
    assert kinds == ["box", "capsule", "half_space", "hull"]
    mesh = next(solid for solid in model.solids if solid.shape.kind == "hull")
    np.testing.assert_allclose(np.ptp(outline(mesh.shape), axis=0), 0.2)
    assert frozenset(("a", "c")) in names_of(model) and frozenset(("world", "b")) in names_of(model)
    rest = '<contact><exclude body1="a" body2="c"/></contact>'
    assert frozenset(("a", "c")) not in names_of(model_of(robot, MJCF.format(rest=rest)))


# Sweeps


def test_a_sweep_finds_the_contact_and_the_least_clearance():
    """The carriage's ball of 0.1 m meets the wall at x = 1 m; the arm points away from it."""
    robot = slider(home=[0.0, 2.9])
    found = sweep(robot, [0.0, 2.9], [0.7, 2.9])
    assert found.contact is None
    assert found.world.first == "carriage" and found.world.second == "wall"
    assert found.world.distance == pytest.approx(0.2, abs=1e-9)
    contact = sweep(robot, [0.0, 2.9], [1.0, 2.9]).contact
    assert (contact.first, contact.second) == ("carriage", "wall")
    # The carriage is 0.01 m (the margin) before the wall at 0.89 m.
    curve = curve_of(move([0.0, 2.9], [1.0, 2.9]))
    before, after = curve(np.array([contact.free_until_ns, contact.t_ns]))[0][:, 0]
    assert before <= 0.89 < after <= before + STEP + 1e-9
    np.testing.assert_allclose(contact.point, [1.0, 0.0, 0.0], atol=1e-6)
    assert "carriage would come within" in contact.text(
        NOW
    ) and "of wall after 0.79 s" in contact.text(NOW)


def test_a_motion_may_leave_a_margin_and_comes_no_nearer():
    robot = slider(home=[0.0, 2.9])
    inside = [0.895, 2.9]
    assert sweep(robot, inside, [0.5, 2.9]).contact is None
    assert sweep(robot, inside, inside).contact is None
    assert sweep(robot, inside, [0.905, 2.9]).contact is not None


def test_a_body_of_a_moving_link_moves_with_it():
    camera = {
        "name": "camera",
        "type": "sphere",
        "size": [0.05],
        "position": [0.5, 0.0, 0.0],
        "frame": "arm",
    }
    world = [
        {
            "name": "wall",
            "type": "half_space",
            "position": [1.0, 0, 0],
            "rpy": [0, -math.pi / 2, 0],
        },
        camera,
    ]
    contact = sweep(slider(world=world), [0.0, 0.0], [0.5, 0.0]).contact
    assert contact is not None and contact.first == "camera"
    names = names_of(model_of(slider(world=world)))
    assert frozenset(("camera", "carriage")) in names


ROBOTS = {
    "slider": (
        slider(
            world=[
                {
                    "name": "post",
                    "type": "cylinder",
                    "size": [0.05, 1.0],
                    "position": [0.9, 0.4, 0.0],
                },
                {
                    "name": "box",
                    "type": "box",
                    "size": [0.3, 0.2, 0.1],
                    "position": [-0.8, 0.3, 0.02],
                    "rpy": [0.2, 0.1, 0.5],
                },
                {"name": "ball", "type": "sphere", "size": [0.1], "position": [0.6, -0.5, 0.0]},
            ]
        ),
        SLIDER,
    ),
    "panda": (PANDA, None),
}
MODELS = {name: load_collision_model(robot, text) for name, (robot, text) in ROBOTS.items()}


@pytest.mark.parametrize("name", MODELS)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 1.0))
@settings(max_examples=12, deadline=None)
def test_a_free_motion_is_free_wherever_it_is_sampled(name, seed, size):
    """And a contact is where sampling finds the first one."""
    model = MODELS[name]
    robot = ROBOTS[name][0]
    rng = np.random.default_rng(seed)
    low = robot.lower()
    high = robot.upper()
    start = np.clip(np.array(robot.home) + size * rng.normal(0, 0.3, len(low)), low, high)
    if least_distance(model, start) < 0.0:
        return
    points = [start]
    for _ in range(3):
        points.append(np.clip(points[-1] + size * rng.normal(0, 0.5, len(low)), low, high))
    velocities = np.gradient(np.array(points), 0.5, axis=0)
    velocities[0] = velocities[-1] = 0.0
    curve = Spline(NOW + np.arange(4) * NANOSECONDS // 2, np.array(points), velocities)
    found = CollisionChecker(model).sweep(curve, NOW)
    contact = found.contact
    times = np.linspace(NOW, curve.end_ns if contact is None else contact.free_until_ns, 60).astype(
        np.int64
    )
    distance = least_distance(model, curve(times)[0])
    # Between two checked configurations each point is half of STEP away from one of them at most.
    assert distance >= -STEP
    assert distance >= -0.5 * STEP or contact is not None
    if contact is None:
        clearances = [clearance.distance for clearance in found.clearances]
        assert (
            min(clearances, default=1.0) <= distance + model.pairs.margin.max() + STEP + 0.5 * STEP
        )
    else:
        assert least_distance(model, curve(np.array([contact.t_ns]))[0]) < 0.0


def test_the_solids_of_a_pair_are_as_far_apart_as_coal_says_at_their_poses():
    model = MODELS["slider"]
    arm = next(solid for solid in model.solids if solid.body == "arm")
    ball = next(solid for solid in model.solids if solid.body == "ball")
    fixed = (np.eye(3), np.zeros(3))
    distance, point = solid_distance(arm, fixed, ball, fixed)
    # The arm's box ends at (0.4, 0.01, 0.01), the ball's middle is (0.6, -0.5, 0).
    assert distance == pytest.approx(math.hypot(0.2, 0.49) - 0.1, abs=1e-6)
    assert np.linalg.norm(point - [0.6, -0.5, 0.0]) == pytest.approx(0.1, abs=1e-6)


# MuJoCo


@pytest.fixture(scope="module")
def simulated():
    """The simulated arm without its cubes: (world, contacts of the arm at positions (7,))."""
    pytest.importorskip(
        "robosuite", reason="robosuite is not installed: MuJoCo's contacts cannot be compared"
    )
    from robovlms_ros.sim.contacts import PostWorld

    return PostWorld(0)


@pytest.mark.sim
def test_what_is_free_here_is_free_of_contacts_in_mujoco(simulated):
    """The shapes of the Panda's URDF contain the hulls of the simulator."""
    model = load_collision_model(simulated.robot(fingers_may_touch=False))
    robot = PANDA
    rng = np.random.default_rng(0)
    contacts = 0
    free = 0
    for positions in rng.uniform(robot.lower(), robot.upper(), (250, 7)):
        found = simulated.contacts_at(positions)
        distance = least_distance(model, positions) + model.pairs.margin.min()
        assert not (found and distance > 0.005), (found, positions.tolist())
        contacts += bool(found)
        free += distance > 0.0
    assert contacts > 20 and free > 100


@pytest.mark.sim
def test_hulls_of_an_mjcf_collide_exactly_where_mujoco_says():
    robosuite = pytest.importorskip(
        "robosuite", reason="robosuite is not installed: its MJCF cannot be read"
    )
    import mujoco

    file = Path(robosuite.__file__).parent / "models" / "assets" / "robots" / "panda" / "robot.xml"
    robot = replace(
        PANDA,
        joints=tuple(f"joint{i}" for i in range(1, 8)),
        base_frame="base",
        eef_frame="right_hand",
        world=(),
        collision=CollisionConfig("self"),
    )
    model = load_collision_model(robot, file)
    reference = mujoco.MjModel.from_xml_path(str(file))
    data = mujoco.MjData(reference)
    rng = np.random.default_rng(0)
    disagreeing = 0
    colliding = 0
    for positions in rng.uniform(robot.lower(), robot.upper(), (400, 7)):
        data.qpos[:] = positions
        mujoco.mj_forward(reference, data)
        touching = any(contact.dist < 0.0 for contact in data.contact)
        rotations, origins = model.poses(positions[None])
        pairs = zip(model.pairs.first, model.pairs.second, strict=True)
        least = min(
            distance_at(model, int(i), int(j), rotations[:, 0], origins[:, 0]) for i, j in pairs
        )
        disagreeing += touching != (least < 0.0) and abs(least) > 1e-4
        colliding += touching
    assert disagreeing == 0 and colliding > 10


@pytest.mark.sim
@pytest.mark.parametrize("kind", ["table", "post", "itself"])
def test_driven_chunks_stop_before_contact_in_the_simulator(simulated, kind):
    from robovlms_ros.bench.collision import drive, driven_chunks

    robot = simulated.robot(fingers_may_touch=False)
    chunk = next(chunk for chunk in driven_chunks(simulated, robot, 1, 1) if chunk.kind == kind)
    result = drive(simulated, robot, load_collision_model(robot), chunk)
    assert not result.contacts and set(result.verdicts) & {"clamp", "refuse"}
    assert drive(simulated, robot, None, chunk).contacts


# Gate


def gate_of(robot: RobotSpec, text: str = SLIDER) -> SafetyGate:
    return SafetyGate(robot, None, model_of(robot, text))


def test_a_motion_is_cut_to_rest_before_its_contact():
    robot = slider(home=[0.0, 2.9])
    verdict = check(gate_of(robot), move([0.0, 2.9], [1.2, 2.9], 2.0))
    assert verdict.kind == "clamp"
    assert (
        verdict.reason.startswith("carriage would come within")
        and "of wall after" in verdict.reason
    )
    end = verdict.command.positions[-1]
    assert 0.8 < end[0] <= 0.89 + 1e-9
    assert not verdict.command.velocities[-1].any()
    assert (
        verdict.clearances[0].first == "carriage" and verdict.clearances[0].distance >= 0.01 - 1e-9
    )


def test_the_same_motion_is_refused_with_clamp_false():
    robot = slider(home=[0.0, 2.9], gate={"speed_scaling_ramp": 0.0, "clamp": False})
    verdict = check(gate_of(robot), move([0.0, 2.9], [1.2, 2.9], 2.0))
    assert verdict.kind == "refuse" and "of wall after" in verdict.reason


def test_a_contact_that_no_stop_prevents_is_refused():
    """The commanded motion runs at 1.5 m/s, 5 cm before the margin; stopping takes 14 cm."""
    robot = slider(home=[0.0, 2.9])
    gate = gate_of(robot)
    times = NOW + np.array([0, 400, 560]) * NANOSECONDS // 1000
    fast = Spline(
        times,
        np.array([[0.4, 2.9], [0.7, 2.9], [0.84, 2.9]]),
        np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 0.0]]),
    )
    now = NOW + 400 * NANOSECONDS // 1000
    gate.resume(fast)
    ahead = TrajectoryCommand(
        now,
        robot.joints,
        np.array([0.0, 0.4]),
        np.array([[0.7, 2.9], [1.1, 2.9]]),
        np.array([[1.5, 0.0], [0.0, 0.0]]),
    )
    near = replace(robot, world=(replace(robot.world[0], position=(0.86, 0.0, 0.0)),))
    gate = gate_of(near)
    gate.resume(fast)
    verdict = gate.check(ahead, RobotState(now, np.array([0.7, 2.9])), now, now)
    assert verdict.kind == "refuse" and "no stop within the limits prevents it" in verdict.reason


def test_pressing_on_holds_the_arm_and_counts_as_clamps():
    robot = slider(home=[0.0, 2.9], gate={"speed_scaling_ramp": 0.0, "max_clamps": 3})
    gate = gate_of(robot)
    now = NOW
    here = np.array([0.88, 2.9])
    kinds = []
    for _ in range(5):
        command = move(here, [1.2, 2.9], 1.0, stamp_ns=now)
        verdict = gate.check(command, RobotState(now, here), now, now)
        kinds.append(verdict.kind)
        if verdict.command is not None:
            here = verdict.command.positions[-1]
        now += 2 * NANOSECONDS
        assert here[0] <= 0.89 + 1e-9
        gate.forget_motion()
    assert kinds == ["clamp"] * 3 + ["refuse"] * 2


def test_intended_contact_passes_up_to_its_depth():
    wall = {
        "name": "wall",
        "type": "half_space",
        "position": [1.0, 0.0, 0.0],
        "rpy": [0.0, -math.pi / 2, 0.0],
        "may_touch": ["arm"],
    }
    robot = slider(world=[wall], collision={"touch_depth": 0.02})
    # The arm's tip lies 0.4 m before the slide.
    assert check(gate_of(robot), move([0.0, 0.0], [0.615, 0.0], 2.0)).kind == "pass"
    verdict = check(gate_of(robot), move([0.0, 0.0], [0.7, 0.0], 2.0))
    assert verdict.kind == "clamp" and verdict.command.positions[-1][0] <= 0.62 + 1e-9
    # Its distance is no clearance.
    assert all(clearance.first != "arm" for clearance in verdict.clearances)


def test_without_a_model_nothing_is_checked():
    robot = slider(home=[0.0, 2.9])
    gate = SafetyGate(robot)
    verdict = check(gate, move([0.0, 2.9], [1.2, 2.9], 2.0))
    assert verdict.kind == "pass" and verdict.clearances == ()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_what_the_gate_lets_through_collides_nowhere(seed):
    rng = np.random.default_rng(seed)
    robot = ROBOTS["slider"][0]
    model = MODELS["slider"]
    gate = SafetyGate(robot, None, model)
    here = np.array(robot.home)
    now = NOW
    for _ in range(4):
        goal = np.clip(here + rng.normal(0, 0.8, 2), robot.lower(), robot.upper())
        duration = float(np.max(np.abs(goal - here)) / 1.0 + 0.3)
        verdict = gate.check(move(here, goal, duration, now), RobotState(now, here), now, now)
        if verdict.command is None:
            continue
        curve = curve_of(verdict.command)
        times = np.linspace(now, curve.end_ns, 60).astype(np.int64)
        assert least_distance(model, curve(times)[0]) >= -0.5 * STEP - 2e-3
        here = verdict.command.positions[-1]
        now = curve.end_ns + NANOSECONDS


# Stops


class Stops:
    """A gate whose check calls some motions collisions."""

    def __init__(self, monkeypatch, executor, colliding):
        real = executor.gate.sweep

        def swept(curve, now_ns, share=1.0):
            found = real(curve, now_ns, share)
            return replace(found, contact=CONTACT) if colliding(curve, now_ns) else found

        monkeypatch.setattr(executor.gate, "sweep", swept)


ROBOT = slider(home=[0.0, 2.9])
CONTACT = sweep(ROBOT, [0.0, 2.9], [1.0, 2.9]).contact


def moving_executor():
    from robovlms_ros.core.types import JointPlan

    executor = build_executor(ROBOT, None, collision=model_of(ROBOT))
    times = NOW + np.arange(1, 31) * NANOSECONDS // 30
    positions = np.stack([np.linspace(0.0, 0.4, 31)[1:], np.full(30, 2.9)], axis=1)
    plan = JointPlan(times, positions, np.gradient(positions, 1 / 30, axis=0))
    state = RobotState(NOW, np.array([0.0, 2.9]))
    from robovlms_ros.core.types import ActionChunk, ActionSpec

    spec = ActionSpec(
        "joint_position", "base", "rotation_vector", "from_observation", 1 / 30, ROBOT.joints
    )
    chunk = ActionChunk(NOW, positions.astype(np.float32), spec, "go", "test", 0)
    decision = executor.on_chunk(chunk, state, state, NOW, plan=replace(plan, chunk=chunk))
    assert decision.command is not None and decision.verdict.clearances
    return executor, NOW + NANOSECONDS // 2


def test_a_free_stop_is_sent_as_it_is():
    executor, now = moving_executor()
    stop = executor.smooth_stop(now)
    assert executor.stop_conflict == "" and not stop.velocities[-1].any()


def test_a_stop_that_would_collide_gives_way_to_the_shortest_one(monkeypatch):
    executor, now = moving_executor()
    ends = []

    def colliding(curve, now_ns):
        ends.append(curve.end_ns)
        return len(ends) == 1

    Stops(monkeypatch, executor, colliding)
    stop = executor.smooth_stop(now)
    assert (
        "the shortest stop was sent" in executor.stop_conflict and "wall" in executor.stop_conflict
    )
    assert ends[1] <= ends[0] and not stop.velocities[-1].any()


def test_where_both_would_collide_the_plan_ends_by_itself(monkeypatch):
    executor, now = moving_executor()
    commanded = executor.guard.commanded
    Stops(monkeypatch, executor, lambda curve, now_ns: curve is not commanded)
    with pytest.raises(CommandRejected, match="the running plan ends at rest without contact"):
        executor.smooth_stop(now)
    assert executor.guard.commanded is commanded


def test_a_stop_is_never_withheld(monkeypatch):
    executor, now = moving_executor()
    Stops(monkeypatch, executor, lambda curve, now_ns: True)
    stop = executor.smooth_stop(now)
    assert not stop.velocities[-1].any() and "no stop avoids it" in executor.stop_conflict


def test_a_failure_of_the_check_withholds_no_stop(monkeypatch):
    executor, now = moving_executor()

    def fail(*args):
        raise CollisionGeometryError("no distance.")

    monkeypatch.setattr(executor.gate, "sweep", fail)
    stop = executor.smooth_stop(now)
    assert not stop.velocities[-1].any()
    assert executor.stop_conflict == "the stop was not checked for collisions: no distance."
