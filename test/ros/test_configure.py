"""Configure refuses what cannot be run, with the reason in the status, and can be tried again in the same process: no
checkpoint, random weights outside dry_run, unreadable and wrong checkpoints, unknown backbones and parameters, values
out of range, robots and cameras that do not fit. Nothing is published that moves.
"""

import re
import shutil

import pytest
import yaml

pytestmark = pytest.mark.ros


def refused(graph):
    """The reason that configure gave."""
    from rclpy.lifecycle import TransitionCallbackReturn

    assert graph.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    found = []

    def told():
        status = graph.listener.status
        found[:] = [status.last_stop] if status.state == "unconfigured" and status.last_stop else []
        return found

    graph.wait_for(told, "the reason in the status")
    assert graph.node.lifecycle_state == "unconfigured"
    return found[0]


CASES = {
    "no checkpoint": ({"checkpoint": ""}, "checkpoint is empty.*robovlms convert"),
    "a backbone without a checkpoint, out of dry_run":
        ({"checkpoint": "", "backbone": "llava"}, "checkpoint is empty"),
    "random out of dry_run": ({"checkpoint": "random", "backbone": "paligemma"}, "random weights never move an arm"),
    "no such checkpoint": ({"checkpoint": "/nowhere/at/all"}, "no such checkpoint"),
    "unknown backbone": ({"backbone": "paligema"}, "Did you mean 'paligemma'"),
    "another backbone": ({"backbone": "kosmos"}, "the policy's backbone is 'paligemma'"),
    "unknown parameter": ({"chekpoint": "x"}, "Did you mean 'checkpoint'"),
    "out of range": ({"max_age": -1.0}, "max_age = -1.0: must be from 0 to 60"),
    "wrong type": ({"max_inference_rate": "fast"}, "must be a number"),
    "a word that YAML reads as a boolean": ({"instruction": False}, "instruction = False: must be a text.* quote it"),
    "unknown choice": ({"schedule__strategy": "fad"}, "Did you mean 'fade'"),
    "unknown robot": ({"robot": "pandora"}, "shipped config/robots: .*panda"),
    "unknown joystick": ({"joy_mapping": "wheel"}, "shipped config/joy: gamepad, spacemouse"),
    "unknown device": ({"device": "cuda:77"}, "device = 'cuda:77'"),
    "camera missing": ({"cameras": ["static", "side"]},
                       r"the policy takes the cameras static, wrist; parameter cameras = .* lacks 'wrist'"),
    "lines of a camera that is not named":
        ({"cameras": ["static"], "camera__wrist__topic": "a", "camera__wrist__transport": "raw"},
         r"^(?!.*wrist\.\*.*wrist\.\*).*`cameras` names static and not 'wrist'"),
    "bad camera name": ({"cameras": ["static image"]}, "letters, digits and underscores"),
    "long default instruction": ({"instruction": "lift " * 200}, "999 characters"),
}


@pytest.mark.untimed
@pytest.mark.parametrize("case", CASES)
def test_refuses(make_graph, case):
    values, says = CASES[case]
    graph = make_graph(**values)
    reason = refused(graph)
    assert re.search(says, reason), reason
    assert not graph.arm.commands


@pytest.mark.untimed
def test_cameras_that_do_not_fit_are_refused_before_the_weights_are_read(make_graph, tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "damaged")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "lacks 'wrist'" in refused(make_graph(checkpoint=str(folder), cameras=["static", "side"]))


@pytest.fixture
def broken(tiny_checkpoint, tmp_path):
    """A copy of the checkpoint, to be damaged."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "broken")


def change_config(folder, change):
    path = folder / "config.yaml"
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


DAMAGE = {
    "weights truncated": (lambda f: truncate(f / "model.safetensors"), "model.safetensors"),
    "weights no safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"PK\3\4" * 99), "safetensors"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "it has no weights"),
    "wrong shapes": (lambda f: change_config(f, lambda c: c["action_head"].update(hidden_size=48)), "shape"),
    "unknown key": (lambda f: change_config(f, lambda c: c["model"].update(histroy_length=3)),
                    "Did you mean 'history_length'"),
    "not yaml": (lambda f: (f / "config.yaml").write_text("a: [1"), "not valid YAML"),
    "not runnable": (lambda f: change_config(f, lambda c: c["model"].pop("history_step")), "history_step"),
}


@pytest.mark.untimed
@pytest.mark.parametrize("case", DAMAGE)
def test_refuses_a_damaged_checkpoint(make_graph, broken, case):
    damage, says = DAMAGE[case]
    damage(broken)
    graph = make_graph(checkpoint=broken)
    assert says in refused(graph)


@pytest.mark.untimed
def test_can_be_configured_again_after_setting_it_right(make_graph, tiny_checkpoint):
    from rclpy.lifecycle import TransitionCallbackReturn
    from rclpy.parameter import Parameter

    graph = make_graph(checkpoint="", max_age=99.0)
    assert "max_age" in refused(graph)
    results = graph.node.set_parameters([Parameter("checkpoint", value=str(tiny_checkpoint)),
                                         Parameter("max_age", value=0.5)])
    assert all(result.successful for result in results)
    assert graph.node.trigger_configure() == TransitionCallbackReturn.SUCCESS, graph.listener.status.last_stop
    (locked,) = graph.node.set_parameters([Parameter("max_age", value=0.4)])
    assert not locked.successful and "unconfigured" in locked.reason
    assert graph.node.trigger_cleanup() == TransitionCallbackReturn.SUCCESS
    (bad,) = graph.node.set_parameters([Parameter("max_age", value=99.0)])
    assert not bad.successful


def test_random_weights_run_in_dry_run(make_graph, tmp_path):
    from ros_graph import TINY

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    graph = make_graph(checkpoint="random", config=str(path), dry_run=True)
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.wait_for(lambda: len(graph.listener.chunks) > 2, "chunks")
    assert not graph.arm.commands


def test_the_robot_description_may_come_from_a_topic(make_graph, make_robot):
    from ros_graph import LATCHED
    from std_msgs.msg import String

    from robovlms_ros.core.resources import share_directory

    urdf = share_directory() / "config" / "robots" / "panda.urdf"
    graph = make_graph(robot=make_robot(lambda robot: robot.update(description={"topic": "robot_description"})))
    publisher = graph.listener.create_publisher(String, "robot_description", LATCHED)
    publisher.publish(String(data=urdf.read_text()))
    graph.activate()
    graph.run()


def test_the_example_policy_never_leaves_dry_run(make_graph):
    from rclpy.lifecycle import TransitionCallbackReturn

    graph = make_graph(checkpoint="", backbone="llava", dry_run=True)
    graph.activate()
    graph.listener.wait_state("waiting")
    assert graph.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert graph.set_parameter("dry_run", False).successful
    assert graph.node.trigger_activate() != TransitionCallbackReturn.SUCCESS
    graph.wait_for(
        lambda: "checkpoint is empty" in graph.listener.status.last_stop, graph.listener.said
    )
