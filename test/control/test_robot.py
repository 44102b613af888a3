"""A robot's YAML:
- every shipped robot loads, and its description, joints, frames and home agree with each other;
- every limit is checked, and the message names the file, the joint or field, the value and what is allowed;
- unknown keys and unknown controller or gripper types get the nearest name;
- a controller block becomes the class of its type, with that type's fields only;
- openings and joint positions of a gripper are mirrors.
"""

import copy
from pathlib import Path

import pytest
import yaml

from robovlms_ros.control import controller_types
from robovlms_ros.control.robot import load_robot, parse_robot
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError

ROBOTS = sorted(p.stem for p in (share_directory() / "config/robots").glob("*.yaml"))


@pytest.fixture
def panda() -> dict:
    return copy.deepcopy(yaml.safe_load((share_directory() / "config/robots/panda.yaml").read_text()))


def parse(data):
    return parse_robot(data, "robot.yaml", Path("/nowhere"))


@pytest.mark.parametrize("name", ROBOTS)
def test_shipped_robots_load(name):
    robot = load_robot(name)
    assert robot.name == name
    assert robot.description_path is None or robot.description_path.is_file()


def test_a_description_is_relative_to_its_yaml(panda):
    assert parse(panda).description_path == Path("/nowhere/panda.urdf")
    panda["description"] = {"topic": "robot_description"}
    assert parse(panda).description_path is None


def change(data, path, value):
    *parents, last = path.split(".")
    for key in parents:
        data = data[key]
    if value is KeyError:
        del data[last]
    else:
        data[last] = value


BAD = [
    ("limits.velocity", [1.0] * 6, "limits.velocity has 6 values, must have 7"),
    ("limits.velocity", [1.0] * 6 + [0.0], "limits.velocity of panda_joint7 = 0.0"),
    ("limits.acceleration", [1.0] * 6 + [float("nan")], "limits.acceleration[6] = nan"),
    ("limits.position_lower", [3.0] * 7, "panda_joint1: position_lower = 3.0 is not below"),
    ("limits.eef_speed", -1.0, "limits.eef_speed = -1.0"),
    ("limits.eef_speed", "fast", "limits.eef_speed = 'fast': must be a number"),
    ("limits.workspace", {"lower": [0, 0], "upper": [1, 1, 1]}, "limits.workspace.lower has 2 values, must have 3"),
    ("limits.workspace", {"lower": [0, 0, 2], "upper": [1, 1, 1]}, "z lower = 2.0 is not below upper = 1.0"),
    ("limits.jerk", 1.0, "unknown key 'jerk'"),
    ("home", [0.0] * 7, "home of panda_joint4 = 0.0"),
    ("max_age", 0, "max_age = 0.0"),
    ("max_start_jump", float("inf"), "max_start_jump = inf"),
    ("max_start_jmp", 1.0, "Did you mean 'max_start_jump'?"),
    ("max_start_jump", KeyError, "'max_start_jump' is missing"),
    ("joints", ["a", "a"], "joints = ['a']: must be named once each"),
    ("joints", [], "joints = ()"),
    ("description", {}, "give exactly one"),
    ("description", {"file": "a", "topic": "b"}, "give exactly one"),
    ("controller.type", "joint_trajectry", "Did you mean 'joint_trajectory'?"),
    ("controller.topic", "a b", "controller.topic = 'a b': must be a ROS name"),
    ("controller.action", "x", "unknown key 'action'"),
    ("controller", "jtc", "controller = 'jtc': must be a mapping"),
    ("gripper.type", "jaw", "gripper.type = 'jaw'"),
    ("gripper.closed_position", 0.04, "gripper.closed_position = 0.04: must be different"),
    ("gripper.close_below", 0.7, "(close_below, open_above)"),
    ("gripper.joint", "panda_joint1", "gripper.joint = 'panda_joint1': must be no joint of the arm"),
    ("gate", {"max_refusals": 0}, "gate.max_refusals = 0: must be 1 or more"),
    ("gate", {"refusal_window": -1.0}, "gate.refusal_window = -1.0: must be seconds, 0 to 3600"),
    ("gate", {"refusal_time": -1.0}, "gate.refusal_time = -1.0: must be seconds, 0 or more"),
    ("posture_gain", 2.0, "posture_gain = 2.0: must be from 0 to 1"),
    ("folder", "/etc", "unknown key 'folder'"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{p}-{i}" for i, (p, _, _) in enumerate(BAD)])
def test_a_bad_value_is_named(panda, path, value, message):
    change(panda, path, value)
    with pytest.raises(ConfigError) as error:
        parse(panda)
    assert message in str(error.value)
    assert str(error.value).startswith("robot.yaml")


def test_a_missing_description_file_is_named(panda, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(panda))
    with pytest.raises(ConfigError, match=r"mine\.yaml: description\.file = 'panda\.urdf': no such file"):
        load_robot(path)


ARMS = {
    "follow_joint_trajectory": ({"action": "arm/follow_joint_trajectory"}, controller_types.FollowJointTrajectory),
    "servo_twist": ({"units": "unitless"}, controller_types.ServoTwist),
    "servo_pose": ({}, controller_types.ServoPose),
    "cartesian_pose": ({"topic": "target_pose"}, controller_types.CartesianPose),
    "forward_position": ({"topic": "forward/commands"}, controller_types.ForwardPosition),
    "chunk_only": ({}, controller_types.ChunkOnly),
}


@pytest.mark.parametrize("kind", ARMS)
def test_arm_controllers(panda, kind):
    fields, expected = ARMS[kind]
    panda["controller"] = {"type": kind, **fields}
    assert type(parse(panda).controller) is expected


def test_servo_is_commanded_fast_enough_not_to_halt(panda):
    panda["controller"] = {"type": "servo_twist", "rate": 10.0}
    with pytest.raises(ConfigError, match=r"controller\.rate = 10\.0: must be from 20 to 1000 Hz"):
        parse(panda)


GRIPPERS = {
    "gripper_command": ({"action": "gripper/gripper_cmd"}, controller_types.GripperCommand),
    "parallel_gripper_command": ({"action": "gripper/gripper_cmd"}, controller_types.ParallelGripperCommand),
    "one_joint_trajectory": ({"topic": "gripper/joint_trajectory"}, controller_types.OneJointTrajectory),
    "float64_multi_array": ({"topic": "gripper/commands"}, controller_types.GripperArray),
}


@pytest.mark.parametrize("kind", GRIPPERS)
def test_grippers(panda, kind):
    fields, expected = GRIPPERS[kind]
    panda["gripper"] = {"type": kind, "joint": "jaw", "open_position": -0.1, "closed_position": 0.7, **fields}
    gripper = parse(panda).gripper
    assert type(gripper) is expected
    assert gripper.position(0.0) == 0.7 and gripper.position(2.0) == pytest.approx(-0.1)
    assert gripper.opening(gripper.position(0.25)) == pytest.approx(0.25)
    assert gripper.opening(9.0) == 0.0


def test_an_arm_without_a_gripper(panda):
    del panda["gripper"]
    assert parse(panda).gripper is None
