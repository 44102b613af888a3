"""Preflight of a checkpoint: does it fit its configuration, this robot, these cameras and this
machine?

It refuses what the node's configure refuses, as far as that needs no ROS; --params reads the node's
own parameters. Without a checkpoint the robot alone is checked: `robovlms check --robot
my_arm.yaml`.

Exit code 0: it may run (warnings are printed); 1: it is refused, or --strict and there are
warnings.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from robovlms_ros.core.resources import find, find_checkpoint
from robovlms_ros.core.schema import ConfigError

if TYPE_CHECKING:
    from robovlms_ros.ros.parameters import NodeParameters

MARKS = {"ok": "  ok ", "warning": "WARN ", "error": "ERROR"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", help="folder in our format, a published .pt or .safetensors file, or "
                        "demo, the shipped one; without one the robot alone is checked")
    parser.add_argument("--config", help="the training run's JSON or a YAML, if it does not lie beside the checkpoint")
    parser.add_argument("--params", metavar="FILE", help="the node's parameters (vla.yaml): robot, "
                        "cameras, config, device, backbone, instruction; options have precedence")
    parser.add_argument("--robot", help="a robot of config/robots by name, or its YAML")
    parser.add_argument("--description", metavar="FILE", help="the robot's URDF or MJCF, where its YAML names a topic")
    parser.add_argument("--cameras", help="names of the cameras at hand, separated by commas")
    parser.add_argument("--camera-rate", type=float, help="Hz")
    parser.add_argument("--latency", type=float, help="expected seconds from image to chunk")
    parser.add_argument("--device", help="where it is to run: cpu (the default), cuda, cuda:1")
    parser.add_argument("--strict", action="store_true", help="warnings fail too")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _cameras(given: str | None, node: "NodeParameters | None") -> tuple[str, ...]:
    """Names of the cameras: --cameras, else the node's parameters, else the node's defaults."""
    from robovlms_ros.ros.parameters import check_cameras, defaults

    if given is not None:
        return check_cameras(name.strip() for name in given.split(","))
    if node is not None:
        return tuple(camera.name for camera in node.cameras)
    names = defaults()["cameras"]
    assert isinstance(names, list)
    return tuple(names)


def run(args: argparse.Namespace) -> int:
    from robovlms_ros.checkpoints.preflight import PreflightReport, Situation, inspect
    from robovlms_ros.cli.eval_setup import read_parameters
    from robovlms_ros.control.preflight import (
        check_calibration,
        check_collision,
        check_description,
        check_gripper,
    )
    from robovlms_ros.control.robot import load_robot
    from robovlms_ros.ros.loading import find_device

    if args.checkpoint == "random":
        raise ConfigError(
            "checkpoint 'random': random weights have no files to check. Leave it out: `robovlms check --robot YAML` "
            "checks the robot alone; the node's configure checks the rest."
        )
    node = None if args.params is None else read_parameters(Path(args.params), {})
    name = args.robot or (None if node is None else node.robot)
    if args.description is not None and name is None:
        raise ConfigError("--description belongs to a robot: give --robot as well.")
    if args.checkpoint is None and name is None:
        raise ConfigError("nothing to check: give a checkpoint, a robot (--robot or --params), or both.")
    robot = load_robot(name) if name else None
    situation = Situation(
        robot,
        _cameras(args.cameras, node),
        args.camera_rate,
        args.latency,
        args.device or ("cpu" if node is None else str(find_device(node.device))),
        cameras_by_default=args.cameras is None and node is None,
        backbone="" if node is None else node.backbone,
        instruction="" if node is None else node.instruction,
    )
    config = args.config
    if config is None and node is not None and node.config:
        config = find(node.config, "config/backbones")
    if args.checkpoint is None:
        report = PreflightReport("", ())
    else:
        report = inspect(find_checkpoint(args.checkpoint), config, situation)
    if robot is not None:
        description = None if args.description is None else Path(args.description)
        found = [check_description(robot, description), check_collision(robot, description)]
        optional = (check_gripper(robot, description), check_calibration(robot))
        found += [finding for finding in optional if finding is not None]
        report = replace(report, findings=(*report.findings, *found))
    if args.json:
        print(report.to_json())
    else:
        for finding in report.findings:
            print(f"{MARKS[finding.level]} {finding.topic}: {finding.text}")
    return report.exit_code(args.strict)
