"""RViz's, Foxglove's and PlotJuggler's files name topics that the node or the robot has.

- Every topic, service and field is in the node's interface, with the type that its display takes.
- The launch remaps every topic that RViz displays.
"""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import yaml
from interface_table import ROOT, table

CONFIG = ROOT / "config"
OF_THE_ROBOT = {"/robot_description": "std_msgs/msg/String"}
RVIZ_TYPES = {
    "MarkerArray": "visualization_msgs/msg/MarkerArray",
    "Image": "sensor_msgs/msg/Image",
    "RobotModel": "std_msgs/msg/String",
}


def named(kind):
    rows = {name: of for (name, found), of in table().items() if found == kind}
    # Both cameras have a calibration in the demo; the table shows the first one.
    if kind == "publisher":
        rows["/vla_node/preview/wrist"] = rows["/vla_node/preview/static"]
    return rows


def fields_of(kind):
    """Field names of one of the package's own messages."""
    text = (ROOT / "msg" / f"{kind.rpartition('/')[2]}.msg").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return set(re.findall(r"^[\w/\[\]]+ (\w+)\s*(?:#|$)", "\n".join(lines), re.M))


def rviz_displays():
    text = (CONFIG / "rviz" / "robovlms.rviz").read_text(encoding="utf-8")
    for display in yaml.safe_load(text)["Visualization Manager"]["Displays"]:
        topic = display.get("Topic", display.get("Description Topic"))
        if topic is not None:
            yield display["Class"].rpartition("/")[2], topic["Value"]


def test_rviz():
    known = {**named("publisher"), **OF_THE_ROBOT}
    displays = dict((topic, known[topic] == RVIZ_TYPES[kind]) for kind, topic in rviz_displays())
    assert len(displays) == 4
    assert all(displays.values()), displays


def test_the_launch_remaps_the_topics_of_rviz():
    pytest.importorskip("launch_ros", reason="launch_ros is not installed")
    from robovlms_ros.ros.launching import RVIZ_TOPICS

    shown = {topic for _, topic in rviz_displays()} - set(OF_THE_ROBOT)
    assert {f"/vla_node/{topic}" for topic in RVIZ_TOPICS} == shown


def test_foxglove():
    layout = json.loads((CONFIG / "foxglove" / "robovlms.json").read_text(encoding="utf-8"))
    panels = layout["configById"]
    published = {**named("publisher"), **OF_THE_ROBOT}
    topics = []
    for name, panel in panels.items():
        kind = name.partition("!")[0]
        if kind == "3D":
            topics += panel["topics"]
        elif kind == "Image":
            topic = panel["imageMode"]["imageTopic"]
            assert published[topic] == "sensor_msgs/msg/Image"
            topics.append(topic)
        elif kind == "Plot":
            for path in panel["paths"]:
                topic, _, field = path["value"].partition(".")
                assert field in fields_of(published[topic]), path
        elif kind == "RawMessages":
            topics.append(panel["topicPath"])
        elif kind == "DiagnosticSummary":
            topics.append(panel["topicToRender"])
        elif kind == "Publish":
            assert named("subscription")[panel["topicName"]] == panel["datatype"]
        elif kind == "CallService":
            assert panel["serviceName"] in named("service")
        else:
            pytest.fail(f"panel {name} is not checked")
    assert len(topics) >= 6
    assert set(topics) <= set(published)

    def placed(node):
        return {node} if isinstance(node, str) else placed(node["first"]) | placed(node["second"])

    assert placed(layout["layout"]) == set(panels)


def test_plotjuggler():
    root = ElementTree.parse(CONFIG / "plotjuggler" / "robovlms.xml").getroot()
    topics = {topic.get("name") for topic in root.iter("topic")}
    # The node subscribes to the joint states; the robot publishes them.
    known = {**named("publisher"), "/joint_states": named("subscription")["/joint_states"]}
    assert topics <= set(known)
    curves = [curve.get("name") for curve in root.iter("curve")]
    assert len(curves) > 10
    robot = yaml.safe_load((CONFIG / "robots" / "panda.yaml").read_text(encoding="utf-8"))
    for curve in curves:
        topic = next(topic for topic in topics if curve.startswith(f"{topic}/"))
        field = curve.removeprefix(f"{topic}/")
        if known[topic].startswith("robovlms_ros"):
            assert field in fields_of(known[topic]), curve
        elif topic == "/joint_states":
            assert field.partition("/")[0] in robot["joints"], curve
            assert field.endswith("/position")
        else:
            assert re.fullmatch(r"points\[0\]/positions\[[0-6]\]", field), curve


