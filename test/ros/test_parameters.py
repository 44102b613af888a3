"""Parameters: config/vla.yaml and docs/parameters.md follow from the declaration.

- every value is checked against type, range and choices;
- unknown names are answered with the nearest known one; the defaults move nothing;
- names of the previous release are accepted with a warning: in values, in a robot's YAML, and by a
  node in overrides and at run time.
"""

import dataclasses
import re

import pytest
import yaml

from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.parameter_files import to_markdown, to_yaml
from robovlms_ros.ros.parameters import (
    PARAMETERS,
    NodeParameters,
    check_known,
    defaults,
    expand,
    from_values,
    of_this_release,
)


def test_shipped_yaml_is_written_from_the_table():
    shipped = (share_directory() / "config" / "vla.yaml").read_text(encoding="utf-8")
    assert shipped == to_yaml(), "run: python -m robovlms_ros.ros.parameter_files"
    assert yaml.safe_load(shipped)["/**"]["ros__parameters"] == defaults()


def test_the_page_is_written_from_the_table():
    page = (share_directory() / "docs" / "parameters.md").read_text(encoding="utf-8")
    assert page == to_markdown(), "run: python -m robovlms_ros.ros.parameter_files"
    assert all(f"| `{p.name}` |" in page and f"- `{p.name}`: " in page for p in PARAMETERS)


def test_defaults_are_complete_valid_and_still():
    parameters = from_values(defaults())
    assert parameters.dry_run and not parameters.checkpoint
    assert [(c.name, c.topic, c.transport) for c in parameters.cameras] == [
        ("static", "static/image_raw", "raw"), ("wrist", "wrist/image_raw", "raw")]
    fields = {f.name for f in dataclasses.fields(NodeParameters)}
    assert {p.name.split(".")[0] for p in PARAMETERS} - {"camera"} == fields


def test_every_parameter_says_what_it_is():
    assert all(len(p.description) > 10 for p in PARAMETERS)
    assert all(p.allowed() for p in PARAMETERS if type(p.default) in (int, float))
    assert all(type(p.default) is p.kind and p.check(p.default) == p.default for p in expand(["a"]))


def test_any_number_of_cameras():
    values = defaults(("left", "right", "hand"))
    values["camera.hand.transport"] = "compressed"
    cameras = from_values(values).cameras
    assert [c.topic for c in cameras] == ["left/image_raw", "right/image_raw", "hand/image_raw"]
    assert cameras[2].transport == "compressed"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("max_age", -0.5, "max_age = -0.5: must be from 0 to 60"),
        ("max_age", float("nan"), "must be from 0 to 60"),
        ("speed_scaling", 1.1, "speed_scaling = 1.1: must be from 0 to 1"),
        ("speed_scaling_ramp", -2.0, "must be from -1 to 600"),
        ("max_age", "long", "must be a number"),
        ("max_instruction_length", 0, "must be from 1"),
        ("dtype", "float23", "Did you mean 'float32'"),
        ("camera.static.transport", "jpeg", "Allowed: compressed, raw"),
        ("camera.static.topic", "not a topic", "ROS name"),
        ("dry_run", "no", "true or false"),
        ("cameras", [], "at least one"),
        ("cameras", ["a", "a"], "none twice"),
        ("cameras", ["a/b"], "letters"),
        ("watchdog.frozen_time", 0.0, "must be from 0.01"),
        ("schedule.strategy", "bland", "Did you mean 'blend'"),
    ],
)
def test_refused(name, value, says):
    values = {**defaults(), name: value}
    with pytest.raises(ConfigError, match=says):
        from_values(values)


def test_a_whole_number_serves_as_a_number():
    assert from_values({**defaults(), "max_age": 1}).max_age == 1.0


@pytest.mark.parametrize(("given", "wanted"), [
    ({}, (0.6, 2.0)), ({"speed_scaling": 0.3}, (0.3, 2.0)), ({"speed_scaling_ramp": 0.0}, (0.6, 0.0)),
    ({"speed_scaling": 1, "speed_scaling_ramp": 5}, (1.0, 5.0)),
])
def test_speed_scaling_is_the_robots_unless_given(given, wanted):
    from robovlms_ros.control.robot import GateConfig

    gate = GateConfig(speed_scaling=0.6, speed_scaling_ramp=2.0)
    assert from_values({**defaults(), **given}).speed_scaling_of(gate) == wanted


def test_unknown_name():
    with pytest.raises(ConfigError, match=r"'dry_rum'.*Did you mean 'dry_run'"):
        check_known(["dry_run", "dry_rum"], [p.name for p in expand(["static"])])


def test_lines_of_a_camera_that_is_not_named():
    says = r"camera\.static\.\*: `cameras` names wrist and not 'static'\. Add it there, or remove"
    with pytest.raises(ConfigError, match=says):
        check_known(["camera.static.topic"], [p.name for p in expand(["wrist"])])
    with pytest.raises(ConfigError, match=r"unknown parameter 'camera\.wrist\.topik'\. Did you mean"):
        check_known(["camera.wrist.topik"], [p.name for p in expand(["wrist"])])


@pytest.mark.parametrize(("values", "says"), [
    ({"camera.wrist.transport": "compressed", "camera.wrist.topic": "wrist/image_raw/compressed"},
     "appends /compressed itself. Give the base topic, 'wrist/image_raw'"),
    ({"camera.wrist.topic": "wrist/image_raw/compressed"}, "Set camera.wrist.transport to compressed"),
    ({"camera.wrist.transport": "compressed", "camera.wrist.encoding": "bgr8"}, "only raw images have an encoding"),
    ({"camera.wrist.encoding": "bgr16"}, "camera.wrist.encoding = 'bgr16': not allowed"),
])
def test_cameras_that_contradict_themselves(values, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        from_values({**defaults(), **values})


def test_the_encoding_of_a_camera():
    assert from_values(defaults()).cameras[1].encoding is None
    assert from_values({**defaults(), "camera.wrist.encoding": "bayer_rggb8"}).cameras[1].encoding == "bayer_rggb8"


def test_former_names_are_accepted_with_a_warning():
    warnings = []
    values = {"authority": 0.5, "schedule.max_deviation": 0.1, "max_age": 1.0}
    assert of_this_release(values, warnings.append) == {"speed_scaling": 0.5, "max_age": 1.0}
    assert "parameter authority is called speed_scaling now" in warnings[0]
    assert "schedule.max_deviation has no effect any more" in warnings[1]
    with pytest.raises(ConfigError, match="authority and speed_scaling are the same"):
        of_this_release({"authority": 0.5, "speed_scaling": 0.5}, warnings.append)


def test_former_keys_of_a_robots_gate(make_robot, caplog):
    def change(robot):
        robot["gate"] = {"authority": 0.4, "authority_ramp": 3.0}

    gate = load_robot(make_robot(change)).gate
    assert (gate.speed_scaling, gate.speed_scaling_ramp) == (0.4, 3.0)
    assert "gate.authority is called speed_scaling now" in caplog.text
    with pytest.raises(ConfigError, match="gate.authority and speed_scaling are the same"):
        load_robot(make_robot(lambda robot: robot["gate"].update(authority=1.0, speed_scaling=1.0)))


@pytest.mark.ros
@pytest.mark.untimed
def test_a_node_accepts_former_names(ros):
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    from robovlms_ros.ros.declare import DeclaredParameters

    changes = []
    overrides = [Parameter("authority", value=0.5)]
    node = Node("former_names", parameter_overrides=overrides)
    try:
        declared = DeclaredParameters(node, lambda: None, lambda: changes.append(1))
        assert declared.read().speed_scaling == 0.5
        assert not node.has_parameter("authority")
        (result,) = node.set_parameters([Parameter("authority", value=0.3)])
        assert result.successful and declared.read().speed_scaling == 0.3 and changes == [1]
        (result,) = node.set_parameters([Parameter("authority_ramp", value=-2.0)])
        assert not result.successful and "speed_scaling_ramp" in result.reason
        both = [Parameter("authority", value=0.2), Parameter("speed_scaling", value=0.1)]
        result = node.set_parameters_atomically(both)
        assert not result.successful and "given twice" in result.reason
        assert declared.read().speed_scaling == 0.3
    finally:
        node.destroy_node()


@pytest.mark.ros
@pytest.mark.untimed
def test_a_node_given_both_names_reports_it_until_one_is_set(ros):
    from rclpy.node import Node
    from rclpy.parameter import Parameter

    from robovlms_ros.ros.declare import DeclaredParameters

    both = [Parameter("authority", value=0.5), Parameter("speed_scaling", value=0.4)]
    node = Node("both_names", parameter_overrides=both)
    try:
        declared = DeclaredParameters(node, lambda: None, lambda: None)
        with pytest.raises(ConfigError, match="authority and speed_scaling are the same"):
            declared.read()
        (result,) = node.set_parameters([Parameter("speed_scaling", value=0.4)])
        assert result.successful and declared.read().speed_scaling == 0.4
    finally:
        node.destroy_node()


def test_a_removed_choice_names_its_remedy():
    said = "fast_path = 'int8': int8 and int4 were removed. Use bfloat16 weights"
    with pytest.raises(ConfigError, match=said):
        from_values({**defaults(), "fast_path": "int8"})
