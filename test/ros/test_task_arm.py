"""`sim_arm` with a tabletop task: the scene comes with its sentence, its ground truth is what the task's judge reads,
another task from the next reset on, and a task that does not exist is refused without a new scene.
"""

import json

import pytest

pytest.importorskip("robosuite", reason="robosuite is not installed")

pytestmark = [pytest.mark.ros, pytest.mark.sim]


@pytest.fixture(scope="module")
def sim(ros):
    """The node at the scenes of `stack`, and what it says of them."""
    from rclpy.node import Node
    from rclpy.parameter import Parameter
    from ros_graph import Spinner
    from std_msgs.msg import String
    from std_srvs.srv import Trigger

    from robovlms_ros.sim.nodes.sim_arm import SimArmNode

    node = SimArmNode(parameter_overrides=[Parameter("task", value="stack"), Parameter("publish_clock", value=True)],
                      cli_args=["--ros-args", "-r", "__ns:=/tasktest"])
    ears = Node("ears", namespace="tasktest")
    ears.heard = []
    ears.create_subscription(String, "sim_arm/ground_truth", lambda m: ears.heard.append(json.loads(m.data)), 10)
    ears.resets = ears.create_client(Trigger, "sim_arm/reset")
    ears.sim = node
    spinners = [Spinner(ears), Spinner(node, node.controller)]
    yield ears
    for spinner in spinners:
        spinner.close()


def reset(sim, seed, task):
    from rclpy.parameter import Parameter
    from ros_graph import wait_for

    sim.sim.set_parameters([Parameter("seed", value=seed), Parameter("task", value=task)])
    wait_for(sim.resets.service_is_ready, "the reset service")
    future = sim.resets.call_async(sim.resets.srv_type.Request())
    wait_for(future.done, "the reset")
    return future.result()


def scene(sim, seed, task):
    from ros_graph import wait_for

    wait_for(lambda: sim.heard and (sim.heard[-1]["seed"], sim.heard[-1]["task"]) == (seed, task), "the scene")
    return sim.heard[-1]


def test_scene_comes_with_its_sentence_and_what_the_judge_reads(sim):
    from robovlms_ros.sim.tasks.base import judge
    from robovlms_ros.sim.tasks.language import meaning
    from robovlms_ros.sim.tasks.objects import TableTruth
    from robovlms_ros.sim.world import SimWorld

    truth = scene(sim, 0, "stack")
    expected = SimWorld(0, task="stack")
    assert truth["instruction"] == expected.sentence and meaning(truth["instruction"]).task == "stack"
    read = TableTruth.from_json(truth)
    for name, thing in expected.ground_truth().things.items():
        assert read.things[name].position == pytest.approx(thing.position, abs=2e-3)
    assert judge(truth["instruction"]).look(read) == (False, False)


def test_another_task_from_the_next_reset_on(sim):
    assert reset(sim, 5, "push").success
    assert scene(sim, 5, "push")["plates"]


def test_unknown_task_is_refused(sim):
    assert reset(sim, 6, "lift").success
    answer = reset(sim, 6, "juggle")
    assert not answer.success and "juggle" in answer.message
    assert scene(sim, 6, "lift")
    assert reset(sim, 7, "lift").success
