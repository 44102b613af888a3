"""The robot's part of the preflight: the refusals of the node's configure that need no ROS."""

from pathlib import Path

from robovlms_ros.checkpoints.preflight import Finding
from robovlms_ros.control.collision_model import load_collision_model
from robovlms_ros.control.description.model import load_tree, place_of
from robovlms_ros.control.description.shapes import CollisionGeometryError
from robovlms_ros.control.kinematics import Kinematics, KinematicsError
from robovlms_ros.control.lerobot_units import calibrated_limits, zero_ticks
from robovlms_ros.control.robot import RobotSpec

CALIBRATION_SLACK = 0.02
"""rad by which a planning limit may lie beyond a calibrated range without a warning."""


def check_description(robot: RobotSpec, description: str | Path | None = None) -> Finding:
    """Load the robot's description and build its kinematics.

    description: the path or text of a URDF or MJCF in place of the robot's own.
    """
    topic = robot.description.topic
    if description is None and robot.description_path is None:
        if robot.controller.type == "chunk_only":
            return Finding("ok", "description", "not needed: chunk_only commands no joints")
        text = (
            f"not checked: it comes from the topic '{topic}'. Give the file that "
            "robot_state_publisher publishes with --description FILE"
        )
        return Finding("warning", "description", text)
    source = robot.description_path if description is None else description
    try:
        kinematics = Kinematics.for_robot(robot, source)
    except KinematicsError as error:
        return Finding("error", "description", str(error))
    joints = ", ".join(kinematics.joints)
    frames = f"{robot.base_frame} to {robot.eef_frame}"
    return Finding("ok", "description", f"{source}: {joints} move {frames}")


def check_gripper(robot: RobotSpec, description: str | Path | None = None) -> Finding | None:
    """Look for the gripper's joint in the robot's description; None without a gripper or a readable
    description.

    description: the path or text of a URDF or MJCF in place of the robot's own.
    """
    source = robot.description_path if description is None else description
    if robot.gripper is None or source is None:
        return None
    try:
        tree = load_tree(source)
    except KinematicsError:
        return None  # `check_description` reports it
    joints = [name for name, joint in tree.joints().items() if joint.moves]
    joint = robot.gripper.joint
    if joint in joints:
        return Finding("ok", "gripper", f"{joint} is a joint of {place_of(source)}")
    others = [name for name in joints if name not in robot.joints]
    text = f"{place_of(source)} has no joint '{joint}' (gripper.joint)"
    if not others:
        return Finding("ok", "gripper", f"{text}, nor any other beside the arm's: not compared")
    return Finding(
        "warning",
        "gripper",
        f"{text}; beside the arm's it has {', '.join(others)}. The gripper's opening is read from "
        "joint_states by that name",
    )


def check_collision(robot: RobotSpec, description: str | Path | None = None) -> Finding:
    """Load the collision geometry of the robot's description and its world.

    description: the path or text of a URDF or MJCF in place of the robot's own.
    """
    if robot.controller.type == "chunk_only":
        return Finding("ok", "collision", "not needed: chunk_only commands no joints")
    if robot.collision_scope == "none":
        text = (
            "not checked: the robot's YAML has no world block. Describe the robot's surroundings "
            "there, or set collision.check: self"
        )
        off = robot.collision.check == "none"
        return Finding("ok" if off else "warning", "collision", "turned off" if off else text)
    if description is None and robot.description_path is None:
        text = f"not checked: the description comes from the topic '{robot.description.topic}'"
        return Finding("warning", "collision", text)
    try:
        model = load_collision_model(robot, description)
    except (KinematicsError, CollisionGeometryError) as error:
        return Finding("error", "collision", str(error))
    assert model is not None
    bodies = {solid.body for solid in model.solids}
    text = f"{len(model.pairs.first)} pairs of {len(model.solids)} solids of {len(bodies)} bodies"
    if model.left_out:
        pairs = ", ".join(" and ".join(pair) for pair in model.left_out)
        text += f"; left out, because they always collide: {pairs}"
    if model.errors:
        link, excess = max(model.errors.items(), key=lambda item: item[1])
        text += f"; solids extend up to {1e3 * excess:.0f} mm beyond the meshes ({link})"
    return Finding("ok", "collision", text)


def check_calibration(robot: RobotSpec) -> Finding | None:
    """Compare the planning limits with the ranges of LeRobot's calibration, where the robot's YAML
    names one."""
    ends = calibrated_limits(robot)
    zeros = zero_ticks(robot)
    if ends is None or zeros is None:
        return None
    ticks = ", ".join(f"{motor} {tick:.0f}" for motor, tick in zeros.items())
    text = f"{robot.lerobot.calibration}; the driver has to report 0 rad at tick {ticks}"
    beyond = [
        f"{joint} (limits {lower:.3f} to {upper:.3f}, calibrated {low:.3f} to {high:.3f} rad)"
        for joint, lower, upper, low, high in zip(
            robot.joints, robot.lower(), robot.upper(), *ends, strict=True)
        if lower < low - CALIBRATION_SLACK or upper > high + CALIBRATION_SLACK
    ]
    if not beyond:
        return Finding("ok", "calibration", text)
    text += (
        f". The servos stop at the ends of their calibrated ranges, before the limits of {', '.join(beyond)}: tighten "
        "limits in the robot's YAML, or the arm will be held for not following there"
    )
    return Finding("warning", "calibration", text)
