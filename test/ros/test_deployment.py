"""Files for a robot's system: SROS 2 policy, aggregator, nav2's lifecycle manager, container.

- The policy allows the running node's topics, services and action, and nothing else.
- Every entry of the node's /diagnostics belongs to one branch of the aggregator.
- The lifecycle manager names the node, without a bond.
- The container's file installs the versions of docs/install.md; that page names every extra.
- The example of docs/moveit.md takes the arm and gives it back.
"""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from interface_table import ROOT, running

pytestmark = pytest.mark.ros

CONFIG = ROOT / "config"
RULES = {
    ("topics", "publish"): "publisher",
    ("topics", "subscribe"): "subscription",
    ("services", "reply"): "service",
    ("services", "request"): "client",
    ("actions", "execute"): "action",
}


def allowed(node, space):
    """(absolute name, kind) of every rule of the policy, for a node in a namespace."""
    root = ElementTree.parse(CONFIG / "sros2" / "vla_node.policy.xml").getroot()
    profile = root.find("enclaves/enclave/profiles/profile")
    assert (profile.get("ns"), profile.get("node")) == ("/", "vla_node")
    found = set()
    for block in profile:
        for verb, rule in block.attrib.items():
            assert rule == "ALLOW"
            for entry in block:
                name = entry.text
                name = name.replace("~/", f"{space}/{node}/") if name.startswith("~/") else name
                name = name if name.startswith("/") else f"{space}/{name}"
                assert (name, RULES[block.tag, verb]) not in found, name
                found.add((name, RULES[block.tag, verb]))
    return found


def test_policy_is_the_running_node(make_graph):
    graph = make_graph(
        robot_may_move_topic="robot_may_move", use_sim_time=True,
        **{f"camera__{name}__calibration": f"panda_{name}" for name in ("static", "wrist")},
        **{f"camera__{name}__info_topic": f"{name}/camera_info" for name in ("static", "wrist")},
    )
    graph.arm.clock_ns = 10**18
    graph.activate()
    expected = allowed("vla", f"/{graph.namespace}")
    graph.wait_for(
        lambda: running(graph).keys() == expected,
        lambda: f"the policy's graph; differing: {sorted(running(graph).keys() ^ expected)}",
        deadline=30.0,
    )


def test_aggregator_covers_the_diagnostics():
    from robovlms_ros.ros.vla_node import FAULTS

    text = (CONFIG / "diagnostics" / "aggregator.yaml").read_text(encoding="utf-8")
    branches = yaml.safe_load(text)["analyzers"]["ros__parameters"].values()
    patterns = []
    for branch in branches:
        if isinstance(branch, dict):
            patterns += branch["contains"]
    names = {"policy", "inputs", "history_rate", "controller", *FAULTS}
    assert sorted(patterns) == sorted(f"vla_node: {name}" for name in names)


def test_lifecycle_manager():
    text = (CONFIG / "nav2" / "lifecycle_manager.yaml").read_text(encoding="utf-8")
    manager = yaml.safe_load(text)["lifecycle_manager"]["ros__parameters"]
    assert manager["node_names"] == ["vla_node"]
    assert manager["bond_timeout"] == 0.0


def test_container_installs_the_recipe():
    recipe = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    container = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    pinned = re.compile(r"\b(numpy|torch|transformers|safetensors)==([\d.]+)")
    assert dict(pinned.findall(container)) == dict(pinned.findall(recipe))
    assert len(dict(pinned.findall(container))) == 4
    ours = (ROOT / "scripts" / "requirements" / "ros-system.txt").read_text(encoding="utf-8")
    versions = dict(pinned.findall(container))
    assert all(versions[name] == version for name, version in pinned.findall(ours))
    for copied in re.findall(r"^COPY (\S+) ", container, re.M):
        assert (ROOT / copied).exists()
    assert "docker/entrypoint.sh" in container


def test_every_extra_is_named():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = set(re.findall(r'^        "(\w+)": ', setup, re.M))
    recipe = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    table = recipe.partition("## Extras")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == extras


def test_moveit_example_takes_the_arm_and_gives_it_back(make_graph):
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.node import Node

    guide = (ROOT / "docs" / "moveit.md").read_text(encoding="utf-8")
    example = {"__name__": "example"}
    exec(compile(re.search(r"```python\n(.*?)```", guide, re.S)[1], "moveit.md", "exec"), example)
    graph = make_graph()
    graph.activate()
    graph.run()
    node = Node("taker", namespace=graph.namespace)
    change = example["change"]
    target = f"/{graph.namespace}/vla"
    example["change"] = lambda node, transition: change(node, transition, target)
    states = []

    def move():
        states.append(graph.node.lifecycle_state)
        graph.wait_for(lambda: not graph.arm.is_moving(), "the arm at rest")
        assert graph.is_quiet(0.5)

    try:
        example["with_moveit"](node, move)
        assert states == ["inactive"]
        graph.listener.wait_state("waiting", "no instruction")
        graph.node.trigger_deactivate()
        with pytest.raises(RuntimeError, match="was not deactivated"):
            example["with_moveit"](node, move)
        assert graph.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    finally:
        node.destroy_node()
