"""Write a published RoboVLMs checkpoint in this package's format: one folder that needs nothing
beside it."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a published .pt or .safetensors file, or its folder")
    parser.add_argument("output", help="folder to write; must not exist, or be empty")
    parser.add_argument("--config", help="the training run's JSON, if it does not lie beside the checkpoint")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: the file's own")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from robovlms_ros.checkpoints.checkpoint import convert

    folder = convert(Path(args.checkpoint), Path(args.output), args.config, args.dtype)
    print(f"written: {folder} ({sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB)")
    return 0
