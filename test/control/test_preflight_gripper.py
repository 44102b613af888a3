"""The gripper's joint in the robot's description: found, misspelled, not described."""

from dataclasses import replace

import pytest

pytest.importorskip("pinocchio")

from robovlms_ros.control.preflight import check_gripper
from robovlms_ros.control.robot import load_robot


def test_a_joint_of_the_description():
    finding = check_gripper(load_robot("panda"))
    assert finding.level == "ok" and "panda_finger_joint1" in finding.text


def test_a_misspelled_joint_is_a_warning_with_the_names_there_are():
    robot = load_robot("panda")
    finding = check_gripper(replace(robot, gripper=replace(robot.gripper, joint="finger_joint")))
    assert finding.level == "warning"
    assert "no joint 'finger_joint'" in finding.text and "panda_finger_joint1" in finding.text


def test_a_description_of_the_arm_alone_is_not_compared():
    finding = check_gripper(load_robot("ur5e"))
    assert finding.level == "ok" and "not compared" in finding.text


def test_nothing_to_compare():
    assert check_gripper(replace(load_robot("panda"), gripper=None)) is None
    assert check_gripper(load_robot("panda"), "no/such/file.urdf") is None
