"""Closed-loop success over seeds, in process."""

from pathlib import Path

import numpy as np

from robovlms_ros.evaluation.closed_loop import EpisodeResult
from robovlms_ros.resources import find_checkpoint
from robovlms_ros.sim.rollout import Agent, EpisodeSettings, ExpertSession, build_loop
from robovlms_ros.sim.task import INSTRUCTIONS
from robovlms_ros.sim.world import SimWorld


def evaluate(
    checkpoint: str | Path | None,
    seeds: range,
    robot: str = "panda",
    settings: EpisodeSettings | None = None,
    blank: bool = False,
) -> list[EpisodeResult]:
    """One episode per seed and instruction. checkpoint: a policy's folder; None is the scripted expert."""
    world = SimWorld(seeds[0], blank_cameras=blank or checkpoint is None)
    loop = build_loop(world, robot, settings)
    agent: Agent = ExpertSession(world)
    if checkpoint is not None:
        from robovlms_ros.policy.checkpoint import load_policy

        agent = load_policy(find_checkpoint(checkpoint)).new_session()
    results = []
    for seed in seeds:
        for instruction in INSTRUCTIONS:
            world.reset(seed)
            outcome = loop.run(agent, [(0.0, instruction)], np.random.default_rng((seed, 2)))
            results.append(EpisodeResult(
                instruction, "blanked" if blank else "named", seed, outcome.success, outcome.wrong,
                outcome.time_to_success, outcome.chunks, outcome.refusals,
            ))
    world.close()
    return results
