"""The table of docs/operate.md names the topics, services and actions of the running node."""

import pytest
from interface_table import running, table

pytestmark = [pytest.mark.ros, pytest.mark.untimed]

OF_EVERY_NODE = (
    "rosout", "parameter_events", "parameters", "parameter", "type_description", "transition_event",
    "change_state", "get_state", "get_available_states", "get_available_transitions",
    "get_transition_graph", "get_parameter_types", "set_parameters_atomically", "clock",
)


def of_its_own(graph):
    """The node's interfaces without those of every node, its clients and the controller's."""
    return {
        (name, kind): of
        for (name, kind), of in running(graph).items()
        if kind != "client" and not name.endswith(OF_EVERY_NODE) and "_controller/" not in name
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
        lambda: of_its_own(graph) == expected,
        lambda: f"the table's graph; differing: {of_its_own(graph).items() ^ expected.items()}",
        deadline=20.0,
    )
