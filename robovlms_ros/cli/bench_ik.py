"""Inverse kinematics of a whole chunk: time, reach and error, on paths that the arm can follow.

Each path is a straight line with a steady turn, from a random configuration around the robot's home; long ones may
leave the arm's reach, which takes longest. Times are of this thread's processor: of the wall clock on an idle machine.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--robot, --steps, --chunks, --seed, --json."""
    parser.add_argument("--robot", default="panda", help="robot name or YAML (default panda)")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 16, 30], help="chunk lengths (default 10 16 30)")
    parser.add_argument("--chunks", type=int, default=200, help="chunks per length (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")


def run(args: argparse.Namespace) -> int:
    """Print one row per chunk length."""
    from robovlms_ros.control.kinematics import Kinematics
    from robovlms_ros.control.robot import load_robot

    robot = load_robot(args.robot)
    kinematics = Kinematics.for_robot(robot)
    print(f"{robot.name}, {len(robot.joints)} joints, {args.chunks} chunks a row")
    print(f"{'steps':>5} {'p50 ms':>8} {'p99 ms':>8} {'reached':>8} {'worst mm':>9} {'worst mrad':>11}")
    rows = [_measure(kinematics, robot, steps, args.chunks, args.seed) for steps in args.steps]
    for row in rows:
        print(
            f"{row['steps']:5d} {row['ms']['p50']:8.2f} {row['ms']['p99']:8.2f} {row['reached']:8.1%} "
            f"{row['worst_mm']:9.4f} {row['worst_mrad']:11.4f}"
        )
    if args.json is not None:
        content = {"robot": robot.name, "joints": len(robot.joints), "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _measure(kinematics: Any, robot: Any, steps: int, chunks: int, seed: int) -> dict[str, Any]:
    """Solve `chunks` chunks; the errors are of the steps that were reached."""
    import numpy as np

    from robovlms_ros.core.rotations import matrix_from_vector

    rng = np.random.default_rng(seed)
    lower, upper = robot.lower(), robot.upper()
    seconds, reached, position, rotation = [], [], [0.0], [0.0]
    for _ in range(chunks):
        start = np.clip(np.array(robot.home) + rng.normal(0, 0.2, len(robot.joints)), lower, upper)
        pose = kinematics.forward(start)
        # 0.15 m/s and 0.3 rad/s at 20 Hz: a brisk manipulation.
        shift, turn = (rng.normal(size=3) for _ in range(2))
        shift, turn = 0.0075 * shift / np.linalg.norm(shift), 0.015 * turn / np.linalg.norm(turn)
        count = np.arange(1, steps + 1)[:, None]
        targets = np.tile(pose, (steps, 1, 1))
        targets[:, :3, 3] += count * shift
        targets[:, :3, :3] = matrix_from_vector(count * turn) @ pose[:3, :3]
        begin = time.thread_time()
        result = kinematics.inverse(targets, start)
        seconds.append(time.thread_time() - begin)
        reached.append(result.reached)
        position.append(float(np.max(result.position_error, where=result.reached, initial=0.0)))
        rotation.append(float(np.max(result.rotation_error, where=result.reached, initial=0.0)))
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {
        "steps": steps,
        "ms": {"p50": float(p50), "p99": float(p99)},
        "reached": float(np.mean(reached)),
        "worst_mm": max(position) * 1e3,
        "worst_mrad": max(rotation) * 1e3,
    }
