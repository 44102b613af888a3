"""The robot's part of the preflight: the refusals of the node's configure that need no ROS."""

from pathlib import Path

from robovlms_ros.checkpoints.preflight import Finding
from robovlms_ros.control.kinematics import Kinematics, KinematicsError
from robovlms_ros.control.robot import RobotSpec


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
