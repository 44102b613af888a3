"""Play a rosbag into the ROS graph, with /clock: `ros2 bag play` where rosbag2 is not installed.
Needs ROS.

While it plays from a terminal: Enter pauses and resumes, b and Enter jumps 5 s back, q and Enter
stops.
"""

import argparse
import sys
from pathlib import Path

from robovlms_ros.core.schema import ConfigError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms play`."""
    parser.add_argument("bag", type=Path, help="rosbag2 folder, .mcap or .db3 file")
    parser.add_argument("--rate", type=float, default=1.0, help="bag seconds per second (default 1)")
    parser.add_argument("--no-clock", action="store_true", help="do not publish /clock")
    parser.add_argument("--loop", action="store_true", help="again and again")
    parser.add_argument("--start", type=float, default=0.0, help="s into the bag (default 0)")
    parser.add_argument("--delay", type=float, default=1.0, help="s for subscribers to appear (default 1)")
    parser.add_argument("--topic", action="append", help="only this topic, may be repeated")
    parser.add_argument("--without", action="append", default=[], help="not this topic, may be repeated")
    parser.add_argument("--remap", action="append", default=[], metavar="FROM:=TO", help="play a topic by another name")


def run(args: argparse.Namespace) -> int:
    """Play to the end; returns 0, or 1 when nothing could be played."""
    from robovlms_ros.ros.player import PlayOptions, play

    require(0 < args.rate <= 100, "--rate", args.rate, "above 0 and at most 100")
    require(args.start >= 0, "--start", args.start, "0 s or more")
    pairs = [text.partition(":=") for text in args.remap]
    for text, (old, mark, new) in zip(args.remap, pairs, strict=True):
        if not (old and mark and new):
            raise ConfigError(f"--remap {text}: must be FROM:=TO.")
    options = PlayOptions(args.rate, not args.no_clock, args.loop, args.delay, args.start,
                          tuple(args.topic) if args.topic else None, tuple(args.without),
                          tuple((old, new) for old, _, new in pairs))
    count = play(args.bag, options, print, sys.stdin.isatty())
    print(f"{count} messages played")
    return 0 if count else 1
