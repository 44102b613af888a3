"""Inverse kinematics of whole chunks: processor time, reach and error."""

import argparse
import time
from typing import Any

import numpy as np

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import RobotSpec, load_robot
from robovlms_ros.core.rotations import matrix_from_vector
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned

SPEED = 0.15  # m/s: a brisk manipulation
TURN = 0.3  # rad/s
RATE = 20.0  # steps per s


def run(args: argparse.Namespace) -> int:
    """Print one row per chunk length; returns 0."""
    robot = load_robot(args.robot)
    kinematics = Kinematics.for_robot(robot)
    print(f"{robot.name}, {len(robot.joints)} joints, {args.chunks} chunks a row")
    rows = [measure(kinematics, robot, steps, args.chunks, args.seed) for steps in args.steps]
    header = ("steps", "p50 ms", "p99 ms", "reached", "worst mm", "worst mrad")
    print(aligned(header, [_cells(row) for row in rows], numbers=True))
    write_json(args.json, {"robot": robot.name, "joints": len(robot.joints), "rows": rows})
    return 0


def _cells(row: dict[str, Any]) -> list[str]:
    times = [f"{row['ms'][name]:.2f}" for name in ("p50", "p99")]
    errors = [f"{row[name]:.4f}" for name in ("worst_mm", "worst_mrad")]
    return [str(row["steps"]), *times, f"{row['reached']:.1%}", *errors]


def measure(
    kinematics: Kinematics, robot: RobotSpec, steps: int, chunks: int, seed: int
) -> dict[str, Any]:
    """Solve `chunks` chunks of `steps` steps; the errors are of the steps that were reached."""
    rng = np.random.default_rng(seed)
    lower = robot.lower()
    upper = robot.upper()
    seconds = []
    reached = []
    position = [0.0]
    rotation = [0.0]
    for _ in range(chunks):
        start = np.clip(np.array(robot.home) + rng.normal(0, 0.2, len(robot.joints)), lower, upper)
        pose = kinematics.forward(start)
        shift, turn = (rng.normal(size=3) for _ in range(2))
        shift *= SPEED / RATE / np.linalg.norm(shift)
        turn *= TURN / RATE / np.linalg.norm(turn)
        count = np.arange(1, steps + 1)[:, None]
        targets = np.tile(pose, (steps, 1, 1))
        targets[:, :3, 3] += count * shift
        targets[:, :3, :3] = matrix_from_vector(count * turn) @ pose[:3, :3]
        begin = time.thread_time()
        result = kinematics.inverse(targets, start)
        seconds.append(time.thread_time() - begin)
        reached.append(result.reached)
        within: dict[str, Any] = {"where": result.reached, "initial": 0.0}
        position.append(float(np.max(result.position_error, **within)))
        rotation.append(float(np.max(result.rotation_error, **within)))
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {
        "steps": steps,
        "ms": {"p50": float(p50), "p99": float(p99)},
        "reached": float(np.mean(reached)),
        "worst_mm": max(position) * 1e3,
        "worst_mrad": max(rotation) * 1e3,
    }
