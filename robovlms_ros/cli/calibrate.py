"""Calibrate a checkpoint for fp8: the scales of the text model's inputs, found on recordings.

Runs the policy over rosbags as `robovlms eval` does and writes the largest input of every layer to
fp8_scales.json in the checkpoint's folder. `fast_path: fp8` then rounds inputs by fixed scales:
faster than scales per step, and the same numbers on every machine. Evaluate the result on other
bags before it moves an arm.

  robovlms calibrate my_ckpt --data demonstrations/day1 demonstrations/day2 --robot my_arm.yaml
"""

import argparse
from pathlib import Path

from robovlms_ros.core.schema import ConfigError, require


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms calibrate`."""
    add = parser.add_argument
    add("checkpoint", help="folder of a checkpoint; its fp8_scales.json is written")
    add(
        "--data",
        nargs="+",
        type=Path,
        required=True,
        metavar="BAG",
        help="rosbag2 folders, .mcap or .db3 files",
    )
    add(
        "--config",
        type=Path,
        help="the node's parameters (vla.yaml): robot, cameras, tolerances, ...",
    )
    add("--robot", help="robot name or YAML, instead of the parameters'")
    add("--device", help="auto, cpu, cuda, ...")
    add("--instruction", default="", help="for bags without one, or instead of theirs")
    add(
        "--rate",
        type=float,
        default=2.0,
        help="images a second of recording (default 2; 0: every image)",
    )


def run(args: argparse.Namespace) -> int:
    """Calibrate; returns 0. Raises RoboVLMsError where nothing could be calibrated."""
    from robovlms_ros.checkpoints.checkpoint import locate
    from robovlms_ros.checkpoints.fp8_scales import write_scales
    from robovlms_ros.cli.eval_setup import EvaluationJob, policy_of, prepare, read_parameters
    from robovlms_ros.core.resources import find_checkpoint
    from robovlms_ros.evaluation.replay.evaluate import EvaluationConfig, evaluate_bag
    from robovlms_ros.inference.optimized.quantization import largest_inputs

    require(args.rate >= 0, "--rate", args.rate, "0 or more images a second")
    overrides = {"robot": args.robot, "device": args.device, "checkpoint": args.checkpoint}
    parameters = read_parameters(args.config, overrides)
    config = EvaluationConfig(
        instruction=args.instruction,
        rate=args.rate,
        sensitivity=False,
        annotate=False,
        latencies=(0.0,),
    )
    policy = policy_of(parameters)
    largest: dict[str, float] = {}
    images = 0
    for bag in args.data:
        job = EvaluationJob(bag, (("policy", args.checkpoint),), parameters, config, Path())
        setting, subjects = prepare(job)
        with largest_inputs(policy.vlm.text_tower) as found:
            result = evaluate_bag(bag, subjects, setting)
        images += result["images"]
        print(f"{bag}: {result['images']} images")
        for name, value in found.items():
            largest[name] = max(largest.get(name, 0.0), value)
    if not largest:
        raise ConfigError(
            f"calibrate: no image of {len(args.data)} bags went through the policy. Check topics and cameras with "
            "`robovlms eval`."
        )
    weights = locate(find_checkpoint(args.checkpoint), None).weights
    path = write_scales(weights, largest, images)
    print(f"{len(largest)} layers on {images} images, written to {path}")
    print(
        "next: robovlms eval OTHER_BAGS with fast_path fp8, beside the same checkpoint without it"
    )
    return 0
