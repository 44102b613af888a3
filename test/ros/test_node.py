"""The policy node over the real middleware: what it hears and never hears, the latched instruction, dry_run, stops that
leave the arm held, pause and reset, a new instruction, simulated time that jumps back, two robots on one network.
"""

import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

OBJECT_POSES = ("truth", "pose", "tf", "object", "cube")


def test_hears_only_cameras_joints_and_the_instruction(live):
    space = f"/{live.namespace}"
    heard = {topic for topic, _ in live.node.get_subscriber_names_and_types_by_node("vla", space)}
    status = "panda_arm_controller/follow_joint_trajectory/_action/status"  # goals of other clients
    names = (
        "static/image_raw", "wrist/image_raw", "joint_states", "instruction", "success", status,
        "vla/human/twist", "vla/human/joint_states", "vla/human/joint_trajectory",
        "vla/human/pose", "vla/human/joy", "vla/human/gripper",
        "panda_arm_controller/transition_event",  # its lifecycle
    )
    # Only the type of the arm's controller and its parameters are read there.
    heard.discard("/parameter_events")
    assert heard == {f"{space}/{name}" for name in names}
    heard.remove(f"{space}/vla/human/pose")  # a command
    assert not any(word in topic for topic in heard for word in OBJECT_POSES)


def test_imports_no_simulator(ros):
    code = "import sys, robovlms_ros.ros.vla_node; print([m for m in sys.modules if m.startswith('robovlms_ros.sim')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "[]"


def test_what_it_says(live):
    live.run()
    full = []

    def measured():
        full[:] = [s for s in live.listener.statuses if s.history_have == 2 and s.latency_count > 0]
        return full

    live.wait_for(measured, "a full history and latencies")
    status = full[-1]
    assert (status.instruction, status.dry_run) == ("lift the red cube", False)
    name, passport = status.policy_id.split("@")
    assert name == "tiny" and all(passport.split("-"))
    assert 0 < status.inference_p50 <= status.inference_p99
    assert 0 < status.latency_p50 <= status.latency_p99
    name = f"/{live.namespace}/vla"
    live.wait_for(lambda: any(d.status[0].hardware_id == name and "running" in d.status[0].message
                              for d in live.listener.diagnostics), "diagnostics")
    mine = [d for d in live.listener.diagnostics if d.status[0].hardware_id == name]
    names = {s.name.removeprefix(f"{name}: ") for s in mine[-1].status}
    assert {"policy", "inputs", "controller", "image_stale", "camera_clock", "inference_late"} <= names


def test_chunks_carry_their_meaning(live):
    from robovlms_ros.evaluation.bags.chunks import chunk_of_message
    from robovlms_ros.ros.messages import chunk_to_message

    live.run()
    live.wait_for(lambda: len(live.listener.chunks) > 2, "chunks")
    message = live.listener.chunks[-1]
    chunk = chunk_of_message(message)
    assert chunk_to_message(chunk, message.header.frame_id) == message
    assert chunk.values.shape == (40, 7) and chunk.spec.composition == "from_observation"
    assert message.header.frame_id == "panda_link0"
    assert chunk.timing.image_ns == chunk.stamp_ns <= chunk.timing.inference_start_ns < chunk.timing.inference_end_ns


def test_the_motion_is_smooth_and_no_command_is_rejected(live):
    live.run()
    begin = len(live.arm.commands)
    live.wait_for(lambda: len(live.arm.commands) > begin + 10, "commands")
    for _, message in live.arm.commands[begin:]:
        times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message.points]
        assert np.all(np.diff(times) > 0)
        assert not any(message.points[-1].velocities)
        assert message.joint_names == list(live.arm.robot.joints)
    assert not live.arm.rejected


def test_pause_holds_and_goes_on_from_wherever_the_arm_is(live):
    live.run()
    assert live.listener.call("pause", data=True).success
    live.held("paused")
    moved = live.arm.positions + 0.1
    try:
        live.put_arm(moved)
        moment = time.time_ns()
        assert live.listener.call("pause", data=False).success
        live.wait_for(lambda: live.arm.commands_since(moment), "a command")
        first = live.arm.commands_since(moment)[0].points[0].positions
        assert np.abs(np.array(first) - moved).max() < 0.09
    finally:
        live.listener.call("pause", data=True)
        live.put_arm(live.arm.robot.home)
        live.listener.call("pause", data=False)


def test_reset_forgets_the_history(live):
    live.run()
    live.wait_for(lambda: live.listener.status.history_have == 2, "a full history")
    moment = live.node.now_ns()
    assert live.listener.call("reset").success
    from robovlms_ros.ros.messages import from_time

    live.wait_for(lambda: from_time(live.listener.chunks[-1].header.stamp) > moment, "a chunk after the reset")
    live.wait_for(lambda: "reset" in live.listener.status.last_stop, live.listener.said)
    live.listener.wait_state("running")


def test_a_new_instruction_takes_effect_at_the_next_inference(live):
    live.run("lift the red cube")
    for words in ("lift the green cube", "lift the red cube"):
        chunks = len(live.listener.chunks)
        live.listener.instruct(words)
        live.wait_for(lambda n=chunks, w=words: any(c.instruction == w for c in live.listener.chunks[n:]), words)
        at = next(i for i, c in enumerate(live.listener.chunks[chunks:]) if c.instruction == words)
        later = live.listener.chunks[chunks + at:]
        assert {c.instruction for c in later} == {words}
    live.listener.wait_state("running")


def test_deactivate_leaves_the_arm_held(live):
    from rclpy.lifecycle import TransitionCallbackReturn

    live.run()
    assert live.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    live.held("inactive")
    live.wait_for(lambda: live.listener.status.last_stop == "deactivated", "the reason")
    assert not live.listener.call("pause", data=True).success
    assert live.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    live.run()


def test_dry_run_moves_nothing(make_graph):
    graph = make_graph(dry_run=True)
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.wait_for(lambda: len(graph.listener.chunks) > 5, "chunks")
    graph.listener.wait_state("running")
    assert not graph.arm.commands and not graph.arm.gripper_commands
    offered = graph.node.get_publisher_names_and_types_by_node("vla", f"/{graph.namespace}")
    moving = {topic for topic, kinds in offered if any("JointTrajectory" in k for k in kinds)}
    assert moving == {f"/{graph.namespace}/vla/planned_trajectory"}, "a preview, no controller's"


def test_two_robots_on_one_network(make_graph):
    left, right = make_graph(), make_graph()
    for graph in (left, right):
        graph.activate()
    left.listener.instruct("lift the red cube")
    right.listener.instruct("lift the green cube")
    for graph, words in ((left, "lift the red cube"), (right, "lift the green cube")):
        graph.wait_for(lambda g=graph: g.arm.commands and g.listener.chunks, "commands")
        graph.listener.wait_state("running")
        assert {c.instruction for c in graph.listener.chunks} == {words}
    left.node.trigger_deactivate()
    left.held("inactive")
    moment = time.time_ns()
    right.wait_for(lambda: right.arm.commands_since(moment), "the other arm's commands")
    right.listener.wait_state("running")


def test_simulated_time_rules_and_may_jump_back(make_graph):
    graph = make_graph(use_sim_time=True)
    graph.arm.clock_ns = 1_000 * 10**9
    graph.activate()
    graph.run()
    stamp = graph.arm.commands[-1][1].header.stamp
    assert 999 < stamp.sec < 1_500
    graph.arm.rewind(500 * 10**9)
    graph.wait_for(lambda: any(400 < c.header.stamp.sec < 900 for c in graph.listener.chunks), "chunks of the new time")
    graph.wait_for(lambda: "clock jumped" in graph.listener.status.last_stop, "the reason")
    graph.listener.wait_state("running")


def test_a_clock_that_stands_still_is_not_stale(make_graph):
    graph = make_graph(use_sim_time=True, max_age=2.0)
    graph.arm.clock_ns = 1_000 * 10**9
    graph.activate()
    graph.run()
    graph.arm.frozen = True
    count = len(graph.listener.statuses)
    time.sleep(3.0)
    assert not [s for s in graph.listener.statuses[count:] if "stale" in s.detail or "stopped" in s.detail]
    graph.arm.frozen = False
    chunks = len(graph.listener.chunks)
    graph.wait_for(lambda: len(graph.listener.chunks) > chunks, "chunks after the standstill")


def test_a_camera_that_never_speaks(make_graph):
    graph = make_graph(cameras=["static", "wrist"], **{"camera__wrist__topic": "elsewhere/image_raw"})
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.listener.wait_state("waiting", "camera wrist sent no image yet")
    graph.listener.wait_state("waiting", "/elsewhere/image_raw")
    assert not graph.arm.commands and not graph.listener.chunks


def test_an_instruction_from_before_the_node_is_heard(make_graph, ros):
    graph = make_graph(resume_instruction=True)
    graph.listener.instruct("lift the green cube")
    time.sleep(0.5)
    graph.activate()
    graph.listener.wait_state("running")
    graph.wait_for(lambda: graph.listener.status.instruction == "lift the green cube", graph.listener.said)


def test_a_policy_that_is_too_slow_says_so(make_graph):
    from rclpy.lifecycle import TransitionCallbackReturn

    graph = make_graph(added_latency=3.0, on_short_horizon="refuse")
    assert graph.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    says = "a chunk of 40 steps of 0.100 s lasts 4.000 s"
    graph.wait_for(lambda: says in graph.listener.status.last_stop, "the numbers")


def test_added_latency_is_measured_and_covered(make_graph):
    graph = make_graph(added_latency=0.3)
    graph.activate()
    graph.run()
    graph.wait_for(lambda: graph.listener.status.latency_count > 3, "latencies")
    assert graph.listener.status.latency_p50 > 0.3
    graph.listener.wait_state("running")
    assert not graph.arm.rejected
