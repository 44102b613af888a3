"""Presence of a controller: the node that executes commands is there, and it is active.

A plotter and a recorder subscribe to the command topic too, and an inactive controller keeps its
subscription. The node is known by its name. Its state comes from its lifecycle services, from the
controller manager (ros2_control's controllers have no lifecycle services of their own), or from
`controller_state`, which an active controller publishes in every cycle. Where nothing can be
queried the subscription counts.
"""

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from lifecycle_msgs.msg import State, TransitionEvent
from lifecycle_msgs.srv import GetState
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.task import Future

from robovlms_ros.control.controller_types import ANY_NODE
from robovlms_ros.ros.controllers.base import Context, nobody_listens
from robovlms_ros.ros.controllers.controller_state import ControllerStateReader
from robovlms_ros.ros.graph import LATCHED, node_names
from robovlms_ros.ros.spinning import QUIET_SUBSCRIPTION

PERIOD = 0.5
"""s between two readings of names and states."""

PATIENCE = 6
"""Readings after which an answer that is missing counts as one that does not exist."""

ACTIVE = "active"

UNNAMED = ("_NODE_NAME_UNKNOWN_", "_CREATED_BY_BARE_DDS_APP_")
"""Names that the middleware gives to the node of an endpoint that is no ROS node's: it may be the
controller's."""



def controller_name(node: Node, command_name: str, wanted: str | None) -> str:
    """The full name of a controller's node; empty where none is known.

    command_name: the full name of its topic or action, whose namespace is the node's name by the
    convention of ros2_control. wanted: the robot's `controller.node`.
    """
    if wanted is not None and wanted != ANY_NODE:
        return str(node.resolve_topic_name(wanted))
    namespace = command_name.rpartition("/")[0]
    # A topic of the robot's own namespace does not name a controller.
    return "" if namespace == node.get_namespace().rstrip("/") else namespace


def any_unnamed(subscribers: tuple[str, ...]) -> bool:
    """True where the graph does not name the node of a subscriber."""
    return any(name.rpartition("/")[2] in UNNAMED for name in subscribers)


def strangers(controller: str, subscribers: tuple[str, ...]) -> tuple[str, ...]:
    """The subscribers' names where none of them may be the controller's; else empty."""
    if not controller or controller in subscribers or any_unnamed(subscribers):
        return ()
    return tuple(sorted(set(subscribers)))


class ControllerPresence:
    """Queries one controller without waiting for anything; safe from any thread.

    name: the full name of its topic or action. wanted: the robot's `controller.node`. listeners:
    number of subscribers or servers that receive commands. by_topic: True compares the
    subscribers' names; the server of an action is a controller. state: its published state, None
    where none can be read.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        wanted: str | None,
        listeners: Callable[[], int],
        by_topic: bool = True,
        state: ControllerStateReader | None = None,
    ) -> None:
        self._node = context.node
        self._name = name
        self._listeners = listeners
        self._state = state
        self.controller = controller_name(context.node, name, wanted)
        self._compared = self.controller if by_topic and wanted != ANY_NODE else ""
        self._lock = threading.RLock()
        self._closed = False
        self._count = 0
        self._strangers: tuple[str, ...] = ()
        self._states: dict[str, str] = {}
        self._missing: list[str] = []
        self._readings = 0
        self._concluded = ""
        self._future: Future | None = None
        self._entities: list[tuple[Callable[[Any], object], Any]] = []
        if self.controller:
            self._connect()
        timer = context.node.create_timer(
            PERIOD, self._on_timer, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._entities.append((context.node.destroy_timer, timer))

    def _connect(self) -> None:
        node = self._node
        self._get_state = node.create_client(GetState, f"{self.controller}/get_state")
        events = node.create_subscription(
            TransitionEvent,
            f"{self.controller}/transition_event",
            self._on_transition,
            10,
            event_callbacks=QUIET_SUBSCRIPTION,
        )
        self._entities += [(node.destroy_client, self._get_state)]
        self._entities += [(node.destroy_subscription, events)]
        namespace = self.controller.rpartition("/")[0]
        self._activity_topic = f"{namespace}/controller_manager/activity"
        try:
            messages = import_module("controller_manager_msgs.msg")
        except ImportError:
            self._missing.append("controller_manager_msgs")
            return
        activity = node.create_subscription(
            messages.ControllerManagerActivity,
            self._activity_topic,
            self._on_activity,
            LATCHED,
            event_callbacks=QUIET_SUBSCRIPTION,
        )
        self._entities += [(node.destroy_subscription, activity)]

    def absence(self) -> str:
        """The reason why no controller receives commands; empty where one does."""
        count = self._listeners()
        if not count:
            return nobody_listens(self._name)
        with self._lock:
            if count != self._count:
                self._read_names(count)
            others = self._strangers
            states = dict(self._states)
        if others:
            return (
                f"{', '.join(others)} listens to {self._name}, the controller's node "
                f"{self.controller} does not: start the controller, or set controller.node in the "
                "robot's YAML to the node that executes the commands ('*': any)"
            )
        for source, state in states.items():
            if state != ACTIVE:
                return (
                    f"the controller {self.controller} is {state} (by {source}): activate it. It "
                    f"receives {self._name} and does not execute it"
                )
        if self._state is not None and self._state.silent:
            return (
                f"the controller {self.controller} has stopped publishing {self._state.topic}: it "
                f"is inactive or stuck. It receives {self._name} and does not execute it"
            )
        return ""

    def _read_names(self, count: int) -> None:
        self._count = count
        if self._compared:
            subscribers = node_names(self._node.get_subscriptions_info_by_topic(self._name))
            self._strangers = strangers(self._compared, subscribers)
            if any_unnamed(subscribers):
                self._count = 0  # a node's name may follow its subscription: read again

    def _on_timer(self) -> None:
        with self._lock:  # `close` must not take the entities away meanwhile
            if self._closed:
                return
            count = self._listeners()
            self._read_names(count)
            if self.controller:
                self._query()
            self._readings += 1
            self._conclude(count)

    def _query(self) -> None:
        if not self._get_state.service_is_ready():
            self._future = None
            self._forget("get_state")
        elif self._future is None or self._readings % PATIENCE == 0:
            self._future = self._get_state.call_async(GetState.Request())
            self._future.add_done_callback(self._on_state)
        if not self._node.count_publishers(self._activity_topic):
            self._forget("controller_manager")

    def _on_state(self, future: Future) -> None:
        answer = future.result()
        if answer is not None and future is self._future:
            self._future = None
            self._note("get_state", answer.current_state)

    def _on_transition(self, event: TransitionEvent) -> None:
        self._note("get_state", event.goal_state)

    def _on_activity(self, message: Any) -> None:
        own = self.controller.rpartition("/")[2]
        for controller in message.controllers:
            if controller.name == own:
                self._note("controller_manager", controller.state)

    def _note(self, source: str, state: State) -> None:
        label = ACTIVE if state.id == State.PRIMARY_STATE_ACTIVE else state.label or str(state.id)
        with self._lock:
            self._states[source] = label

    def _forget(self, source: str) -> None:
        with self._lock:
            self._states.pop(source, None)

    def _conclude(self, count: int) -> None:
        """Log by what the controller counts as present, once it is known."""
        if not count or self._readings < PATIENCE:
            return
        sources = sorted(self._states)
        if self._state is not None and self._state.known:
            sources.append("controller_state")
        subscriber = f"the subscription of {self._compared}" if self._compared else "any receiver"
        if sources:
            line = f"{subscriber} and {', '.join(sources)}"
        else:
            missing = f" (not installed: {', '.join(self._missing)})" if self._missing else ""
            line = f"{subscriber} alone: its state cannot be queried{missing}"
        if line != self._concluded:
            self._concluded = line
            self._node.get_logger().info(f"the presence of {self._name} is judged by {line}")

    def close(self) -> None:
        """Destroy the timer, the subscriptions and the client."""
        with self._lock:
            self._closed = True
            for destroy, entity in self._entities:
                destroy(entity)
            self._entities = []
