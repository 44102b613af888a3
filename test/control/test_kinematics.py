"""Kinematics:
- our Panda URDF's tool frame equals robosuite's grip site in MuJoCo's own forward kinematics;
- URDF text, URDF file and MJCF file give the same arm, whatever the order of the joints and the other joints present;
- our UR5e and WidowX equal the manufacturers' own formulas; every shipped home lies in its workspace and URDF limits;
- an arm of five joints follows positions, and rotations as far as it can;
- the Jacobian is the derivative of the forward kinematics;
- inverse kinematics reaches what can be reached, respects joint limits, stays continuous near singularities, and
  reports what it does not reach;
- a redundant arm's posture pull does not move the tool;
- a description that lacks a joint or a frame, is no XML, or is absent is refused by name; so is a missing pinocchio.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest

pin = pytest.importorskip("pinocchio", reason="pinocchio is not installed: kinematics cannot be tested")

from robovlms_ros.control.kinematics import Kinematics, KinematicsError
from robovlms_ros.control.robot import Description, load_robot

ROBOT = load_robot("panda")
JOINT_LIMITS = ("position_lower", "position_upper", "velocity", "acceleration")


@pytest.fixture(scope="module")
def panda() -> Kinematics:
    return Kinematics.for_robot(ROBOT)


def configurations(count: int, seed: int = 0, margin: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(ROBOT.lower() + margin, ROBOT.upper() - margin, (count, 7))


@pytest.fixture(scope="module")
def robosuite_panda(tmp_path_factory):
    """MuJoCo's model of robosuite's Panda with its gripper, on the ground, and the same as an MJCF file."""
    mujoco = pytest.importorskip("mujoco", reason="mujoco is not installed")
    grippers = pytest.importorskip("robosuite.models.grippers", reason="robosuite is not installed")
    from robosuite.models.robots import Panda
    from robosuite.models.world import MujocoWorldBase

    world, arm = MujocoWorldBase(), Panda(idn=0)
    arm.add_gripper(grippers.gripper_factory("PandaGripper", idn="0_right"), arm.eef_name["right"])
    world.merge(arm)
    path = tmp_path_factory.mktemp("mjcf") / "panda.xml"
    path.write_text(world.get_xml())
    return mujoco, world.get_model(mode="mujoco"), path


def mujoco_pose(robosuite_panda, q: np.ndarray) -> np.ndarray:
    mujoco, model, _ = robosuite_panda
    data = mujoco.MjData(model)
    for i, value in enumerate(q):
        data.joint(f"robot0_joint{i + 1}").qpos[:] = value
    mujoco.mj_forward(model, data)
    world_t_site, world_t_base = np.eye(4), np.eye(4)
    world_t_site[:3, :3] = data.site("gripper0_right_grip_site").xmat.reshape(3, 3)
    world_t_site[:3, 3] = data.site("gripper0_right_grip_site").xpos
    world_t_base[:3, :3] = data.body("robot0_base").xmat.reshape(3, 3)
    world_t_base[:3, 3] = data.body("robot0_base").xpos
    return np.linalg.inv(world_t_base) @ world_t_site


def test_forward_equals_mujoco(panda, robosuite_panda):
    for q in configurations(50):
        np.testing.assert_allclose(panda.forward(q), mujoco_pose(robosuite_panda, q), atol=1e-6)


def test_an_mjcf_gives_the_same_arm(panda, robosuite_panda):
    joints = [f"robot0_joint{i}" for i in range(1, 8)]
    mjcf = Kinematics(robosuite_panda[2], joints, "gripper0_right_grip_site", "robot0_base")
    for q in configurations(10):
        np.testing.assert_allclose(mjcf.forward(q), panda.forward(q), atol=1e-6)
        np.testing.assert_allclose(mjcf.jacobian(q), panda.jacobian(q), atol=1e-5)


SCENE = """<mujoco><compiler angle="degree"/><worldbody>
<body name="table"><freejoint/><geom size="1"/></body></worldbody>
<include file="part.xml"/></mujoco>"""
PART = """<mujocoinclude><asset><mesh name="m" file="nowhere.stl"/></asset><worldbody><body name="link" pos="0 0 1">
<joint name="j" axis="0 1 0" range="-90 90"/><geom type="mesh" mesh="m"/><site name="tip" pos="0.5 0 0" euler="0 0 90"/>
</body></worldbody></mujocoinclude>"""


def test_an_mjcf_scene_with_includes_and_without_its_meshes(tmp_path):
    (tmp_path / "scene.xml").write_text(SCENE)
    (tmp_path / "part.xml").write_text(PART)
    scene = Kinematics(tmp_path / "scene.xml", ["j"], "tip")
    assert scene.upper[0] == pytest.approx(np.pi / 2)
    expected = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0.5], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(scene.forward(np.array([np.pi / 2])), expected, atol=1e-12)
    with pytest.raises(KinematicsError, match=r"includes 'part\.xml'"):
        Kinematics(SCENE, ["j"], "tip")


def test_a_description_from_a_topic_must_have_come():
    waiting = replace(ROBOT, description=Description(topic="robot_description"))
    with pytest.raises(KinematicsError, match="topic 'robot_description'"):
        Kinematics.for_robot(waiting)
    assert Kinematics.for_robot(waiting, ROBOT.description_path.read_text()).joints == ROBOT.joints


def test_text_order_of_joints_and_base_frame(panda):
    text = ROBOT.description_path.read_text()
    backwards = Kinematics(text, ROBOT.joints[::-1], ROBOT.eef_frame)
    placed = text.replace(
        '<link name="panda_link0"/>',
        '<link name="floor"/><link name="panda_link0"/><joint name="stand" type="fixed"><parent link="floor"/>'
        '<child link="panda_link0"/><origin xyz="1 2 3" rpy="0.3 -0.2 0.9"/></joint>',
    )
    on_a_stand = Kinematics(placed, ROBOT.joints, ROBOT.eef_frame, "panda_link0", ROBOT.lower(), ROBOT.upper())
    for q in configurations(5):
        pose, jacobian = panda.forward(q), panda.jacobian(q)
        np.testing.assert_allclose(backwards.forward(q[::-1]), pose, atol=1e-12)
        np.testing.assert_allclose(backwards.jacobian(q[::-1])[:, ::-1], jacobian, atol=1e-12)
        np.testing.assert_allclose(on_a_stand.forward(q), pose, atol=1e-12)
        np.testing.assert_allclose(on_a_stand.jacobian(q), jacobian, atol=1e-12)
    q = configurations(1, margin=0.3)[0]
    result = on_a_stand.inverse(panda.forward(q + 0.02)[None], q)
    np.testing.assert_allclose(panda.forward(result.positions[0]), panda.forward(q + 0.02), atol=1e-5)


def test_ur5e_equals_its_denavit_hartenberg_table():
    robot = load_robot("ur5e")
    arm = Kinematics.for_robot(replace(robot, base_frame="base"))
    table = [(0, 0.1625, 1), (-0.425, 0, 0), (-0.3922, 0, 0), (0, 0.1333, 1), (0, 0.0997, -1), (0, 0.0996, 0)]
    for q in np.random.default_rng(0).uniform(-3, 3, (20, 6)):
        pose = np.eye(4)
        for (a, d, quarter), angle in zip(table, q, strict=True):
            c, s, ca, sa = np.cos(angle), np.sin(angle), 1 - abs(quarter), quarter
            pose = pose @ [[c, -s * ca, s * sa, a * c], [s, c * ca, -c * sa, a * s], [0, sa, ca, d], [0, 0, 0, 1]]
        np.testing.assert_allclose(arm.forward(q), pose, atol=1e-9)
    # REP-199's base_link is turned by half a turn about z.
    np.testing.assert_allclose(Kinematics.for_robot(robot).forward(q)[:2, 3], -pose[:2, 3], atol=1e-9)


def test_widowx_equals_its_screw_axes():
    arm = Kinematics.for_robot(load_robot("widowx"))
    home = np.eye(4)
    home[:3, 3] = [0.458325, 0.0, 0.36065]
    screws = [  # angular then linear part, in the base frame
        [0, 0, 1, 0, 0, 0],
        [0, 1, 0, -0.11065, 0, 0],
        [0, 1, 0, -0.36065, 0, 0.04975],
        [1, 0, 0, 0, 0.36065, 0],
        [0, 1, 0, -0.36065, 0, 0.29975],
        [1, 0, 0, 0, 0.36065, 0],
    ]
    for q in np.random.default_rng(0).uniform(-1.5, 1.5, (20, 6)):
        pose = np.eye(4)
        for screw, angle in zip(screws, q, strict=True):
            pose = pose @ pin.exp6(np.array([*screw[3:], *screw[:3]]) * angle).homogeneous
        np.testing.assert_allclose(arm.forward(q), pose @ home, atol=1e-9)


@pytest.mark.parametrize("name", ["panda", "ur5e", "widowx"])
def test_shipped_robots_agree_with_their_descriptions(name):
    robot = load_robot(name)
    own = Kinematics(robot.description_path, robot.joints, robot.eef_frame)
    assert np.all(own.lower <= robot.lower()) and np.all(own.upper >= robot.upper())
    place = Kinematics.for_robot(robot).forward(np.array(robot.home))[:3, 3]
    box = robot.limits.workspace
    assert np.all(place > box.lower) and np.all(place < box.upper), place


def test_five_joints_follow_positions():
    six = load_robot("widowx")
    keep = [0, 1, 2, 4, 5]

    def some(values):
        return tuple(values[i] for i in keep)

    limits = replace(six.limits, **{k: some(getattr(six.limits, k)) for k in JOINT_LIMITS})
    ik = load_robot("so101").ik
    five = replace(six, joints=some(six.joints), home=some(six.home), limits=limits, ik=ik)
    arm = Kinematics.for_robot(five)
    home = np.array(five.home)
    targets = np.repeat(arm.forward(home)[None], 10, axis=0)
    targets[:, 1, 3] += 0.008 * np.arange(1, 11)  # sideways: the waist must turn, and the hand with it
    result = arm.inverse(targets, home)
    assert result.reached.all()
    assert result.position_error.max() < 2e-3 and 0.05 < result.rotation_error.max() < 0.6


def test_jacobian_is_the_derivative(panda):
    step = 1e-6
    for q in configurations(5, seed=3):
        jacobian, here = panda.jacobian(q), panda.forward(q)
        for j in range(7):
            moved = panda.forward(q + step * np.eye(7)[j])
            np.testing.assert_allclose((moved[:3, 3] - here[:3, 3]) / step, jacobian[:3, j], atol=1e-5)
            np.testing.assert_allclose(pin.log3(moved[:3, :3] @ here[:3, :3].T) / step, jacobian[3:, j], atol=1e-5)


def test_inverse_follows_reachable_paths(panda):
    rng = np.random.default_rng(1)
    for start in configurations(30, seed=2, margin=0.3):
        path = start + np.cumsum(rng.normal(0, 0.01, (16, 7)), axis=0)
        targets = np.array([panda.forward(q) for q in path])
        result = panda.inverse(targets, start)
        assert result.reached.all()
        for target, q in zip(targets, result.positions, strict=True):
            np.testing.assert_allclose(panda.forward(q)[:3, 3], target[:3, 3], atol=1e-4)
            assert np.linalg.norm(pin.log3(panda.forward(q)[:3, :3].T @ target[:3, :3])) < 1e-3
        steps = np.diff(np.vstack([start, result.positions]), axis=0)
        assert np.abs(steps).max() < 0.3


def test_inverse_from_far_away(panda):
    reached = 0
    for q in configurations(40, seed=5, margin=0.2):
        result = panda.inverse(panda.forward(q)[None], np.array(ROBOT.home))
        reached += int(result.reached[0])
        assert np.all(result.positions >= ROBOT.lower()) and np.all(result.positions <= ROBOT.upper())
    assert reached >= 24  # a single start is no global search; chunks start where the arm is


def test_what_is_out_of_reach_is_reported(panda):
    home = np.array(ROBOT.home)
    targets = np.repeat(panda.forward(home)[None], 12, axis=0)
    targets[:, 0, 3] += np.linspace(0.0, 1.1, 12)
    result = panda.inverse(targets, home)
    assert result.reached[0] and not result.reached[-1]
    assert result.position_error[-1] > 0.3
    for target, q, error in zip(targets, result.positions, result.position_error, strict=True):
        assert np.linalg.norm(panda.forward(q)[:3, 3] - target[:3, 3]) == pytest.approx(error, abs=1e-9)
    assert np.all(result.positions >= ROBOT.lower()) and np.all(result.positions <= ROBOT.upper())
    assert np.isfinite(result.positions).all()


def test_a_joint_at_its_limit_leaves_its_part_to_the_others(panda):
    q = np.array(ROBOT.home)
    q[4] = ROBOT.upper()[4]
    goal = q.copy()
    goal[[0, 1, 3, 5]] += [0.1, 0.05, 0.05, -0.05]
    result = panda.inverse(panda.forward(goal)[None], q)
    assert result.reached[0]
    assert np.all(result.positions <= ROBOT.upper())


def test_near_a_singularity_joints_stay_slow(panda):
    # Wrist aligned (joint 5 and 7 axes nearly parallel): a sideways rotation would ask for unbounded joint speed.
    q = np.array(ROBOT.home)
    q[5] = 0.02
    pose = panda.forward(q)
    targets = np.repeat(pose[None], 10, axis=0)
    targets[:, 1, 3] += 0.002 * np.arange(1, 11)
    steps = np.diff(np.vstack([q, panda.inverse(targets, q).positions]), axis=0)
    assert np.abs(steps).max() < 0.3


def test_the_posture_pull_leaves_the_tool(panda):
    home = np.array(ROBOT.home)
    start = panda.inverse(panda.forward(home)[None], home + 0.3 * np.eye(7)[2]).positions[0]
    pulled = Kinematics.for_robot(replace(ROBOT, posture_gain=0.1))
    targets = np.repeat(panda.forward(start)[None], 40, axis=0)
    result = pulled.inverse(targets, start)
    assert result.reached.all()
    assert np.linalg.norm(result.positions[-1] - home) < 0.3 * np.linalg.norm(start - home)
    assert np.abs(np.diff(result.positions, axis=0)).max() < 0.05


def test_continuous_joints_have_one_number(panda):
    text = ROBOT.description_path.read_text()
    text = text.replace('name="panda_joint1" type="revolute"', 'name="panda_joint1" type="continuous"')
    free = Kinematics(text, ROBOT.joints, ROBOT.eef_frame)
    q = np.array(ROBOT.home) + 10.0 * np.eye(7)[0]
    np.testing.assert_allclose(free.forward(q), panda.forward(q), atol=1e-12)
    assert free.upper[0] > 100


@pytest.mark.parametrize(
    ("description", "joints", "frame", "message"),
    [
        (ROBOT.description_path, ("elbow",), "panda_hand", r"joints elbow are not in .* panda_joint1"),
        (ROBOT.description_path, ROBOT.joints, "tool", r"frame 'tool' is not in .* panda_hand"),
        ("/nowhere/arm.urdf", ROBOT.joints, "tool", r"/nowhere/arm\.urdf cannot be read"),
        ("<robot", ROBOT.joints, "tool", r"robot description cannot be read as XML"),
        ("<sdf/>", ROBOT.joints, "tool", r"root element <sdf>"),
        ("<robot name='x'><joint name='j'/></robot>", ROBOT.joints, "tool", r"not a valid <robot> description"),
    ],
)
def test_descriptions_that_do_not_serve(description, joints, frame, message):
    with pytest.raises(KinematicsError, match=message):
        Kinematics(description, joints, frame)


def test_a_moving_base_frame_is_refused():
    with pytest.raises(KinematicsError, match="base_frame 'panda_link3' moves"):
        Kinematics(ROBOT.description_path, ROBOT.joints, ROBOT.eef_frame, "panda_link3")


def test_a_missing_pinocchio_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pinocchio", None)
    with pytest.raises(KinematicsError, match="pip install pin"):
        Kinematics.for_robot(ROBOT)
