"""`robovlms bench so101`: a LeRobot folder of one episode, a policy that has learned it by heart,
the node, a simulated arm, and the distance of its motion from the episode."""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import yaml
from rclpy.signals import SignalHandlerOptions

from robovlms_ros.bench.faults.stage import FaultStage, PolicyProcess
from robovlms_ros.bench.so101.arm import DrawnArm
from robovlms_ros.bench.so101.episode import (
    CALIBRATION,
    CAMERA,
    CLOSED,
    INSTRUCTION,
    OPEN,
    SECONDS,
    START,
    scripted_episode,
    write_folder,
    write_robot,
)
from robovlms_ros.bench.so101.tracking import Tracking, distances, jaw_distance
from robovlms_ros.control.robot import RobotSpec, load_robot
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.types import Array
from robovlms_ros.ros.processes import isolated_environment
from robovlms_ros.training.runs import read_run, train_on

MORE_TIME = 1.4
"""Times the episode's duration that the arm is given."""
MOVING = 0.02  # rad/s
CONFIGURE_TIME = 300.0  # s, on a machine that runs other things


def train(folder: Path, robot: Path, units: str, steps: int) -> Path:
    """Train on the folder's only episode with the shipped configuration and a smaller network;
    returns the checkpoint."""
    width = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        **width,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "initializer_range": 0.08,
    }
    settings = {
        "base": str(share_directory() / "config" / "train" / "so101.yaml"),
        "vlm": {
            "image_size": 48,
            "settings": {"text_config": text, "vision_config": {**width, "patch_size": 12}},
        },
        "training": {"max_steps": steps, "validation_fraction": 0.0},
        "data": {"lerobot": {"robot": str(robot), "units": units}},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return train_on([folder / "episodes"], read_run(path), folder / "train", print)


def drive(
    checkpoint: Path, robot: Path, work: Path
) -> tuple[Array, Array, list[tuple[int, float]], int]:
    """Let the policy drive the arm for the episode's time and a little more.

    Returns times (N,) s and measured joints (N, J) rad since the node's activation, the gripper's
    commands (index, rad), and the number of rejected trajectories.
    """
    parameters = work / "vla.yaml"
    settings: dict[str, Any] = {
        "cameras": [CAMERA],
        f"camera.{CAMERA}.topic": f"{CAMERA}/image_raw",
    }
    parameters.write_text(yaml.safe_dump({"/**": {"ros__parameters": settings}}), encoding="utf-8")
    named = (f"checkpoint:={checkpoint}", f"robot:={robot}", "resume_instruction:=true")
    arguments = ("--params-file", str(parameters), *(part for pair in named for part in ("-p", pair)))
    os.environ.update(isolated_environment())
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        arm = DrawnArm(load_robot(robot), np.array(START))
        policy = PolicyProcess("robovlms_ros.ros.vla_node", arguments, INSTRUCTION, CONFIGURE_TIME)
        stage = FaultStage(work, False, arm, policy)
        try:
            stage.start_node()
            since = arm.mark()
            stage.wait(lambda: arm.speed() > MOVING, "the first motion")
            time.sleep(MORE_TIME * SECONDS)
            times, _, measured, _ = arm.recorded(since)
            jaw = [
                (index - since, position) for index, position in arm.jaw_commands if index >= since
            ]
            return times - times[0], measured, jaw, len(arm.rejected)
        finally:
            stage.close()
            stage.destroy_node()
    finally:
        rclpy.try_shutdown()


def judge(
    times: Array, measured: Array, jaw: list[tuple[int, float]], rejected: int, robot: RobotSpec
) -> Tracking:
    """The executed motion beside the scripted episode's."""
    episode = scripted_episode()
    path = episode.measured[:, :-1]
    every = measured[::4]
    off = distances(every, path)
    middle = (OPEN + CLOSED) / 2
    opened = episode.commanded[:, -1] > middle
    changes = np.flatnonzero(np.diff(opened)) + 1
    recorded = [(path[t], bool(opened[t])) for t in changes]
    executed = [
        (measured[min(index, len(measured) - 1)], position > middle) for index, position in jaw
    ]
    while executed and executed[0][1] == bool(opened[0]):
        executed.pop(0)  # the first command repeats the state
    beyond = np.maximum(robot.lower() - measured, measured - robot.upper()).max()
    return Tracking(
        float(off.max()),
        float(off.mean()),
        float(distances(path, every).max()),
        float(np.abs(measured[-1] - path[-1]).max()),
        jaw_distance(executed, recorded),
        float(max(beyond, 0.0)),
        rejected,
        float(times[-1]),
    )


def run(args: argparse.Namespace) -> int:
    """Write, train, drive, measure; returns 1 when a bound is missed."""
    work = Path(args.output or tempfile.mkdtemp(prefix="robovlms_so101_"))
    work.mkdir(parents=True, exist_ok=True)
    path = write_robot(work)
    robot = load_robot(path)
    if not (work / "episodes").exists():
        write_folder(work / "episodes", robot, args.units)
    print(f"{work}: a LeRobot folder in {args.units} of an arm with {len(CALIBRATION)} motors")
    checkpoint = train(work, path, args.units, args.steps)
    tracking = judge(*drive(checkpoint, path, work), robot)
    print(tracking.table())
    print(
        f"beyond the limits: {1000 * tracking.beyond_limits:.0f} mrad; rejected commands: "
        f"{tracking.rejected}; within: {tracking.within}"
    )
    write_json(args.json, {"units": args.units, "steps": args.steps, **tracking.as_json()})
    return 0 if tracking.within else 1
