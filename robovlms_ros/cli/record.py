"""Record a rosbag (MCAP) of everything that evaluation and training need. Needs ROS.

Cameras, joint states, commands, instruction, chunks, status and the node's configuration. In a
terminal, a line (its text, or just Enter) begins an episode; Ctrl-C ends the recording.
"""

import argparse
import select
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms record`."""
    parser.add_argument("output", type=Path, help="folder to make")
    parser.add_argument("--config", type=Path, help="the node's parameters (vla.yaml)")
    parser.add_argument("--robot", help="robot name or YAML, instead of the parameters'")
    parser.add_argument("--namespace", default="", help="namespace of the node (default none)")
    parser.add_argument("--node", default="vla_node", help="name of the node (default vla_node)")
    parser.add_argument("--topic", action="append", default=[], help="also this topic, may be repeated")
    parser.add_argument("--duration", type=float, default=0.0, help="s; 0: until Ctrl-C")
    parser.add_argument("--use-sim-time", action="store_true", help="stamp by /clock (or the parameters' use_sim_time)")
    parser.add_argument("--print-command", action="store_true", help="only print the same `ros2 bag record`")


def run(args: argparse.Namespace) -> int:
    """Record; returns 0."""
    from robovlms_ros.cli.eval_setup import read_parameters, uses_sim_time
    from robovlms_ros.ros.recording import RecordingOptions, bag_record_command, record, topics_of

    parameters = read_parameters(args.config, {"robot": args.robot})
    topics = tuple(dict.fromkeys([*topics_of(parameters, args.namespace, args.node), *args.topic]))
    simulated = args.use_sim_time or uses_sim_time(args.config)
    options = RecordingOptions(args.output, topics, args.duration, 0.0, parameters, simulated, args.namespace)
    print(f"with rosbag2 installed the same is: {bag_record_command(options)}")
    if args.print_command:
        return 0
    print(f"recording to {args.output}; Ctrl-C ends it", flush=True)
    record(options, print, typed_line if sys.stdin.isatty() else None)
    return 0


def typed_line() -> str | None:
    """A line that was typed, None when none came for a moment. Raises EOFError at the end of the
    input."""
    if not select.select([sys.stdin], [], [], 0.2)[0]:
        return None
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()
