"""The head's sliding window in one step.

- LSTM of several layers, several tokens, pooled tokens: equal to the head over the window, while it fills and slides;
- three sequences that alternate (a camera three times the history's rate) keep their states apart;
- where the history grid moves the window is run again, and the description names it; where it rests, states
  answer again;
- a frame asked for twice, a new instruction, two sessions; GPT before and after its window is full; FC.
- the LSTM's cell reads the weights that torch's own LSTM reads, in float32 state under bfloat16 weights;
- answering first and all rows in one step: windows of 1 to 16 that grow, slide, alternate, jump and shrink equal
  torch's LSTM over the window, whether what was put off is done never, once, twice or by the way;
- answering first costs one row, then the others; a new episode drops what was put off; a step that fails leaves no
  states; on a CPU sessions answer first, a recorded step stays in one piece.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.inference.optimized import head_window
from robovlms_ros.inference.optimized.head_window import (
    AnswerFirstLSTM,
    OneStepLSTM,
    lstm_answer,
    lstm_step,
)
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.reference_inference import Encoded
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.heads.lstm import LSTMHead

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
    session = PolicySession(policy, fast=WINDOW)
    for observation in frames:
        session.predict_action_chunk(observation)
    assert "LSTM by its oldest state" in session.path_reason


def test_a_grid_that_moves(make_config: MakeConfig) -> None:
    policy = policy_with(make_config, "lstm")
    plain, fast = PolicySession(policy), PolicySession(policy, fast=WINDOW)
    said = []
    # Ten frames on the grid, one a third of a step later, then on the grid that this one begins.
    stamps = [*range(10), *(i + 1 / 3 for i in range(9, 19))]
    for i, stamp in enumerate(stamps):
        observation = dataclasses.replace(helpers.frame(i), stamp_ns=round(stamp * 1e8))
        plain.predict_action_chunk(observation)
        fast.predict_action_chunk(observation)
        np.testing.assert_allclose(fast.normalised, plain.normalised, atol=1e-6)
        said.append(fast.path_reason.split("head: ")[1])
    steady = "LSTM by its oldest state, the others after the answer"
    assert set(said[:10]) == {steady}
    assert any("run again: the history grid moved" in text for text in said[10:])
    assert said[-1] == steady


def test_the_same_frame_twice_and_two_sessions(make_config: MakeConfig) -> None:
    policy = policy_with(make_config, "lstm")
    plain, fast, other = PolicySession(policy), PolicySession(policy, fast=WINDOW), PolicySession(policy, fast=WINDOW)
    for i in range(8):
        answers = []
        for session in (plain, fast, fast):
            session.predict_action_chunk(helpers.frame(i))
            session.finish()
            answers.append(session.normalised)
        other.predict_action_chunk(helpers.frame(40 + i))
        np.testing.assert_allclose(answers[1], answers[0], atol=1e-6)
        np.testing.assert_array_equal(answers[2], answers[1])


def test_what_gpt_says(make_config: MakeConfig) -> None:
    session = PolicySession(policy_with(make_config, "gpt"), fast=WINDOW)
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
        top = lstm_step(rnn, torch.nn.functional.linear(steps[:, i], rnn.weight_ih_l0), hidden, cell)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    for row, first in ((0, 0), (1, 2)):
        assert (rnn(steps[:, first:])[0][0, -1] - top[row]).abs().max() < tolerance


def lstm_head(window: int) -> LSTMHead:
    torch.manual_seed(0)
    head = LSTMHead(6, 2, window, hidden_size=8, num_layers=3)
    for parameter in head.rnn.parameters():
        torch.nn.init.normal_(parameter, 0, 0.6)
    return head.eval()


def new_frames(count: int, seed: int) -> list[Encoded]:
    generator = torch.Generator().manual_seed(seed)
    return [Encoded(None, None, torch.randn(1, 1, 1, 6, generator=generator)) for _ in range(count)]


def windows_of(longest: int) -> list[list[Encoded]]:
    """Growing and sliding; two sequences in turn; a jump, and on from there; shorter, and longer again."""
    frames, others = new_frames(3 * longest + 4, 1), new_frames(2 * longest + 4, 2)

    def until(sequence: list[Encoded], end: int, length: int = longest) -> list[Encoded]:
        return sequence[max(0, end - length) : end]

    windows = [until(frames, i) for i in range(1, 2 * longest + 2)]
    for i in range(1, longest + 3):
        windows += [until(others, i), until(frames, 2 * longest + 1 + i)]
    jumped = [*frames[::2], *others[longest:]]
    windows += [until(jumped, i) for i in range(len(frames[::2]), len(jumped) + 1)]
    shorter = max(1, longest - 2)
    windows += [until(jumped, len(jumped), shorter)]
    more = [*jumped, *new_frames(longest + 2, 3)]
    return windows + [until(more, i, shorter + i - len(jumped)) if i - len(jumped) <= longest - shorter
                      else until(more, i) for i in range(len(jumped) + 1, len(more) + 1)]


@pytest.mark.parametrize("finish", ["never", "once", "twice", "sometimes"])
@pytest.mark.parametrize("kind", [AnswerFirstLSTM, OneStepLSTM])
@pytest.mark.parametrize("longest", [1, 2, 4, 16])
@torch.inference_mode()
def test_windows_equal_torch(longest: int, kind: type[AnswerFirstLSTM | OneStepLSTM], finish: str) -> None:
    head = lstm_head(longest)
    window = kind(head, longest)
    by_state = 0
    for i, frames in enumerate(windows_of(longest)):
        arms = [window.answer(frames).arm]
        for _ in range({"never": 0, "once": 1, "twice": 2, "sometimes": i % 3 == 0}[finish]):
            window.finish()
        arms.append(window.answer(frames).arm)
        outputs, _ = head.rnn(torch.cat([frame.feature for frame in frames], dim=1).flatten(2))
        expected = head.read_out(outputs[:, -1:]).arm
        for arm in arms:
            torch.testing.assert_close(arm, expected, atol=1e-6, rtol=0)
        by_state += "run again" not in window.description
    assert by_state > 3 * longest


@torch.inference_mode()
def test_states_equal_torch_after_the_rest_is_done() -> None:
    head, frames = lstm_head(4), new_frames(9, 5)
    window = AnswerFirstLSTM(head, 4)
    for i in range(1, len(frames) + 1):
        window.answer(frames[max(0, i - 4) : i])
    window.finish()
    (grid,) = window._grids
    for state, first in enumerate((6, 7, 8)):
        steps = torch.cat([frame.feature for frame in frames[first:]], dim=1).flatten(2)
        _, (hidden, cell) = head.rnn(steps)
        torch.testing.assert_close(grid.hidden[:, state : state + 1], hidden, atol=1e-6, rtol=0)
        torch.testing.assert_close(grid.cell[:, state : state + 1], cell, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_the_answer_takes_one_row_and_the_rest_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run = head_window.lstm_step

    def counted(rnn, first, hidden, cell):
        rows.append(hidden.shape[1])
        return run(rnn, first, hidden, cell)

    monkeypatch.setattr(head_window, "lstm_step", counted)
    window, frames = AnswerFirstLSTM(lstm_head(4), 4), new_frames(20, 6)

    def answered(end: int) -> list[int]:
        rows.clear()
        window.answer(frames[max(0, end - 4) : end])
        return list(rows)

    for i in range(1, 9):
        answered(i)
    window.finish()
    assert answered(9) == [1] and answered(9) == []
    window.finish()
    window.finish()
    assert rows == [3] and answered(10) == [1] and answered(11) == [3, 1]
    window.clear()
    rows.clear()
    window.finish()
    assert rows == [] and answered(12) == [], "a whole window that follows none"


@torch.inference_mode()
def test_a_step_that_fails_leaves_no_states(monkeypatch: pytest.MonkeyPatch) -> None:
    head, frames = lstm_head(3), new_frames(12, 7)
    window = AnswerFirstLSTM(head, 3)

    def fail(rnn, first, hidden, cell):
        hidden += 1.0
        raise MemoryError("none left")

    for i in range(1, 13):
        seen = frames[max(0, i - 3) : i]
        expected = head(torch.cat([frame.feature for frame in seen], dim=1)).arm[:, -1:]
        torch.testing.assert_close(window.answer(seen).arm, expected, atol=1e-6, rtol=0)
        if i == 6:
            with monkeypatch.context() as broken, pytest.raises(MemoryError):
                broken.setattr(head_window, "lstm_step", fail)
                window.finish()
    assert "oldest state" in window.description


def test_where_answers_come_first() -> None:
    head = lstm_head(4)
    assert isinstance(head_window.lstm_window(head, 4), AnswerFirstLSTM)
    recorded = head_window.lstm_window(head, 4, lambda *inputs: lstm_answer(head, *inputs))
    assert isinstance(recorded, OneStepLSTM)
    assert isinstance(head_window.lstm_window(head.to("meta"), 4), OneStepLSTM), "not on a processor"
