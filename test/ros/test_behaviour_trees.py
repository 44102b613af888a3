"""The examples of docs/behaviour_trees.md.

- The Python example runs to its success against the node, where py_trees_ros is installed.
- The XML is well formed; its ports are those of its model and of the C++ node, its rules parse.
"""

import re
import xml.etree.ElementTree as ElementTree

import pytest
from interface_table import ROOT, table

pytestmark = pytest.mark.ros


def block(language):
    """The first code block of a language in the guide."""
    text = (ROOT / "docs" / "behaviour_trees.md").read_text(encoding="utf-8")
    return re.search(rf"```{language}\n(.*?)```", text, re.S)[1]


def test_xml_fits_the_action():
    from robovlms_ros.control.done_rules import parse_done_rules

    root = ElementTree.fromstring(block("xml"))
    ports = {port.get("name") for port in root.find("TreeNodesModel/Action[@ID='Execute']")}
    nodes = list(root.iter("Execute"))
    assert len(nodes) == 2
    for node in nodes:
        assert set(node.attrib) - {"name"} <= ports
        assert (node.get("action_name"), "action") in table()
        parse_done_rules(node.get("done_when").split(";"), has_gripper=True)
    declared = set(re.findall(r'BT::(?:In|Out)putPort<[^>]+>\("(\w+)"', block("cpp")))
    assert declared == ports - {"action_name"}


def test_python_example_succeeds(make_graph):
    pytest.importorskip("py_trees_ros", reason="py_trees_ros is not installed")
    import py_trees
    from fake_policies import Injected, constant
    from rclpy.node import Node
    from ros_graph import Spinner

    example = {"__name__": "example"}
    exec(compile(block("python"), "behaviour_trees.md", "exec"), example)
    graph = make_graph()
    graph.activate()

    def half_open(message):
        message.position[-1] = 0.02
        return message

    graph.arm.quirks["joint_states"] = half_open
    tree = py_trees.trees.BehaviourTree(example["create_root"](f"/{graph.namespace}/vla/execute"))
    node = Node("tree", namespace=graph.namespace)
    spinner = Spinner(node)
    try:
        tree.setup(node=node)
        with Injected(graph, constant([0.0] * 6, opening=0.0)):

            def finished():
                tree.tick()
                return tree.root.status != py_trees.common.Status.RUNNING

            graph.wait_for(finished, lambda: f"the end, it is {graph.listener.said()}", 120.0)
        assert tree.root.status == py_trees.common.Status.SUCCESS
        graph.listener.wait_state("waiting", "no instruction")
    finally:
        tree.shutdown()
        spinner.close()
