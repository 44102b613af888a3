"""The adapter of each `type` of a robot's YAML; imported only when chosen."""

from typing import Any

from robovlms_ros.core.registry import load
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.controllers.base import Arm, Context, ControllerError, Gripper

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
    if spec.type == "chunk_only":
        return None
    if spec.type in ARMS:
        return _ours(ARMS[spec.type])(context, spec)  # type: ignore[no-any-return]
    return _third_party(spec.type, spec.adapter)(context, spec)  # type: ignore[call-arg]


def make_gripper(context: Context) -> Gripper | None:
    """The adapter of the robot's gripper; None for an arm without one. Raises ControllerError."""
    spec = context.robot.gripper
    return None if spec is None else _ours(GRIPPERS[spec.type])(context, spec)


def _ours(name: str) -> Any:
    return load(f"robovlms_ros.ros.controllers.{name}", "controller adapter")


def _third_party(kind: str, target: str) -> type[Arm]:
    """The adapter class of an entry point's controller type."""
    try:
        adapter = load(target, f"adapter of controller type '{kind}'")
    except ConfigError as error:
        raise ControllerError(str(error)) from error
    if not (isinstance(adapter, type) and issubclass(adapter, Arm)):
        raise ControllerError(
            f"controller type '{kind}': {target} must be a subclass of Arm (controllers.base)."
        )
    # `send` rejects commands without admission; an adapter with its own could go around the guard.
    if adapter.send is not Arm.send:
        raise ControllerError(
            f"controller type '{kind}': {target} overrides send(); it must define _send() instead."
        )
    return adapter
