"""The table of the node's interfaces in docs/operate.md, and the interfaces of the running node."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `([^`]+)` \| (action|subscription|publisher|service) \| `([^`]+)` \|", re.M)


def table(node="/vla_node", space=""):
    """(absolute name, kind) -> type of every row, for a node in a namespace."""
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    rows = {}
    for name, kind, of in ROW.findall(text):
        full = name if name.startswith("/") else f"{space}/{name}".replace("/~/", f"{node}/")
        rows[full, kind] = of
    assert len(rows) > 20
    return rows


def running(graph):
    """(absolute name, kind) -> type of the running node's interfaces, an action's own parts left out."""
    from rclpy.action import get_action_server_names_and_types_by_node

    node = graph.node
    where = ("vla", f"/{graph.namespace}")
    found = {
        "publisher": node.get_publisher_names_and_types_by_node(*where),
        "subscription": node.get_subscriber_names_and_types_by_node(*where),
        "service": node.get_service_names_and_types_by_node(*where),
        "client": node.get_client_names_and_types_by_node(*where),
        "action": get_action_server_names_and_types_by_node(node, *where),
    }
    return {
        (name, kind): types[0]
        for kind, entries in found.items()
        for name, types in entries
        if "/_action/" not in name
    }
