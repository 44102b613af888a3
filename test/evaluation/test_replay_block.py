"""Frames in blocks through the network, against the live node's session frame by frame.

- every chunk equals stepping's, whatever the block: history, proprioception, two instructions, sticky gripper;
- frames that are only observed still count as history;
- history types that read the whole window at once give the same.
"""

import numpy as np
import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import config_from_mapping
from robovlms_ros.core.types import Observation, RobotState
from robovlms_ros.evaluation.replay.block import BlockSession
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.session import PolicySession

FRAME_NS = 50_000_000


def tiny(history_type="post", head="lstm"):
    return build_policy(config_from_mapping({
        "model": {"backbone": "paligemma", "history_length": 3, "action_chunk_size": 4, "history_step": 0.1,
                  "history_type": history_type},
        "action_head": {"type": head, "hidden_size": 16, "num_layers": 1},
        "vlm": {"size": "tiny", "vocabulary": ["lift", "the", "red", "green", "cube"]},
        "cameras": ["static", "wrist"], "proprioception": {"names": ["joint_positions", "gripper"], "joints": 7},
        "action": {"space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "chained",
                   "step_duration": 0.05, "units": {"translation": 0.02, "rotation": 0.05},
                   "gripper": {"open_value": 1, "rule": "sticky", "sticky_steps": 3}}}), seed=1)


def observations(count):
    rng = np.random.default_rng(5)
    return [Observation((100 + i) * FRAME_NS,
                        {name: rng.integers(0, 256, (40, 48, 3), dtype=np.uint8) for name in ("static", "wrist")},
                        "lift the red cube" if i < 9 else "lift the green cube",
                        RobotState((100 + i) * FRAME_NS, rng.normal(size=7), gripper=float(i % 2)))
            for i in range(count)]


@pytest.mark.parametrize(("history_type", "head"), [("post", "lstm"), ("pre", "lstm"), ("video", "fc")])
def test_blocks_equal_stepping(history_type, head):
    torch.set_num_threads(1)
    policy, seen = tiny(history_type, head), observations(14)
    wanted = [i % 3 != 1 for i in range(len(seen))]
    stepping, expected = PolicySession(policy), []
    for observation, want in zip(seen, wanted, strict=True):
        if want:
            expected.append(stepping.predict_action_chunk(observation))
        else:
            stepping.observe(observation)
    for block in (1, 5, 14):
        session, chunks = BlockSession(policy, batch=3, fast=FastPathOptions()), []
        for begin in range(0, len(seen), block):
            chunks += session.predict_block(seen[begin:begin + block], wanted[begin:begin + block])
        assert [chunk is not None for chunk in chunks] == wanted
        given = [chunk for chunk in chunks if chunk is not None]
        assert [(c.stamp_ns, c.instruction, c.sequence) for c in given] == \
            [(c.stamp_ns, c.instruction, c.sequence) for c in expected]
        for mine, theirs in zip(given, expected, strict=True):
            np.testing.assert_allclose(mine.values, theirs.values, atol=1e-6)
    assert np.ptp([chunk.values[:, :6] for chunk in expected], axis=0).max() > 1e-5, "the chunks do differ"
