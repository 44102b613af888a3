"""One bag through the real middleware, played by `robovlms play` at 1x, 0.5x and 3x, and without the frames that are
off the history's sampling grid: at equal stamps the live node's actions are equal within 1e-5, though not the same
frames are inferred. The history matters in it: without it the last action is another one.
"""

import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros

BEGIN_NS, FRAME_NS = 5_000 * 10**9, 200_000_000
FRAMES = 11
GRID = 2  # every second frame is on the grid: TINY's history_step is set to 0.4 s
TOPICS = {"/static/image_raw": "sensor_msgs/msg/Image", "/wrist/image_raw": "sensor_msgs/msg/Image",
          "/joint_states": "sensor_msgs/msg/JointState", "/instruction": "std_msgs/msg/String"}


def frame_stamp(index):
    return BEGIN_NS + 10**9 + index * FRAME_NS


def write_bag(path, kept):
    """A second of joint states, then images at 5 Hz of the frames in `kept`, joint states throughout."""
    from rclpy.serialization import serialize_message
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore
    from sensor_msgs.msg import Image, JointState
    from std_msgs.msg import String

    from robovlms_ros.control.robot import load_robot
    from robovlms_ros.ros.messages import to_time

    robot, rng = load_robot("panda"), np.random.default_rng(5)
    pixels = {(i, camera): rng.integers(0, 256, 32 * 32 * 3, dtype=np.uint8)
              for i in range(FRAMES) for camera in ("static", "wrist")}
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        store = get_typestore(Stores.ROS2_JAZZY)
        connections = {topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in TOPICS.items()}
        writer.write(connections["/instruction"], BEGIN_NS, serialize_message(String(data="lift the red cube")))
        for now in range(BEGIN_NS, frame_stamp(FRAMES), 20_000_000):
            state = JointState(name=list(robot.joints), position=list(robot.home))
            state.header.stamp = to_time(now)
            writer.write(connections["/joint_states"], now, serialize_message(state))
            index, rest = divmod(now - frame_stamp(0), FRAME_NS)
            if rest or index not in kept:
                continue
            for camera in ("static", "wrist"):
                image = Image(width=32, height=32, encoding="rgb8", step=96)
                image.header.stamp = to_time(now)
                image.data.frombytes(pixels[index, camera].tobytes())
                writer.write(connections[f"/{camera}/image_raw"], now, serialize_message(image))
    return path


def play(graph, bag, kept, rate):
    """Chunks (stamp -> values) of a play in which every frame was heard, and the frames; a busy machine plays again."""
    from ros_graph import wait_for

    from robovlms_ros.ros.messages import from_time

    heard = []
    hand_on = graph.node._inputs._on_observation

    def note(observation):
        heard.append(observation)
        hand_on(observation)

    graph.node._inputs._on_observation = note
    remap = [part for topic in TOPICS for part in ("--remap", f"{topic}:=/{graph.namespace}{topic}")]
    command = [sys.executable, "-m", "robovlms_ros.cli", "play", str(bag), "--rate", str(rate), *remap]
    moment = 0

    def chunks():
        return {from_time(c.header.stamp): np.array(c.values) for c in graph.listener.chunks_since(moment)}

    wanted = [frame_stamp(i) for i in kept]
    try:
        # s for the discovery of the player's publishers, long on a busy machine
        for delay in (2, 4, 8, 16, 32):
            heard.clear()
            moment = time.time_ns()
            subprocess.run(
                [*command, "--delay", str(delay)],
                check=True, timeout=300, stdin=subprocess.DEVNULL, capture_output=True,
            )
            if [observation.stamp_ns for observation in heard] == wanted:
                wait_for(lambda: wanted[-1] in chunks(), "the last frame's chunk")
                return chunks(), list(heard)
        pytest.fail(f"no play was heard whole: {len(heard)} of {len(kept)} frames")
    finally:
        graph.node._inputs._on_observation = hand_on


def test_equal_actions_at_equal_stamps(ros, make_graph, tmp_path):
    import copy

    import torch
    from fake_policies import Injected
    from ros_graph import TINY

    from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy
    from robovlms_ros.config.policy import config_from_mapping
    from robovlms_ros.inference.session import PolicySession

    config = copy.deepcopy(TINY)
    config["model"] |= {"history_length": 3, "history_step": GRID * FRAME_NS / 1e9}
    policy = build_policy(config_from_mapping(config), seed=4)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(2.0)  # a network fresh from its initialisation hardly looks at its inputs
    checkpoint = save_policy(policy, tmp_path / "checkpoint")
    everything = list(range(FRAMES))
    on_grid = everything[::GRID]
    whole, thin = write_bag(tmp_path / "whole", everything), write_bag(tmp_path / "thin", on_grid)
    graph = make_graph(checkpoint=checkpoint, use_sim_time=True, dry_run=True)
    graph.arm.frozen = True  # the bag speaks in its place
    graph.activate()

    def slow(original, observation):
        time.sleep(0.1)  # so that at 3x not every frame is inferred
        return original(observation)

    with Injected(graph, slow):
        played, heard = play(graph, whole, everything, 1.0)
        others = [play(graph, bag, kept, rate)[0] for bag, kept, rate in
                  ((whole, everything, 0.5), (whole, everything, 3.0), (thin, on_grid, 3.0))]
    for other in others:
        common = played.keys() & other.keys()
        assert len(common) >= 2 and frame_stamp(on_grid[-1]) in common
        for stamp in common:
            np.testing.assert_allclose(other[stamp], played[stamp], rtol=0, atol=1e-5)
    alone = PolicySession(graph.node._policy).predict_action_chunk(heard[-1])
    assert np.abs(alone.values.ravel() - played[heard[-1].stamp_ns]).max() > 1e-3, "the history matters"
