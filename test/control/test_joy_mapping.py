"""A gamepad's or SpaceMouse's message as a tool velocity and a gripper opening.

- Every shipped mapping loads; a file by its path does too.
- Full deflection is the axis' scale, the dead zone is zero, and there is no step at its edge.
- The deadman button, or any deflection where none is mapped, decides who drives.
- A missing axis or button and a wrong mapping are refused with place, value and remedy.
"""

import numpy as np
import pytest

from robovlms_ros.control.joy_mapping import JoyAxis, JoyMapping, JoyRefused, load_joy_mapping
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import RoboVLMsError

SHIPPED = sorted(path.stem for path in (share_directory() / "config" / "joy").glob("*.yaml"))
PAD = load_joy_mapping("gamepad")
MOUSE = load_joy_mapping("spacemouse")


def pressed(*buttons):
    return [int(button in buttons) for button in range(11)]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_mappings(name):
    mapping = load_joy_mapping(name)
    for row, component in enumerate(("x", "y", "z", "rx", "ry", "rz")):
        axes = np.zeros(8)
        axes[mapping.axes[component].axis] = -1.0
        twist = mapping.twist(axes)
        assert twist[row] == -mapping.axes[component].scale
        assert np.count_nonzero(twist) == 1
    assert SHIPPED == ["gamepad", "spacemouse"]


def test_dead_zone():
    values = np.linspace(-1.2, 1.2, 481)
    twists = np.array([MOUSE.twist([value, 0, 0, 0, 0, 0])[0] for value in values])
    inside = np.abs(values) <= MOUSE.deadzone
    assert not twists[inside].any() and twists[~inside].all()
    assert np.abs(np.diff(twists)).max() < 0.002
    assert twists[-1] == MOUSE.axes["x"].scale
    assert np.isnan(MOUSE.twist([float("nan"), 0, 0, 0, 0, 0])[0])


def test_who_drives():
    rest = np.zeros(8)
    forward = np.ones(8)
    assert PAD.is_held(rest, pressed(PAD.deadman))
    assert not PAD.is_held(forward, pressed())
    assert MOUSE.is_held(forward, pressed())
    assert not MOUSE.is_held(rest, pressed(MOUSE.close))


def test_gripper_buttons():
    assert PAD.opening(pressed(PAD.close)) == 0.0
    assert PAD.opening(pressed(PAD.open)) == 1.0
    assert PAD.opening(pressed(PAD.deadman)) is None


def test_a_message_of_another_device():
    with pytest.raises(JoyRefused, match=r"axis 1 \(x\) is missing: the message has 1 axes"):
        PAD.twist([0.0])
    with pytest.raises(JoyRefused, match="button 4 is missing: the message has 2 buttons"):
        PAD.is_held(np.zeros(8), [0, 0])


@pytest.mark.parametrize(("text", "message"), [
    ("axes: {x: {axis: -1, scale: 0.1}}", "axis = -1: must be 0 or more"),
    ("axes: {x: {axis: 0, scale: 0.0}}", "scale = 0.0: must be a speed other than 0"),
    ("axes: {x: {axis: 0, scale: .inf}}", "scale = inf"),
    ("axes: {roll: {axis: 0, scale: 0.1}}", "axes = .*roll.*: must be one or more of x, y, z"),
    ("axes: {}", "axes = .*must be one or more of"),
    ("axes: {x: {axis: 0, scale: 0.1}}\nframe: world", "frame = 'world'"),
    ("axes: {x: {axis: 0, scale: 0.1}}\ndeadzone: 1.0", "deadzone = 1.0"),
    ("axes: {x: {axis: 0, scale: 0.1}}\nclose: 1\nopen: 1", "close, open = .*different buttons"),
    ("axes: {x: {axis: 0, scale: 0.1}}\ndead_man: 1", "dead_man.*Did you mean 'deadman'"),
    ("frame: base", "'axes' is missing"),
])
def test_wrong_mappings(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as refused:
        load_joy_mapping(path)
    assert str(path) in str(refused.value)


def test_an_own_mapping(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("axes: {z: {axis: 2, scale: -0.1}}\nframe: tool\n", encoding="utf-8")
    assert load_joy_mapping(path) == JoyMapping({"z": JoyAxis(2, -0.1)}, "tool")
    with pytest.raises(RoboVLMsError, match="gamepad, spacemouse"):
        load_joy_mapping("wheel")
