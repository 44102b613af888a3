"""For launch files: arguments that are checked, RViz where it is installed, and a lifecycle node
brought to active.

A launch ends non-zero only when one of its own actions or event handlers raises: neither a process
that dies nor a refused transition does that. So both become an event here, whose handler raises.
The transitions are requested by service and not followed on `transition_event`: a quick refusal can
be published before the launch has subscribed.
"""

import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import Event, EventHandler, LaunchContext, LaunchDescriptionEntity
from launch.actions import LogInfo, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events.process import ProcessExited
from launch.logging import get_logger
from launch_ros.actions import LifecycleNode, Node
from launch_ros.ros_adapters import get_ros_node
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

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


TRANSITIONS = {"configure": Transition.TRANSITION_CONFIGURE, "activate": Transition.TRANSITION_ACTIVATE}
PATIENCE = 0.5
"""Seconds between two looks at whether the launch is still wanted."""


class LaunchFailed(RuntimeError):
    """The launch cannot do what it is for."""


class NodeFailed(Event):
    """A node cannot do its work; `reason` is the cause."""

    name = "robovlms_ros.NodeFailed"

    def __init__(self, reason: str) -> None:
        self.reason = reason


def fail_with(node: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """Actions that end the launch with a non-zero code when the node's process dies before the
    launch ends."""

    def died(event: ProcessExited, context: LaunchContext) -> None:
        if event.returncode != 0 and not context.is_shutdown:
            raise LaunchFailed(f"{node.node_name} died with code {event.returncode}.")

    return [RegisterEventHandler(OnProcessExit(target_action=node, on_exit=died))]


def autostart(node: LifecycleNode) -> list[LaunchDescriptionEntity]:
    """Actions that configure and activate the node once its process runs; when it refuses, the
    launch fails."""

    def started(event: Event, context: LaunchContext) -> None:
        threading.Thread(target=_bring_up, args=(node, context), name="autostart", daemon=True).start()

    def failed(context: LaunchContext) -> None:
        raise LaunchFailed(context.locals.event.reason)

    return [
        RegisterEventHandler(OnProcessStart(target_action=node, on_start=started)),
        RegisterEventHandler(EventHandler(matcher=lambda event: isinstance(event, NodeFailed),
                                          entities=[OpaqueFunction(function=failed)])),
    ]


def _bring_up(node: LifecycleNode, context: LaunchContext) -> None:
    """Request one transition after the other; gives up silently when the launch ends meanwhile."""
    client = get_ros_node(context).create_client(ChangeState, f"{node.node_name}/change_state")
    while not client.wait_for_service(timeout_sec=PATIENCE):
        if context.is_shutdown:
            return
    for name, transition in TRANSITIONS.items():
        answered = threading.Event()
        future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
        future.add_done_callback(lambda _, answered=answered: answered.set())
        while not answered.wait(PATIENCE):
            if context.is_shutdown:
                return
        if not future.result().success:
            event = NodeFailed(f"{node.node_name} refused to {name}; its log above says why.")
            context.asyncio_loop.call_soon_threadsafe(context.emit_event_sync, event)
            return
    get_logger("autostart").info(f"{node.node_name} is active")
