"""Recordings of the scripted operator: plain bags that `robovlms train --data` can read, drawn by
the seed; corrections where a policy drives first."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite")

from rosbags.rosbag2 import Reader

from robovlms_ros.cli.main import main
from robovlms_ros.core.types import NANOSECONDS, ActionChunk
from robovlms_ros.sim.relieved_policy import PATIENCE
from robovlms_ros.sim.rollout import RolloutFrame
from robovlms_ros.sim.tasks.expert import ACTION_SPEC
from robovlms_ros.sim.tasks.language import INSTRUCTIONS
from robovlms_ros.sim.training.operator import Operator, record_scene
from robovlms_ros.sim.world import SimWorld
from robovlms_ros.training.data.open_sources import open_sources
from robovlms_ros.training.runs import read_run

PACKAGE = Path(__file__).parents[2]


def test_a_scene_is_one_bag_with_an_episode_for_each_sentence(tmp_path, capsys):
    command = [
        "demo-data",
        "--recordings",
        "--episodes",
        "2",
        "--workers",
        "1",
        "--output",
        str(tmp_path / "bags"),
    ]
    assert main(command) == 0
    assert "2 episodes recorded, 2 of them done" in capsys.readouterr().out
    (bag,) = (tmp_path / "bags").glob("scene_*")
    with Reader(bag) as reader:
        topics = {connection.topic for connection in reader.connections}
        words = [
            bytes(data)
            for connection, _, data in reader.messages()
            if connection.topic == "/demo/instruction"
        ]
    assert [b"red" in text for text in words] == [True, False]
    assert topics == {
        "/demo/static/image_raw",
        "/demo/wrist/image_raw",
        "/demo/joint_states",
        "/demo/instruction",
        "/demo/panda_arm_controller/joint_trajectory",
        "/demo/gripper_controller/joint_trajectory",
    }
    before = bag.stat().st_mtime_ns
    assert main(command) == 0 and bag.stat().st_mtime_ns == before  # what is there is kept


def test_an_odd_number_of_episodes_has_no_pairs(tmp_path, capsys):
    assert main(["demo-data", "--recordings", "--episodes", "3", "--output", str(tmp_path)]) != 0
    assert "--unpaired" in capsys.readouterr().err


class Still:
    """A policy that keeps the arm where it is."""

    def reset(self):
        pass

    def observe(self, observation):
        pass

    def predict_action_chunk(self, observation):
        values = np.zeros((16, 7))
        values[:, 6] = 1.0
        words = observation.instruction
        return ActionChunk(observation.stamp_ns, values, ACTION_SPEC, words, "still", 0)


def test_the_operator_relieves_a_policy(tmp_path):
    world = SimWorld(1_000_000)
    words = list(INSTRUCTIONS)
    outcomes = record_scene(tmp_path / "bag", world, 1_000_000, words, policy=Still())
    world.close()
    assert all(outcome.success for outcome in outcomes)
    assert min(outcome.time_to_success for outcome in outcomes) > PATIENCE
    run = read_run(PACKAGE / "config/train/from_recordings.yaml")
    source = open_sources([tmp_path / "bag"], run.config, run.data)
    for index in range(len(words)):
        arrays = source.arrays(index)
        seconds = (arrays.stamps_ns - arrays.stamps_ns[0]) / NANOSECONDS
        person = arrays.takeover == 0
        begin = seconds[person][0]
        assert person[seconds >= begin].all() and not person[seconds < begin].any()
        assert PATIENCE <= begin < PATIENCE + 0.6  # a latency and the start of an episode
        arm = np.linalg.norm(arrays.actions[..., :3], axis=-1)
        # A label is the motion to the next frame.
        assert arm[seconds < begin - 0.06].max() < 1e-4 < arm[person].max()


def test_the_operator_hesitates_and_wavers_by_the_seed():
    world = SimWorld(1_000_000)
    pose = world.tool_pose()

    class Seen:
        instruction = "lift the red cube"

        class state:
            eef_pose = pose

    frame = RolloutFrame(Seen, world.ground_truth())
    still = np.zeros((16, 7))
    still[:, 0] = 0.01
    still[:, 6] = 1.0
    chunks = [
        ActionChunk(i * 50_000_000, still, ACTION_SPEC, Seen.instruction, "expert", i)
        for i in range(400)
    ]

    def driven(seed):
        operator = Operator(np.random.default_rng(seed))
        return np.stack([operator(chunk, frame).values for chunk in chunks])

    first = driven(0)
    np.testing.assert_array_equal(first, driven(0))
    assert np.abs(first - driven(1)).max() > 0
    stopped = (first[..., :6] == 0).all((1, 2))
    assert 0 < stopped.mean() < 0.5
    world.close()
