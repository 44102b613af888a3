"""Write recordings as a LeRobot folder of version 3, which the lerobot package loads.

    robovlms export BAGS... --config train.yaml --lerobot FOLDER

The configuration defines the content, as for `robovlms train --data`: cameras, the `action` block,
the state (`proprioception`) and the `data` block. Bags without `proprioception` give the joint
positions and the gripper's opening as `observation.state`. Interventions and success are written
where the recordings have them.
"""

import argparse
from dataclasses import replace
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms export`."""
    add = parser.add_argument
    add("data", type=Path, nargs="+", metavar="PATH", help="recordings and selections")
    add("--config", required=True, help="a YAML file, or a name in config/train")
    add("--lerobot", type=Path, required=True, metavar="FOLDER", help="folder to make")
    add("--images", choices=("video", "png"), default="video",
        help="H.264 videos (default), or PNGs in the tables, which lose nothing")


def run(args: argparse.Namespace) -> int:
    """Export; returns 0. Raises DataError and ConfigError."""
    from robovlms_ros.config.action import ProprioConfig
    from robovlms_ros.control.robot import load_robot
    from robovlms_ros.core.resources import find
    from robovlms_ros.training.data.checks import check_data, require_trainable
    from robovlms_ros.training.data.lerobot_export import LeRobotExport
    from robovlms_ros.training.data.open_sources import detect_format
    from robovlms_ros.training.data.selection import read_selections
    from robovlms_ros.training.runs import open_data, read_run

    job = read_run(find(args.config, "config/train"))
    action = job.config.action
    robot = (job.data.get("bag") or {}).get("robot") or (action.robot if action else None)
    bags = all(detect_format(path) == "bag" for path in read_selections(args.data))
    if job.config.proprioception is None and robot and bags:
        state = ProprioConfig(("joint_positions", "gripper"), joints=len(load_robot(robot).joints))
        job = replace(job, config=replace(job.config, proprioception=state))
    source, accept = open_data(args.data, job, print)
    flaws, _ = check_data(source, job.config, accept=accept)
    require_trainable(flaws)
    for flaw in flaws:
        print(f"note: {flaw.where}: {flaw.text}")
    export = LeRobotExport(source, job.config, Path(robot).stem if robot else "", args.images)
    export.write(args.lerobot)
    return 0
