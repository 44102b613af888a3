"""One recorded motion of the simulated arm, by its trajectories and by its controller's reference.

- Labels of both are the same within the motion between two messages, in joint and tool space.
- A demonstration without a topic of trajectories (goals of an action) has the same labels.
"""

import numpy as np
import pytest

pytest.importorskip("robosuite")

from rosbags.rosbag2 import Reader, StoragePlugin, Writer

from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.evaluation.bags.reader import Bag
from robovlms_ros.sim import bags as sim_bags
from robovlms_ros.sim.rollout import EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.world import SimWorld
from robovlms_ros.training.data.open_sources import open_sources

pytestmark = pytest.mark.sim

TRAJECTORIES = "/demo/panda_arm_controller/joint_trajectory"
STATES = "/demo/panda_arm_controller/controller_state"
PERIOD_NS = NANOSECONDS // 50


@pytest.fixture
def recorded(tmp_path, monkeypatch, controller_states):
    """A bag of the expert's episode: the arm's trajectories and, at 50 Hz, its controller's
    state."""

    class RecordedState(sim_bags.SimulatedBag):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self._states = controller_states.of(self._store)

        def step(self):
            super().step()
            command = (
                self._world.arm_controller.last_command
            )  # for the instant that the step led to
            if self._world.time_ns % PERIOD_NS == 0 and command is not None:
                message = self._states.message(
                    self._header(self._world.time_ns), self._robot.joints, command[0]
                )
                self._write(STATES, self._states.KIND, message)

    monkeypatch.setattr(sim_bags, "SimulatedBag", RecordedState)
    world = SimWorld(7)
    loop = build_loop(world, "panda", EpisodeSettings(limit=6.0, latency=(0.03, 0.15)))
    robot = load_robot("panda")
    (outcome,) = sim_bags.record_episodes(
        tmp_path / "bag", loop, ExpertSession(world), robot, [(7, "lift the red cube")]
    )
    world.close()
    assert outcome.success
    return tmp_path / "bag"


def config(space):
    joints = load_robot("panda").joints
    dimensions = 7 if space == "eef_delta" else 8
    units = {"translation": 1.0, "rotation": 1.0} if space == "eef_delta" else {"joint": 1.0}
    action = {
        "space": space,
        "frame": "base",
        "rotation": "rotation_vector",
        "composition": "chained",
        "step_duration": 0.05,
        "units": units,
        "gripper": {"open_value": 1},
    }
    if space != "eef_delta":
        action["names"] = [*joints, "gripper"]
    return config_from_mapping(
        {
            "model": {
                "backbone": "paligemma",
                "history_length": 1,
                "history_step": 0.05,
                "action_chunk_size": 10,
            },
            "action_head": {"action_dim": dimensions},
            "cameras": ["static", "wrist"],
            "action": action,
        }
    )


def labels(path, space, **topics):
    """stamp -> (chunk (n, D), known (n,)) of a bag."""
    source = open_sources([path], config(space), {"bag": {"robot": "panda", "topics": topics}})
    found = {}
    for i in range(len(source)):
        arrays = source.arrays(i)
        found.update(
            {
                int(stamp): (chunk, known)
                for stamp, chunk, known in zip(
                    arrays.stamps_ns, arrays.chunks, arrays.known, strict=True
                )
            }
        )
    return found, source


def without_trajectories(path, target):
    """A copy of a bag without the arm's trajectories, as where they were goals of an action."""
    with (
        Bag(path) as bag,
        Reader(path) as reader,
        Writer(target, version=9, storage_plugin=StoragePlugin.MCAP) as out,
    ):
        kept = {
            c.id: out.add_connection(c.topic, c.msgtype, typestore=bag.types)
            for c in reader.connections
            if c.topic != TRAJECTORIES
        }
        for connection, time, data in reader.messages():
            if connection.id in kept:
                out.write(kept[connection.id], time, data)
    return target


def test_the_reference_gives_the_labels_of_the_trajectories(recorded, tmp_path):
    alone = without_trajectories(recorded, tmp_path / "alone")
    for space, most in (("joint_position", 5e-4), ("eef_delta", 2e-4)):  # rad; m and rad
        by_reference, source = labels(recorded, space)
        by_trajectories, _ = labels(recorded, space, commands=TRAJECTORIES)
        assert any(f"recorded commands: {STATES} (detected)" in note for note in source.notes)
        common = sorted(by_trajectories.keys() & by_reference.keys())
        # A trajectory is known to its end, the reference as long as the recording goes on.
        assert len(common) > 40 and set(common) >= {
            stamp for stamp in by_trajectories if stamp < common[-1]
        }
        differences = []
        for stamp in common:
            chunk, known = by_trajectories[stamp]
            other, also = by_reference[stamp]
            both = known & also
            differences.append(np.abs(chunk - other)[both].max(axis=1))
        differences = np.concatenate(differences)
        assert len(differences) > 300 and differences.max() < most
        for stamp, (chunk, known) in labels(alone, space)[0].items():
            assert np.array_equal(chunk, by_reference[stamp][0])
            assert np.array_equal(known, by_reference[stamp][1])
