"""How fast a bag goes through a policy: frames in blocks against frame by frame, reading and decoding included.

Both ways give the same chunks (the largest difference is printed). Without --bag, simulated episodes are recorded
first. Exit code 1 when blocks are not at least --at-least times as fast.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robovlms_ros.core.schema import require
from robovlms_ros.core.types import ActionChunk, Observation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `robovlms bench eval`."""
    parser.add_argument("--bag", type=Path, help="a rosbag2; without one, two simulated episodes are recorded")
    parser.add_argument("--checkpoint", default="demo", help="the policy (default demo)")
    parser.add_argument("--robot", default="panda", help="robot name or YAML (default panda)")
    parser.add_argument("--block", type=int, default=32, help="frames through the network together (default 32)")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many passes counts (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    parser.add_argument("--at-least", type=float, default=2.0, help="times as fast (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")


class Stepping:
    """The live node's session, frame by frame."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def predict_block(self, observations: Sequence[Observation], wanted: Sequence[bool]) -> list[ActionChunk | None]:
        """As BlockSession.predict_block, one frame after the other."""
        return [self._session.predict_action_chunk(observation) for observation in observations]


def run(args: argparse.Namespace) -> int:
    """Measure; returns 0 when blocks are fast enough."""
    import torch

    from robovlms_ros.checkpoints.checkpoint import load_policy
    from robovlms_ros.core.resources import find_checkpoint
    from robovlms_ros.evaluation.replay.block import BlockSession
    from robovlms_ros.inference.session import PolicySession

    require(args.repeats >= 1, "--repeats", args.repeats, "at least 1")
    torch.set_num_threads(args.threads)
    policy = load_policy(find_checkpoint(args.checkpoint), None, torch.device(args.device))
    with tempfile.TemporaryDirectory(prefix="robovlms_bench_") as folder:
        bag = args.bag or _simulated(Path(folder) / "bag", policy, args.robot)
        ways: dict[str, tuple[Callable[[], Any], int]] = {
            "frame by frame": (lambda: Stepping(PolicySession(policy)), 1),
            "in blocks": (lambda: BlockSession(policy, batch=args.block), args.block),
        }
        best: dict[str, float] = {}
        chunks: dict[str, list[ActionChunk]] = {}
        for _ in range(args.repeats):  # alternately, so that a busy machine slows both
            for name, (make, block) in ways.items():
                seconds, chunks[name] = _pass(bag, make(), block, policy.config.cameras, args.robot)
                best[name] = min(best.get(name, seconds), seconds)
    frames = len(chunks["in blocks"])
    pairs = zip(chunks["frame by frame"], chunks["in blocks"], strict=True)
    difference = max(float(np.abs(a.values - b.values).max()) for a, b in pairs)
    result = {"frames": frames, "frames_per_second": {name: frames / s for name, s in best.items()},
              "speedup": best["frame by frame"] / best["in blocks"], "largest_difference": difference,
              "block": args.block, "threads": args.threads, "device": args.device}
    for name, seconds in best.items():
        print(f"{name:16} {frames / seconds:8.1f} frames/s ({1000 * seconds / frames:.1f} ms each)")
    print(f"{result['speedup']:.2f} times as fast; largest difference of any number {difference:.1e}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if result["speedup"] >= args.at_least else 1


def _pass(bag: Path, session: Any, block: int, cameras: tuple[str, ...], robot: str) -> tuple[float, list[ActionChunk]]:
    """(s, chunks) of one pass: opening, reading, decoding, assembling, inferring."""
    from time import perf_counter

    from robovlms_ros.cli.eval_setup import read_parameters
    from robovlms_ros.evaluation.bags.mapping import TopicsConfig, bag_description, detect
    from robovlms_ros.evaluation.bags.reader import Bag
    from robovlms_ros.evaluation.replay.events import ObservationEvent
    from robovlms_ros.evaluation.replay.observations import BagObservations
    from robovlms_ros.ros.loading import load_body

    body = load_body(read_parameters(None, {"robot": robot}), lambda topic: bag_description(bag, topic))
    spec, kinematics = body.robot, None if body.make_kinematics is None else body.make_kinematics()
    chunks: list[ActionChunk] = []
    begin = perf_counter()
    with Bag(bag) as opened:
        mapping, _ = detect(opened, TopicsConfig(), cameras, spec)
        waiting: list[Observation] = []
        for event in BagObservations(opened, mapping, spec, kinematics, cameras).events():
            if isinstance(event, ObservationEvent):
                waiting.append(event.observation)
            if len(waiting) == block:
                chunks += session.predict_block(waiting, [True] * block)
                waiting = []
        if waiting:
            chunks += session.predict_block(waiting, [True] * len(waiting))
    return perf_counter() - begin, chunks


def _simulated(path: Path, policy: Any, robot: str) -> Path:
    """Two episodes of the demo, driven by the policy."""
    from robovlms_ros.control.robot import load_robot
    from robovlms_ros.inference.session import PolicySession
    from robovlms_ros.sim.bags import record_episodes
    from robovlms_ros.sim.rollout import EpisodeSettings, build_loop
    from robovlms_ros.sim.tasks.language import INSTRUCTIONS
    from robovlms_ros.sim.world import SimWorld

    print("recording two simulated episodes", flush=True)
    world = SimWorld(0)
    loop = build_loop(world, robot, EpisodeSettings(limit=8.0))
    record_episodes(path, loop, PolicySession(policy), load_robot(robot), list(enumerate(INSTRUCTIONS)))
    world.close()
    return path
