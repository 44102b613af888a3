"""Curves of cost over history, cameras, chunk and robots, from what `bench policy --preset curves --json` wrote."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --out, --prefix."""
    parser.add_argument("file", type=Path, metavar="FILE", help="what `bench policy --json` wrote")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder (default docs/images)")
    parser.add_argument("--prefix", default="cost_over", help="of the files' names (default cost_over)")


def run(args: argparse.Namespace) -> int:
    """Draw; 1 when the file holds no two rows that differ in one of these alone."""
    from robovlms_ros.bench.policy.curves import draw
    from robovlms_ros.bench.policy.results import Results

    written = draw(Results.read(args.file), args.out, args.prefix)
    for path in written:
        print(path)
    return 0 if written else 1
