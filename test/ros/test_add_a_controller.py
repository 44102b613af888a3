"""docs/add_a_controller.md, followed to the letter.

- the two modules on the page have at most 40 lines of code;
- the package built from the page installs; its type is found and read without ROS;
- its adapter sends admitted commands only, and a whole node moves an arm by it;
- an unknown type, a broken entry point and an adapter with a send() of its own are refused.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import TrajectoryCommand

pytestmark = pytest.mark.ros

PAGE = Path(__file__).parents[2] / "docs" / "add_a_controller.md"
TOPIC = "isaac_joint_commands"
WITHOUT_ROS = """
import sys
sys.modules["rclpy"] = sys.modules["sensor_msgs"] = None
sys.path[:0] = {path!r}
from robovlms_ros.control.robot import load_robot
print(load_robot({robot!r}).controller)
"""


def files_on_the_page() -> dict[str, str]:
    """File name -> content of the page's fenced blocks that name a file."""
    return {
        m[2]: m[3]
        for m in re.finditer(r"^```(\w+) (\S+)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip installed the page's package."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name, content in files_on_the_page().items():
        (source / name).write_text(content)
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run([*install, "--target", str(site), str(source)], check=True)
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(site))


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that installs a module `broken` and an entry point `broken` to a target in it."""

    def make(source: str, target: str = "broken:Spec") -> None:
        (tmp_path / "broken.py").write_text(source)
        info = tmp_path / "broken-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[robovlms_ros.controllers]\nbroken = {target}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "broken", raising=False)

    return make


def use(controller: dict[str, object]):
    return lambda robot: robot.update(controller=controller)


def test_the_page_is_short():
    files = files_on_the_page()
    assert set(files) == {
        "robovlms_joint_state.py",
        "robovlms_joint_state_arm.py",
        "pyproject.toml",
    }
    code = [
        line
        for name in files
        if name.endswith(".py")
        for line in files[name].splitlines()
        if line.strip()
    ]
    assert len(code) <= 40


def test_the_type_is_read_without_ros(site, make_robot):
    robot = make_robot(use({"type": "joint_state", "topic": TOPIC}))
    code = WITHOUT_ROS.format(path=[str(site), str(PAGE.parents[1])], robot=robot)
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert f"JointStateCommand(type='joint_state', topic='{TOPIC}', rate=60.0)" in result.stdout


def test_the_block_is_checked(installed, make_robot):
    cases = (
        (
            {"type": "joint_stat", "topic": TOPIC},
            "controller.type = 'joint_stat': unknown. Did you mean 'joint_state'?",
        ),
        ({"type": "joint_state", "topic": "a b"}, "controller.topic = 'a b': must be a ROS name"),
        (
            {"type": "joint_state", "topic": TOPIC, "rate": 1.0},
            "controller.rate = 1.0: must be from 20 to 1000 Hz",
        ),
        ({"type": "joint_state", "topic": TOPIC, "ratte": 1.0}, "Did you mean 'rate'?"),
        ({"type": "joint_state"}, "'topic' is missing"),
    )
    for block, message in cases:
        with pytest.raises(ConfigError) as error:
            load_robot(make_robot(use(block)))
        assert message in str(error.value)


def test_the_type_is_unknown_without_the_package(make_robot):
    with pytest.raises(ConfigError, match=r"controller\.type = 'joint_state': unknown"):
        load_robot(make_robot(use({"type": "joint_state", "topic": TOPIC})))


def test_the_adapter_sends_admitted_commands_only(installed, stage):
    from sensor_msgs.msg import JointState

    from robovlms_ros.ros.controllers.base import ControllerError

    arm = stage.arm(JointState, TOPIC, type="joint_state", topic=TOPIC, rate=50.0)
    admitted = stage.command(10**9, delta=0.2)
    with pytest.raises(ControllerError, match="not admitted"):
        arm.send(TrajectoryCommand(**vars(admitted)), 10**9)
    assert stage.sent == 0
    arm.send(admitted, 10**9)
    stage.play(arm, 10**9 + 20_000_000, 3 * 10**9)
    goal = stage.position + 0.2
    stage.wait_for(
        lambda: stage.heard and np.allclose(stage.heard[-1].position, goal), "the last target"
    )
    first = stage.heard[0]
    assert list(first.name) == list(stage.robot.joints)
    np.testing.assert_allclose(first.position, stage.position, atol=1e-9)
    steps = np.abs(np.diff([message.position for message in stage.heard], axis=0))
    assert (steps <= np.array(stage.robot.limits.velocity) * 0.02 + 1e-9).all()
    assert arm.name.endswith(TOPIC)


def test_a_node_moves_an_arm_by_it(installed, make_graph, make_robot):
    from sensor_msgs.msg import JointState

    graph = make_graph(robot=make_robot(use({"type": "joint_state", "topic": TOPIC})))
    targets = []
    graph.listener.create_subscription(JointState, TOPIC, targets.append, 100)
    graph.activate()
    assert not targets, "nothing is sent before an instruction"
    graph.listener.instruct("lift the red cube")
    graph.wait_for(lambda: len(targets) > 20, lambda: f"targets, it is {graph.listener.said()}")
    np.testing.assert_allclose(targets[0].position, graph.arm.robot.home, atol=0.01)
    assert list(targets[0].name) == list(graph.arm.robot.joints)


SPEC = """
from dataclasses import dataclass
from typing import Literal
from robovlms_ros.control.controller_types import ArmController

@dataclass(frozen=True)
class Spec(ArmController):
    adapter = {adapter!r}
    type: Literal["broken"]
"""
AROUND = """
from robovlms_ros.ros.controllers.base import Arm

class Around(Arm):
    def send(self, command, now_ns):
        pass
"""


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (
            SPEC.format(adapter="broken:Arm"),
            "broken:Missing",
            "controller 'broken' cannot be imported",
        ),
        (SPEC.format(adapter="broken:Arm"), "nowhere:Spec", "No module named 'nowhere'"),
        (SPEC.format(adapter=""), "broken:Spec", "Spec.adapter = '': must be 'module:Class'"),
        ("class Spec: pass", "broken:Spec", "must be a dataclass that derives from ArmController"),
    ],
)
def test_a_broken_entry_point_is_named(register, make_robot, source, target, message):
    register(source, target)
    with pytest.raises(ConfigError, match="robot|panda") as error:
        load_robot(make_robot(use({"type": "broken"})))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("adapter", "more", "message"),
    [
        (
            "broken:Missing",
            "",
            "adapter of controller type 'broken' cannot be imported from 'broken:Missing'",
        ),
        ("broken:Spec", "", "must be a subclass of Arm"),
        ("broken:Around", AROUND, "overrides send(); it must define _send() instead"),
    ],
)
def test_a_broken_adapter_is_refused(register, stage, adapter, more, message):
    from robovlms_ros.ros.controllers.base import ControllerError
    from robovlms_ros.ros.controllers.table import make_arm

    register(SPEC.format(adapter=adapter) + more)
    with pytest.raises(ControllerError) as error:
        make_arm(stage.context(controller={"type": "broken"}))
    assert message in str(error.value)
