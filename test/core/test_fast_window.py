"""The head's sliding window in one step.

- LSTM of several layers, several tokens, pooled tokens: equal to the head over the window, while it fills and slides;
- three sequences that alternate (a camera three times the history's rate) keep their states apart;
- where the history grid moves the window is run again and said so; where it stands still again, states are built;
- a frame asked for twice, a new instruction, two sessions; GPT before and after its window is full; FC.
- the LSTM's cell reads the weights that torch's own LSTM reads, in float32 state under bfloat16 weights.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robovlms_ros.config import PolicyConfig
from robovlms_ros.policy.fast.plan import FastPathOptions
from robovlms_ros.policy.fast.window import lstm_step

_spec = importlib.util.spec_from_file_location("fast_paths", Path(__file__).parent / "fast_paths.py")
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

MakeConfig = Callable[..., PolicyConfig]
WINDOW = FastPathOptions.only("staggered_lstm")
HEADS = {
    "lstm": {"type": "lstm", "num_layers": 3},
    "lstm-two-tokens": {"type": "lstm", "num_layers": 2, "latent": 2},
    "lstm-pooled": {"type": "lstm", "action_space": "down_sample", "down_sample": "pooling"},
    "gpt": {"type": "gpt", "num_layers": 2},
    "gpt-two-tokens": {"type": "gpt", "num_layers": 3, "latent": 2, "hidden_size": 64},
    "fc": {"type": "fc", "num_layers": None},
}


def policy_with(make_config: MakeConfig, head: str, window: int = 4):
    block = {"hidden_size": 16, **HEADS[head]}
    return helpers.lively(make_config("smolvlm", action_head=block, model={"history_length": window}))


@pytest.mark.parametrize("head", HEADS)
def test_equals_the_window(make_config: MakeConfig, head: str) -> None:
    policy = policy_with(make_config, head)
    assert helpers.largest_difference(policy, WINDOW, [helpers.frame(i) for i in range(11)]) < 1e-6
    again = [helpers.frame(i, words="lift the cube" if i > 6 else "lift the red cube") for i in range(14)]
    assert helpers.largest_difference(policy, WINDOW, again) < 1e-6


def test_frames_between_the_grid_keep_their_own_states(make_config: MakeConfig) -> None:
    policy = policy_with(make_config, "lstm")
    frames = [helpers.frame(i, step=0.1 / 3) for i in range(24)]
    assert helpers.largest_difference(policy, WINDOW, frames) < 1e-6
    session = policy.new_session(fast=WINDOW)
    for observation in frames:
        session.predict_action_chunk(observation)
    assert "LSTM in one step" in session.path_reason


def test_a_grid_that_moves(make_config: MakeConfig) -> None:
    policy = policy_with(make_config, "lstm")
    plain, fast = policy.new_session(), policy.new_session(fast=WINDOW)
    said = []
    # Ten frames on the grid, one a third of a step later, then on the grid that this one begins.
    stamps = [*range(10), *(i + 1 / 3 for i in range(9, 19))]
    for i, stamp in enumerate(stamps):
        observation = dataclasses.replace(helpers.frame(i), stamp_ns=round(stamp * 1e8))
        plain.predict_action_chunk(observation)
        fast.predict_action_chunk(observation)
        np.testing.assert_allclose(fast.normalised, plain.normalised, atol=1e-6)
        said.append(fast.path_reason.split("head: ")[1])
    assert "built" in said[0] and set(said[1:10]) == {"LSTM in one step"}
    assert any("run again: the history grid moved" in text for text in said[10:])
    assert said[-1] == "LSTM in one step"


def test_the_same_frame_twice_and_two_sessions(make_config: MakeConfig) -> None:
    policy = policy_with(make_config, "lstm")
    plain, fast, other = policy.new_session(), policy.new_session(fast=WINDOW), policy.new_session(fast=WINDOW)
    for i in range(8):
        answers = []
        for session in (plain, fast, fast):
            session.predict_action_chunk(helpers.frame(i))
            answers.append(session.normalised)
        other.predict_action_chunk(helpers.frame(40 + i))
        np.testing.assert_allclose(answers[1], answers[0], atol=1e-6)
        np.testing.assert_array_equal(answers[2], answers[1])


def test_what_gpt_says(make_config: MakeConfig) -> None:
    session = policy_with(make_config, "gpt").new_session(fast=WINDOW)
    said = []
    for i in range(6):
        session.predict_action_chunk(helpers.frame(i))
        said.append(session.path_reason)
    assert all("the others' keys kept" in text for text in said[1:4])
    assert all("positions moved" in text for text in said[4:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_one_step_equals_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rnn = torch.nn.LSTM(8, 16, num_layers=3, batch_first=True).to(dtype)
    steps = torch.randn(1, 6, 8, dtype=dtype)
    hidden, cell = torch.zeros(3, 2, 16, dtype=dtype), torch.zeros(3, 2, 16)
    for i in range(6):
        if i == 2:
            hidden[:, 1], cell[:, 1] = 0.0, 0.0
        top = lstm_step(rnn, steps[:, i], hidden, cell)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for row, first in ((0, 0), (1, 2)):
        assert (rnn(steps[:, first:])[0][0, -1] - top[row]).abs().max() < tolerance
