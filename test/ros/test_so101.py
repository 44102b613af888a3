"""A simulated SO-101 behind the node, with the recorded actions of a LeRobot folder as the policy's
answers.

- The policy's configuration, the robot and the calibration pass configure; the node takes five
  joints and a jaw.
- Chunks read from percent of a calibrated arm drive the arm along the recorded path, in the
  driver's radians, within the limits, and the jaw to the positions of the robot's YAML at the
  places of the recording.
- An arm that lies beyond its planning limits, as without torque, moves back within them.
- The benchmark's judgement names a shifted zero, a turned sign, a missing and an early command of
  the gripper.
"""

import dataclasses
import functools

import numpy as np
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("pyarrow")
pytest.importorskip("av")

pytestmark = pytest.mark.ros

from robovlms_ros.bench.so101.episode import (
    CAMERA,
    CLOSED,
    INSTRUCTION,
    OPEN,
    scripted_episode,
    write_folder,
    write_robot,
)
from robovlms_ros.bench.so101.tracking import distances
from robovlms_ros.control.robot import load_robot

HORIZON = 30
NEAR = 0.08  # rad


class Replay:
    """Answers with the recorded actions after the recorded state nearest to the arm's, never going
    back."""

    def __init__(self, arrays):
        self.actions, self.states = arrays.actions, arrays.proprioception[:, :5]
        self.at = 0

    def __call__(self, original, observation):
        chunk = original(observation)
        ahead = self.states[self.at : self.at + HORIZON]
        self.at += int(np.abs(ahead - observation.state.positions).max(axis=1).argmin())
        rows = np.minimum(self.at + np.arange(HORIZON), len(self.actions) - 1)
        return dataclasses.replace(chunk, values=self.actions[rows])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("so101")
    write_folder(folder / "episodes", load_robot(write_robot(folder)), "percent")
    return folder


@pytest.fixture(scope="module")
def recorded(folder):
    """The shipped configuration with the folder's statistics, and the episode."""
    from robovlms_ros.core.resources import share_directory
    from robovlms_ros.training.data.statistics import compute_statistics, with_statistics
    from robovlms_ros.training.runs import open_data, read_run

    run = read_run(share_directory() / "config/train/so101.yaml")
    data = {"lerobot": {"robot": str(folder / "my_so101.yaml"), "units": "percent"}}
    source, _ = open_data(
        [folder / "episodes"], dataclasses.replace(run, data=data), lambda line: None
    )
    config = with_statistics(run.config, compute_statistics(source, [0], run.config))
    return config, source.arrays(0)


def test_recorded_percent_drive_the_arm_along_the_recorded_path(ros, folder, recorded, tmp_path):
    from fake_arm import FakeArm
    from fake_policies import Injected
    from ros_graph import Graph, wait_for

    from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy

    config, arrays = recorded
    checkpoint = save_policy(build_policy(config, seed=3), tmp_path / "policy")
    robot = str(folder / "my_so101.yaml")
    arm = functools.partial(FakeArm, robot=robot, cameras=(CAMERA,))
    graph = Graph(
        checkpoint,
        robot=robot,
        make_arm=arm,
        cameras=[CAMERA],
        **{f"camera__{CAMERA}__topic": f"{CAMERA}/image_raw"},
    )
    try:
        graph.activate()
        executed = []
        graph.arm.quirks["joint_states"] = lambda m: executed.append(list(m.position[:5])) or m
        replay = Replay(arrays)
        with Injected(graph, replay):
            graph.run(INSTRUCTION)
            last = arrays.actions[-1, :5]
            wait_for(
                lambda: (
                    replay.at > len(arrays.actions) - HORIZON
                    and np.abs(graph.arm.positions - last).max() < 0.02
                ),
                lambda: f"the end of the episode, it is at {replay.at}: {graph.listener.said()}",
            )
        assert not graph.arm.rejected
        # A slow machine may have chunks refused for their time, none for its numbers.
        assert "limit" not in graph.listener.status.last_refusal, graph.listener.said()
        spec = load_robot(robot)
        path = scripted_episode().commanded[:, :5]
        moved = np.array(executed)
        assert (moved >= spec.lower()).all() and (moved <= spec.upper()).all()
        assert distances(moved, path).max() < NEAR
        assert distances(path, moved).max() < NEAR
        jaw = [message.points[-1].positions[0] for message in graph.arm.gripper_commands]
        while jaw and jaw[0] == pytest.approx(OPEN):
            jaw.pop(0)  # it is open already
        assert jaw == pytest.approx([CLOSED, OPEN])
    finally:
        graph.close()


def test_the_arm_leaves_a_rest_pose_beyond_its_limits(ros, folder, recorded, tmp_path):
    from fake_arm import FakeArm
    from fake_policies import Injected
    from ros_graph import Graph, wait_for

    from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy

    checkpoint = save_policy(build_policy(recorded[0], seed=3), tmp_path / "policy")
    robot = str(folder / "my_so101.yaml")
    arm = functools.partial(FakeArm, robot=robot, cameras=(CAMERA,))
    graph = Graph(
        checkpoint,
        robot=robot,
        make_arm=arm,
        cameras=[CAMERA],
        **{f"camera__{CAMERA}__topic": f"{CAMERA}/image_raw"},
    )
    rest = np.array([0.0, -1.77, 1.69, 1.2, 0.0])  # as the servos lie without torque
    goal = np.array([0.0, -1.5, 1.4, 1.0, 0.0])

    def rise(original, observation):
        share = np.linspace(0.0, 1.0, HORIZON)[:, None]
        here = observation.state.positions
        rows = here + share * np.clip(goal - here, -0.3, 0.3)
        chunk = original(observation)
        return dataclasses.replace(chunk, values=np.column_stack([rows, np.ones(HORIZON)]))

    try:
        graph.activate()
        wait_for(lambda: graph.node._inputs.measured() is not None, "a joint state")
        graph.put_arm(rest)
        with Injected(graph, rise):
            graph.run(INSTRUCTION)
            wait_for(
                lambda: np.abs(graph.arm.positions - goal).max() < 0.05,
                lambda: f"the goal, it is at {graph.arm.positions}: {graph.listener.said()}",
            )
        assert not graph.arm.rejected
    finally:
        graph.close()


def test_the_judgement_finds_what_is_wrong(folder):
    from robovlms_ros.bench.so101.measure import judge

    episode = scripted_episode()
    robot = load_robot(folder / "my_so101.yaml")
    path = np.repeat(episode.measured[:, :5], 4, axis=0)
    times = np.arange(len(path)) / 120
    closes, opens = np.flatnonzero(np.diff(episode.commanded[:, 5]) != 0) * 4 + 4
    jaw = [(0, OPEN), (int(closes), CLOSED), (int(opens), OPEN)]
    good = judge(times, path, jaw, 0, robot)
    assert good.within and good.from_path < 0.05 and good.jaw < 0.05
    assert not judge(
        times, path + np.array([0, 0, 0.126, 0, 0]), jaw, 0, robot
    ).within  # the zero of an elbow
    assert not judge(times, path * [1, -1, 1, 1, 1], jaw, 0, robot).within
    assert judge(times, path, jaw[:2], 0, robot).jaw == float("inf")
    assert not judge(times, path, [jaw[0], (int(closes) - 200, CLOSED), jaw[2]], 0, robot).within
    assert not judge(times, path[:600], jaw, 0, robot).within  # stopped half-way
    assert not judge(times, path, jaw, 1, robot).within
