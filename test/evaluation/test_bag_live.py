"""The live node against the offline evaluation of the same bag, over the real middleware.

- a bag played slowly through DDS: every chunk of the live node equals the offline one within 1e-5, with the list of
  stamps that the live run inferred at, and without it;
- what the live run recorded is itself a bag that evaluates, with the chunks, the configuration and the instruction;
- the player: /clock, pause, jump back, loop.
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rclpy

pytestmark = pytest.mark.ros
sys.path.insert(0, str(Path(__file__).parents[1] / "ros"))

from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.evaluation.bags.chunks import chunk_of_message
from robovlms_ros.evaluation.bags.reader import Bag
from robovlms_ros.evaluation.replay.block import BlockSession
from robovlms_ros.evaluation.replay.evaluate import (
    EvaluationConfig,
    Setting,
    evaluate_bag,
    recorded_stamps,
)
from robovlms_ros.evaluation.replay.loop import Subject
from robovlms_ros.evaluation.replay.results import SubjectResult

TINY = {
    "model": {"backbone": "paligemma", "history_length": 3, "action_chunk_size": 6, "history_step": 0.2},
    "action_head": {"type": "lstm", "hidden_size": 16, "num_layers": 1},
    "vlm": {"size": "tiny", "vocabulary": ["lift", "the", "red", "green", "cube"]},
    "cameras": ["static", "wrist"], "proprioception": {"names": ["eef_position", "gripper"]},
    "action": {"space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
               "step_duration": 0.05, "units": {"translation": 0.01, "rotation": 0.02}, "gripper": {"open_value": 1}},
}


@pytest.fixture(scope="module")
def context():
    mine = not rclpy.ok()  # another folder's tests may have begun it, in whatever order they run
    if mine:
        rclpy.init()
    yield rclpy
    if mine:
        rclpy.try_shutdown()


def write(tools, path, seconds=2.4):
    """Images at 5 Hz that arrive 30 ms after they were taken, joint states at 50 Hz."""
    with tools.BagWriter(path) as bag:
        bag.instruction("lift the red cube", tools.BEGIN_NS)
        for tick in range(int(seconds * 100)):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            if tick % 2 == 0:
                bag.joints(now)
            if tick % 20 == 5:
                for camera in ("static", "wrist"):
                    bag.image(f"/{camera}/image_raw", now - 30_000_000, now)
    return path


def recorded_chunks(path, topic):
    with Bag(path) as bag:
        chunks = [chunk_of_message(bag.decode(raw)) for raw in bag.messages({topic})]
    return {chunk.stamp_ns: chunk.values for chunk in chunks}


def test_live_equals_offline(tools, context, robot, kinematics, tmp_path):
    import torch
    from rclpy.parameter import Parameter
    from ros_graph import Spinner, wait_for

    from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy, save_policy
    from robovlms_ros.config.policy import config_from_mapping
    from robovlms_ros.ros.player import Player, PlayOptions
    from robovlms_ros.ros.recording import RecordingNode, RecordingOptions, topics_of
    from robovlms_ros.ros.vla_node import VLANode

    torch.set_num_threads(1)
    checkpoint = save_policy(build_policy(config_from_mapping(TINY), seed=2), tmp_path / "checkpoint")
    bag = write(tools, tmp_path / "bag")
    values = {"checkpoint": str(checkpoint), "use_sim_time": True, "dry_run": True}
    node = VLANode("vla_node", parameter_overrides=[Parameter(n, value=v) for n, v in values.items()],
                   cli_args=["--ros-args", "-r", "__ns:=/parity"])
    spinner = Spinner(node, threads=3)
    recording = play_node = recording_spinner = None
    try:
        node.trigger_configure()
        node.trigger_activate()
        assert node.lifecycle_state == "active"
        parameters = node._declared.read()
        recording = RecordingNode(RecordingOptions(tmp_path / "live", topics_of(parameters, "parity"),
                                                   parameters=parameters, namespace="/parity", use_sim_time=True))
        recording_spinner = Spinner(recording)
        play_node = rclpy.create_node("player", use_global_arguments=False)
        remap = tuple((t, f"/parity{t}") for t in
                      ("/static/image_raw", "/wrist/image_raw", "/joint_states", "/instruction"))
        player = Player(play_node, bag, PlayOptions(rate=0.12, delay=3.0, remap=remap))
        player.run()
        wait_for(lambda: recording.recorder.counts.get("/parity/vla_node/action_chunk", 0) >= 12, "the last chunk")
        recording.recorder.close()
    finally:
        node.stop("the test is over")
        for each in (spinner, recording_spinner):
            if each is not None:
                each.close()
        if play_node is not None:
            play_node.destroy_node()

    policy = load_policy(checkpoint)
    setting = Setting(robot, kinematics, parameters.schedule, ("static", "wrist"),
                      EvaluationConfig(sensitivity=False, annotate=False, latencies=(0.05,)))
    subjects = [Subject("offline", lambda: BlockSession(policy), policy.config.action.spec, 6), Subject("live", None)]
    stamps = recorded_stamps(tmp_path / "live", setting.config.topics)
    assert len(stamps) == 12, "played slowly, every image is inferred"
    for given in (stamps, None):
        result = evaluate_bag(tmp_path / "live", subjects, setting, stamps=given)
        offline = SubjectResult.from_json(result["results"]["offline"])
        assert offline.chunks == offline.recorded.chunks == 12
        assert offline.recorded_max < 1e-5
    assert SubjectResult.from_json(result["results"]["live"]).chunks == 12
    offline_chunks = {}

    class Keeping(BlockSession):
        def predict_block(self, observations, wanted):
            chunks = super().predict_block(observations, wanted)
            offline_chunks.update({chunk.stamp_ns: chunk.values for chunk in chunks})
            return chunks

    evaluate_bag(bag, [Subject("original", lambda: Keeping(policy), policy.config.action.spec, 6)], setting)
    live_chunks = recorded_chunks(tmp_path / "live", "/parity/vla_node/action_chunk")
    assert live_chunks.keys() == offline_chunks.keys()
    for stamp, values in live_chunks.items():
        np.testing.assert_allclose(offline_chunks[stamp], values, atol=1e-5)


def test_the_player_keeps_the_bags_time(tools, context, tmp_path):
    import threading

    from ros_graph import Spinner, wait_for
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import JointState

    from robovlms_ros.ros.messages import from_time
    from robovlms_ros.ros.player import Player, PlayOptions

    bag = write(tools, tmp_path / "bag", 1.0)
    listener = rclpy.create_node("clock_listener", use_global_arguments=False)
    clocks, stamps = [], []
    listener.create_subscription(Clock, "/clock", lambda m: clocks.append(from_time(m.clock)), 100)
    listener.create_subscription(JointState, "/played/joint_states",
                                 lambda m: stamps.append(from_time(m.header.stamp)), 100)
    spinner = Spinner(listener)
    sender = rclpy.create_node("clock_player", use_global_arguments=False)
    try:
        remap = (("/joint_states", "/played/joint_states"),)
        options = PlayOptions(rate=1.0, delay=2.0, loop=True, topics=("/joint_states",), remap=remap)
        player = Player(sender, bag, options)
        thread = threading.Thread(target=player.run, daemon=True)
        thread.start()
        wait_for(lambda: len(stamps) > 10, "joint states")
        player.pause()
        wait_for(lambda: player.paused, "the pause")
        held = player.now_ns
        player.jump(0.0)
        player.resume()
        wait_for(lambda: any(b < a for a, b in pairwise(clocks)), "/clock to go back")
        wait_for(lambda: len(stamps) > 120, "the loop")
        player.stop()
        thread.join(30.0)
        assert not thread.is_alive()
        assert held > 0 and min(clocks) >= tools.BEGIN_NS and max(clocks) < tools.BEGIN_NS + NANOSECONDS
        assert set(stamps) <= {tools.BEGIN_NS + k * 20_000_000 for k in range(50)}
    finally:
        spinner.close()
        sender.destroy_node()


def test_recording_never_writes_over_another(context, tmp_path):
    from robovlms_ros.core.types import RoboVLMsError
    from robovlms_ros.ros.recording import RecordingOptions, bag_record_command, record

    options = RecordingOptions(tmp_path, ("/a", "/b"))
    with pytest.raises(RoboVLMsError, match="exists already"):
        record(options, print)
    assert bag_record_command(options).endswith("--topics /a /b")
