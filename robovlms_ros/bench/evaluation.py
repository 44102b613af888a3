"""Speed of a bag's evaluation: frames in blocks against frame by frame, reading and decoding
included."""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from robovlms_ros.checkpoints.checkpoint import load_policy
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.schema import require
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import ActionChunk, Observation
from robovlms_ros.evaluation.bags.mapping import TopicsConfig, bag_description, detect
from robovlms_ros.evaluation.bags.reader import Bag
from robovlms_ros.evaluation.replay.block import BlockSession
from robovlms_ros.evaluation.replay.events import ObservationEvent
from robovlms_ros.evaluation.replay.observations import BagObservations
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.vla_policy import VLAPolicy


class Stepping:
    """The live node's session, frame by frame."""

    def __init__(self, session: PolicySession) -> None:
        self._session = session

    def predict_block(
        self, observations: Sequence[Observation], wanted: Sequence[bool]
    ) -> list[ActionChunk | None]:
        """As BlockSession.predict_block, one frame after the other."""
        return [self._session.predict_action_chunk(observation) for observation in observations]


def run(args: argparse.Namespace) -> int:
    """Measure; returns 0 when blocks are fast enough."""
    require(args.repeats >= 1, "--repeats", args.repeats, "at least 1")
    torch.set_num_threads(args.threads)
    policy = load_policy(find_checkpoint(args.checkpoint), None, torch.device(args.device))
    variants: dict[str, tuple[Callable[[], Any], int]] = {
        "frame by frame": (lambda: Stepping(PolicySession(policy)), 1),
        "in blocks": (lambda: BlockSession(policy, batch=args.block), args.block),
    }
    best: dict[str, float] = {}
    chunks: dict[str, list[ActionChunk]] = {}
    with tempfile.TemporaryDirectory(prefix="robovlms_bench_") as folder:
        bag = args.bag
        if bag is None:
            bag = Path(folder) / "bag"
            print("recording two simulated episodes", flush=True)
            _record(bag, policy, args.robot, args.episode_time)
        for _ in range(args.repeats):  # alternately, so that a busy machine slows both
            for name, (make, block) in variants.items():
                passed = _pass(bag, make(), block, policy.config.cameras, args.robot)
                seconds, chunks[name] = passed
                best[name] = min(best.get(name, seconds), seconds)
    frames = len(chunks["in blocks"])
    pairs = zip(chunks["frame by frame"], chunks["in blocks"], strict=True)
    difference = max(float(np.abs(a.values - b.values).max()) for a, b in pairs)
    speedup = best["frame by frame"] / best["in blocks"]
    lines = [
        [name, f"{frames / seconds:.1f}", f"{1000 * seconds / frames:.1f}"]
        for name, seconds in best.items()
    ]
    print(aligned(("", "frames/s", "ms a frame"), lines, numbers=True))
    print(f"{speedup:.2f} times as fast; largest difference of any number {difference:.1e}")
    write_json(args.json, {
        "frames": frames,
        "frames_per_second": {name: frames / seconds for name, seconds in best.items()},
        "speedup": speedup,
        "largest_difference": difference,
        "block": args.block,
        "threads": args.threads,
        "device": args.device,
    })
    return 0 if speedup >= args.at_least else 1


def _record(path: Path, policy: VLAPolicy, robot: str, limit: float) -> None:
    """Two simulated episodes driven by the policy as a bag at `path`; limit: s per episode."""
    from robovlms_ros.sim.bags import record_episodes
    from robovlms_ros.sim.rollout import EpisodeSettings, build_loop
    from robovlms_ros.sim.tasks.language import INSTRUCTIONS
    from robovlms_ros.sim.world import SimWorld

    world = SimWorld(0)
    loop = build_loop(world, robot, EpisodeSettings(limit=limit))
    episodes = list(enumerate(INSTRUCTIONS))
    record_episodes(path, loop, PolicySession(policy), load_robot(robot), episodes)
    world.close()


def _pass(
    bag: Path, session: Any, block: int, cameras: tuple[str, ...], robot_name: str
) -> tuple[float, list[ActionChunk]]:
    """(s, chunks) of one pass: opening, reading, decoding, assembling, inferring."""
    robot = load_robot(robot_name)
    description = robot.description_path or bag_description(bag, str(robot.description.topic))
    kinematics = Kinematics.for_robot(robot, description)
    chunks: list[ActionChunk] = []
    waiting: list[Observation] = []
    begin = perf_counter()
    with Bag(bag) as opened:
        mapping, _ = detect(opened, TopicsConfig(), cameras, robot)
        for event in BagObservations(opened, mapping, robot, kinematics, cameras).events():
            if isinstance(event, ObservationEvent):
                waiting.append(event.observation)
            if len(waiting) == block:
                chunks += session.predict_block(waiting, [True] * block)
                waiting = []
        if waiting:
            chunks += session.predict_block(waiting, [True] * len(waiting))
    return perf_counter() - begin, chunks
