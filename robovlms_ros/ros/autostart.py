"""For launch files: bring a lifecycle node to active, and end the launch with a non-zero code where
that fails.

A launch ends non-zero only when one of its own actions or event handlers raises: neither a process
that dies nor a refused transition does that. So both become an event here, whose handler raises.
The transitions are requested by
service and not followed on `transition_event`: a quick refusal can be published before the launch
    has subscribed.
"""

import threading

from launch import Event, EventHandler, LaunchContext, LaunchDescriptionEntity
from launch.actions import OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit, OnProcessStart
from launch.events.process import ProcessExited
from launch.logging import get_logger
from launch_ros.actions import LifecycleNode
from launch_ros.ros_adapters import get_ros_node
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState

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
