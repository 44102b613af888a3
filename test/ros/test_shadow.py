"""A policy that infers and commands nothing, through real DDS, while the arm moves.

- A person drives: chunks are on ~/shadow/chunk alone, and their disagreement is a topic.
- A second checkpoint is a shadow all the time; its failure does not stop the arm.
- ~/switch_policy swaps both without a step, again and again; without a second policy, and while
  the node is inactive, it is refused.
- A second policy that does not fit into memory, or takes another camera, is refused at configure.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.ros


class ShadowListener:
    """Shadow chunks and disagreements of a graph's node, and its Trigger services."""

    def __init__(self, graph):
        from rclpy.node import Node
        from ros_graph import Spinner
        from sensor_msgs.msg import JointState
        from std_srvs.srv import Trigger

        from robovlms_ros.msg import ActionChunk

        self.graph = graph
        self.chunks = []
        self.disagreements = []
        self.node = Node("shadow_listener", namespace=graph.namespace)
        self.node.create_subscription(ActionChunk, "vla/shadow/chunk", self.chunks.append, 50)
        self.node.create_subscription(
            JointState, "vla/shadow/disagreement", self.disagreements.append, 50
        )
        self._services = {
            name: self.node.create_client(Trigger, f"vla/{name}")
            for name in ("take_over", "hand_back", "switch_policy")
        }
        self._spinner = Spinner(self.node)

    def call(self, name):
        return self.graph.answer(self._services[name])

    def close(self):
        self._spinner.close()


@pytest.fixture(scope="module")
def second_checkpoint(ros, tmp_path_factory):
    """Another tiny policy, whose hidden state is larger."""
    from ros_graph import TINY

    from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy
    from robovlms_ros.config.policy import config_from_mapping

    config = config_from_mapping(TINY)
    return save_policy(build_policy(config, seed=4), tmp_path_factory.mktemp("shadow") / "second")


@pytest.fixture
def shadow(request):
    """A ShadowListener of the test's graph: shadow(graph)."""
    made = []

    def make(graph):
        made.append(ShadowListener(graph))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


def worst_step(graph, begin=0):
    from test_execute import worst_step as worst

    return worst(graph, begin)


def test_while_a_person_drives(live, shadow):
    listener = shadow(live)
    live.run()
    assert not listener.chunks
    assert listener.call("take_over").success
    live.held("waiting", "a person drives")
    published = len(live.listener.chunks)
    live.wait_for(lambda: len(listener.disagreements) > 3, "disagreements")
    assert len(listener.chunks) > 3
    assert len(live.listener.chunks) <= published + 1
    robot = live.arm.robot
    for message in listener.disagreements:
        assert list(message.name) == [*robot.joints, robot.eef_frame]
        assert np.isfinite(message.position).all() and message.position[-1] >= 0.0
        assert message.header.frame_id == live.listener.status.policy_id
    last = listener.disagreements[-1].header.stamp
    assert last in [chunk.header.stamp for chunk in listener.chunks]
    refused = listener.call("switch_policy")
    assert not refused.success and "shadow_checkpoint is empty" in refused.message
    assert listener.call("hand_back").success
    live.listener.wait_state("running")
    count = len(listener.chunks)
    live.wait_for(lambda: len(live.listener.chunks) > published + 5, "the policy's chunks")
    assert len(listener.chunks) <= count + 1


def test_two_policies(make_graph, shadow, second_checkpoint):
    from fake_policies import Injected

    graph = make_graph(shadow_checkpoint=str(second_checkpoint))
    listener = shadow(graph)
    assert not listener.call("switch_policy").success
    graph.activate()
    graph.run()
    begin = len(graph.sent)
    first = graph.listener.status.policy_id
    graph.wait_for(lambda: listener.disagreements, "disagreements")
    second = listener.chunks[-1].policy_id
    assert first != second and listener.disagreements[-1].header.frame_id == second
    assert {chunk.policy_id for chunk in graph.listener.chunks} == {first}
    for policy, other in ((second, first), (first, second)):
        moment = graph.node.now_ns()
        answer = listener.call("switch_policy")
        assert answer.success and policy in answer.message
        graph.wait_for(lambda p=policy: graph.listener.status.policy_id == p, "the status")
        graph.wait_for(lambda p=policy: graph.listener.chunks[-1].policy_id == p, "its chunks")
        graph.wait_for(lambda o=other: listener.chunks[-1].policy_id == o, "the other's")
        graph.wait_for(lambda m=moment: graph.sent[-1][0] > m + 10**9, "its commands")
        graph.listener.wait_state("running")
    assert worst_step(graph, begin) < 1e-3
    assert not graph.arm.rejected

    def fails(original, observation):
        raise ValueError("out of order")

    session = graph.node._session
    graph.node._session = graph.node._loaded[graph.node._shadow_worker].session
    injected = Injected(graph, fails)
    graph.node._session = session
    with injected:
        count = len(graph.listener.chunks)
        graph.wait_for(lambda: len(graph.listener.chunks) > count + 5, "the policy's chunks")
        graph.listener.wait_state("running")


def test_refused_at_configure(make_graph, second_checkpoint, tmp_path, monkeypatch):
    from test_configure import refused

    from robovlms_ros.checkpoints import preflight

    graph = make_graph(shadow_checkpoint=str(tmp_path / "nowhere"))
    assert "shadow_checkpoint" in refused(graph) and "no such checkpoint" in refused(graph)
    free = iter((10**12, 10_000))
    monkeypatch.setattr(preflight, "available_memory", lambda device: next(free))
    graph = make_graph(shadow_checkpoint=str(second_checkpoint))
    reason = refused(graph)
    assert "shadow_checkpoint" in reason and "GB needed on cpu" in reason and "GB free" in reason
