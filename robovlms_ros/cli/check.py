"""Preflight of a checkpoint: does it fit its configuration, this robot, these cameras and this machine?

Exit code 0: it may run (warnings are printed); 1: it is refused, or --strict and there are warnings.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.schema import ConfigError

MARKS = {"ok": "  ok ", "warning": "WARN ", "error": "ERROR"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder in our format, a published .pt or .safetensors file, or demo, the "
                        "shipped one")
    parser.add_argument("--config", help="the training run's JSON or a YAML, if it does not lie beside the checkpoint")
    parser.add_argument("--robot", help="a robot of config/robots by name, or its YAML")
    parser.add_argument("--description", metavar="FILE", help="the robot's URDF or MJCF, where its YAML names a topic")
    parser.add_argument("--cameras", help="names of the cameras at hand, separated by commas")
    parser.add_argument("--camera-rate", type=float, help="Hz")
    parser.add_argument("--latency", type=float, help="expected seconds from image to chunk")
    parser.add_argument("--device", default="cpu", help="where it is to run: cpu, cuda, cuda:1")
    parser.add_argument("--strict", action="store_true", help="warnings fail too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    from robovlms_ros.checkpoints.preflight import Situation, inspect
    from robovlms_ros.control.preflight import check_description
    from robovlms_ros.control.robot import load_robot

    if args.description is not None and args.robot is None:
        raise ConfigError("--description belongs to a robot: give --robot as well.")
    robot = load_robot(args.robot) if args.robot else None
    cameras = tuple(args.cameras.split(",")) if args.cameras else None
    situation = Situation(robot, cameras, args.camera_rate, args.latency, args.device)
    report = inspect(find_checkpoint(args.checkpoint), args.config, situation)
    if robot is not None:
        description = None if args.description is None else Path(args.description)
        report = replace(report, findings=(*report.findings, check_description(robot, description)))
    if args.json:
        print(report.to_json())
    else:
        for finding in report.findings:
            print(f"{MARKS[finding.level]} {finding.topic}: {finding.text}")
    return report.exit_code(args.strict)
