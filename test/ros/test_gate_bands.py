"""The gate's bands through the real graph: what a chunk asks for, and what the arm's controller is sent.

- pass: the commands do what the chunk says, smoothly, within the limits.
- clamp: what is too fast is slowed down within the limits, and the arm goes on moving.
- refuse: not finite, out of reach, ...: a smooth stop, nothing more, the reason in the status;
  inference goes on and commands flow again with the first good chunk.
- speed_scaling: ramps up after activation, and is lowered and raised while the node runs; the status has it.
- too many refusals in a row: the node deactivates, the arm held.
"""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module")
def graph(ros, tiny_checkpoint, make_robot):
    """An active graph whose speed scaling does not ramp, and whose last joint must be slow."""
    from ros_graph import Graph

    def change(robot):
        robot["gate"]["speed_scaling_ramp"] = 0.0
        robot["limits"]["velocity"][6] = 0.2

    graph = Graph(tiny_checkpoint, robot=make_robot(change))
    graph.activate()
    yield graph
    graph.close()


@pytest.fixture(autouse=True)
def at_home(request):
    """Each test leaves the arm where the next one can move it."""
    yield
    if "graph" not in request.fixturenames:
        return
    graph = request.getfixturevalue("graph")
    graph.listener.call("pause", data=True)
    graph.put_arm(graph.arm.robot.home)
    graph.listener.call("pause", data=False)


def speeds(messages):
    return np.abs([p.velocities for message in messages for p in message.points])


def commands_of(graph, step, count=4, skip=1):
    """Messages while the policy requests a step, after `skip` such chunks: `count` commands, and the verdicts."""
    from fake_policies import Injected, constant

    graph.run()
    verdicts = []
    executor = graph.node._runner._executor
    decide = executor.on_chunk

    def deciding(*given, **named):
        decision = decide(*given, **named)
        verdicts.append(decision.verdict)
        return decision

    with Injected(graph, constant(step)):
        first = len(graph.listener.chunks) + skip  # the chunk under way is still the policy's own
        graph.wait_for(lambda: len(graph.listener.chunks) > first, "such chunks")
        moment = time.time_ns()
        executor.on_chunk = deciding
        try:
            graph.wait_for(lambda: len(graph.arm.commands_since(moment)) >= count, graph.listener.said)
        finally:
            executor.on_chunk = decide
    return graph.arm.commands_since(moment)[:count], verdicts


def test_pass(graph):
    sent, verdicts = commands_of(graph, [0.0, 0.002, 0.0, 0.0, 0.0, 0.0])
    assert {v.kind for v in verdicts[:4]} == {"pass"}
    assert 0.001 < speeds(sent).max() <= max(graph.arm.robot.limits.velocity)
    assert not graph.arm.rejected
    graph.listener.wait_state("running")


def test_clamp(graph):
    """0.4 rad/s about the tool's axis: joint 7 may do 0.2, and does."""
    sent, verdicts = commands_of(graph, [0.0, 0.0, 0.0, 0.0, 0.0, 0.04])
    limits = np.array([*graph.arm.robot.limits.velocity[:6], 0.2])
    assert any(v.kind == "clamp" and "panda_joint7" in v.reason for v in verdicts[:4]), [v.reason for v in verdicts]
    assert (speeds(sent) <= limits * 1.01 + 1e-9).all()
    assert speeds(sent)[:, 6].max() > 0.15, "slowed down, not stopped"
    graph.wait_for(lambda: graph.listener.status.clamps > 0 and "panda_joint7" in graph.listener.status.last_clamp,
                   "the clamp in the status")
    assert not graph.arm.rejected


REFUSED = {
    "unreachable": ([0.2, 0.2, 0.2, 0.0, 0.0, 0.0], ""),
    "not finite": ([np.nan, 0.0, 0.0, 0.0, 0.0, 0.0], "not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuse_holds_and_infers_again(graph, case):
    from fake_policies import Injected, constant

    step, says = REFUSED[case]
    graph.run()
    with Injected(graph, constant(step)):
        graph.held("holding", says)
        before = graph.listener.status.refusals
        assert before > 0 and graph.listener.status.last_refusal
        graph.wait_for(lambda: graph.listener.status.refusals > before, "the next refusal: inference goes on")
    moment = time.time_ns()
    graph.wait_for(lambda: graph.arm.commands_since(moment), "commands")
    graph.listener.wait_state("running")


def set_live(graph, **values):
    """Set parameters as `ros2 param set` does; returns the reasons of what was refused."""
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    client = graph.listener.create_client(SetParameters, f"{graph.listener.target}/set_parameters")
    graph.wait_for(client.service_is_ready, "the parameter service")
    given = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    future = client.call_async(SetParameters.Request(parameters=given))
    graph.wait_for(future.done, "an answer")
    return [result.reason for result in future.result().results if not result.successful]


def test_speed_scaling_is_lowered_and_raised_at_run_time(graph):
    """Joint 7 is asked for 0.16 of its 0.2 rad/s; with half the speed scaling it gets 0.1."""
    ask = [0.0, 0.0, 0.0, 0.0, 0.0, 0.016]
    try:
        assert not set_live(graph, speed_scaling=0.5)
        graph.wait_for(lambda: graph.listener.status.authority == pytest.approx(0.5), "the speed scaling in the status")
        sent, _ = commands_of(graph, ask, skip=3)
        assert 0.05 < speeds(sent)[:, 6].max() <= 0.1 * 1.01
        (reason,) = set_live(graph, speed_scaling=1.5)
        assert "speed_scaling" in reason and "1.5" in reason
        (locked,) = set_live(graph, max_age=1.0)
        assert "only while the node is unconfigured" in locked
    finally:
        assert not set_live(graph, speed_scaling=0.0)
    graph.wait_for(lambda: graph.listener.status.authority == 1.0, "the robot's own speed scaling in the status")
    sent, _ = commands_of(graph, ask)
    assert speeds(sent)[:, 6].max() > 0.12


def test_speed_scaling_ramps_after_activation(make_graph):
    graph = make_graph(speed_scaling=0.8, speed_scaling_ramp=60.0)
    graph.activate()
    graph.run()
    graph.wait_for(lambda: graph.listener.status.authority > 0.05 * 0.8, "the ramp to begin")
    seen = [s.authority for s in graph.listener.statuses if s.state == "running"]
    assert seen == sorted(seen) and max(seen) < 0.8
    assert not set_live(graph, speed_scaling_ramp=0.0)
    graph.wait_for(lambda: graph.listener.status.authority == pytest.approx(0.8), "its end")


def test_deactivates_after_refusals_in_a_row(make_graph, make_robot):
    from fake_policies import Injected, constant

    # A busy machine makes a chunk or two too old at the start; not twenty in a row.
    graph = make_graph(robot=make_robot(lambda robot: robot["gate"].update(max_refusals=20)))
    graph.activate()
    graph.run()
    with Injected(graph, constant([np.nan] * 6)):
        graph.held("inactive")
    assert "refusals in a row" in graph.listener.status.last_refusal
