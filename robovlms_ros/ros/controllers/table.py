"""Which adapter serves which `type` of a robot's YAML; imported only when chosen."""

import importlib

from robovlms_ros.ros.controllers.base import Arm, Context, Gripper

ARMS = {
    "joint_trajectory": "trajectory_topic:JointTrajectoryArm",
    "follow_joint_trajectory": "actions:FollowJointTrajectoryArm",
    "servo_twist": "servo:ServoTwistArm",
    "servo_pose": "servo:ServoPoseArm",
    "cartesian_pose": "streaming:CartesianPoseArm",
    "forward_position": "streaming:ForwardPositionArm",
}
GRIPPERS = {
    "one_joint_trajectory": "trajectory_topic:OneJointTrajectoryGripper",
    "gripper_command": "actions:GripperCommandGripper",
    "parallel_gripper_command": "actions:ParallelGripperCommandGripper",
    "float64_multi_array": "streaming:Float64MultiArrayGripper",
}


def make_arm(context: Context) -> Arm | None:
    """The adapter of the robot's arm controller; None for `chunk_only`. Raises ControllerError."""
    spec = context.robot.controller
    return None if spec.type == "chunk_only" else _load(ARMS[spec.type])(context, spec)


def make_gripper(context: Context) -> Gripper | None:
    """The adapter of the robot's gripper; None for an arm without one. Raises ControllerError."""
    spec = context.robot.gripper
    return None if spec is None else _load(GRIPPERS[spec.type])(context, spec)


def _load(name: str):  # type: ignore[no-untyped-def]
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"robovlms_ros.ros.controllers.{module}"), attribute)
