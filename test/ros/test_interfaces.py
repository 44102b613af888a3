"""The table of docs/operate.md names the topics, services and actions of the running node."""

import pytest
from interface_table import table

pytestmark = pytest.mark.ros

OF_EVERY_NODE = (
    "rosout", "parameter_events", "parameters", "parameter", "type_description", "transition_event",
    "change_state", "get_state", "get_available_states", "get_available_transitions",
    "get_transition_graph", "get_parameter_types", "set_parameters_atomically", "clock",
)


def running(graph):
    """The same of the node, without those of every node, the action's own parts, the controller."""
    from rclpy.action import get_action_server_names_and_types_by_node

    node = graph.node
    where = ("vla", f"/{graph.namespace}")
    found = {
        "publisher": node.get_publisher_names_and_types_by_node(*where),
        "subscription": node.get_subscriber_names_and_types_by_node(*where),
        "service": node.get_service_names_and_types_by_node(*where),
        "action": get_action_server_names_and_types_by_node(node, *where),
    }
    return {
        (name, kind): types[0]
        for kind, entries in found.items()
        for name, types in entries
        if not name.endswith(OF_EVERY_NODE)
        and "/_action/" not in name
        and "_controller/" not in name
    }


def test_the_table_is_the_running_node(make_graph):
    graph = make_graph(
        robot_may_move_topic="robot_may_move",
        camera__static__calibration="panda_static",
        camera__static__info_topic="static/camera_info",
    )
    graph.activate()
    expected = table("/vla", f"/{graph.namespace}")
    graph.wait_for(
        lambda: running(graph) == expected,
        lambda: f"the table's graph; differing: {running(graph).items() ^ expected.items()}",
        deadline=20.0,
    )
