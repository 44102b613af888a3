"""Fixtures of the ROS tests. The graph itself (nodes, fake arm) is ros_graph.py, imported only where ROS is."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def ros():
    """rclpy, initialised for the whole run. scripts/test has it and the built messages."""
    import rclpy

    rclpy.init()
    yield rclpy
    rclpy.try_shutdown()


@pytest.fixture(scope="session")
def tiny_checkpoint(ros, tmp_path_factory) -> Path:
    """A folder with a tiny policy that is not marked as random and moves the arm a little."""
    import torch
    from ros_graph import TINY

    from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy
    from robovlms_ros.config.policy import config_from_mapping

    torch.set_num_threads(1)
    config = config_from_mapping(TINY)
    return save_policy(build_policy(config, seed=3), tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def make_robot(tmp_path_factory):
    """A function that writes the Panda's YAML, changed by a function, and returns its path."""
    import yaml

    from robovlms_ros.core.resources import share_directory

    robots = share_directory() / "config" / "robots"

    def make(change=lambda robot: None) -> str:
        robot = yaml.safe_load((robots / "panda.yaml").read_text(encoding="utf-8"))
        robot["description"]["file"] = str(robots / "panda.urdf")
        robot["gate"] = {"max_refusals": 100000}
        change(robot)
        path = tmp_path_factory.mktemp("robot") / "panda.yaml"
        path.write_text(yaml.safe_dump(robot), encoding="utf-8")
        return str(path)

    return make


@pytest.fixture
def make_graph(ros, tiny_checkpoint, make_robot):
    """A function that makes a ros_graph.Graph from parameters; all are closed at the end."""
    from ros_graph import Graph

    graphs = []

    def make(checkpoint=tiny_checkpoint, **values):
        graphs.append(Graph(checkpoint, **{"robot": make_robot(), **values}))
        return graphs[-1]

    yield make
    for graph in graphs:
        graph.close()


@pytest.fixture(scope="module")
def live(ros, tiny_checkpoint, make_robot):
    """One active graph for the tests of a module: each begins and ends with the node running."""
    from ros_graph import Graph

    graph = Graph(tiny_checkpoint, robot=make_robot())
    graph.activate()
    yield graph
    graph.close()


@pytest.fixture
def stage(ros):
    """A controller_stage.Stage, closed at the end."""
    from controller_stage import Stage

    stage = Stage()
    yield stage
    stage.close()
