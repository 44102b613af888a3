"""For launch files: arguments that are checked, and RViz where it is installed."""

import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescriptionEntity
from launch.actions import LogInfo
from launch_ros.actions import Node

from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError, did_you_mean, read_mapping
from robovlms_ros.core.types import RoboVLMsError

RVIZ_TOPICS = ("preview", "preview/static", "preview/wrist")
"""Topics below the node's name that config/rviz/robovlms.rviz displays."""


def check_arguments(context: LaunchContext, file: str, declared: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest name, for an argument on the command line that a launch
    file does not declare.

    file: the launch file's path. Where another file includes it the arguments are that one's, and
    are not checked.
    """
    names = tuple(declared)
    if not any(Path(word).name == Path(file).name for word in sys.argv):
        return
    for word in context.argv:
        name, assigned, _ = word.partition(":=")
        if assigned and name not in names:
            nearest = did_you_mean(name, names)
            raise ConfigError(f"launch argument '{name}' does not exist.{nearest}")


def parameter_in(params_file: Path, name: str) -> Any:
    """A parameter of the first node of a parameter file that sets it; None where none does."""
    for node in read_mapping(params_file).values():
        values = node.get("ros__parameters") if isinstance(node, dict) else None
        if isinstance(values, dict) and name in values:
            return values[name]
    return None


def start_rviz(namespace: str, robot: str) -> list[LaunchDescriptionEntity]:
    """RViz with the shipped configuration; a line in the log where it is not installed.

    namespace: of the policy node. robot: by name or path; its base_frame becomes the fixed frame.
    """
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError:
        text = (
            "rviz:=true: rviz2 is not installed, the launch goes on without it. "
            "Install it: sudo apt install ros-$ROS_DISTRO-rviz2"
        )
        return [LogInfo(msg=text)]
    arguments = ["-d", str(share_directory() / "config" / "rviz" / "robovlms.rviz")]
    with suppress(RoboVLMsError):  # the node refuses the robot and reports the reason
        arguments += ["-f", load_robot(robot).base_frame]
    space = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    remappings = [(f"/vla_node/{topic}", f"{space}/vla_node/{topic}") for topic in RVIZ_TOPICS]
    remappings.append(("/robot_description", f"{space}/robot_description"))
    return [
        Node(
            package="rviz2", executable="rviz2", name="rviz2", arguments=arguments,
            remappings=remappings if space else [], output="log",
        )
    ]
