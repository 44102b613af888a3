"""The parts of the fast path that are meant for a GPU, as far as a CPU runs them.

- recorded functions: inputs copied in, copies handed out, one recording per shape, states carried
  from call to call, whatever else was replayed in between; a function that cannot be recorded runs
  as it is and is named;
- with recording, every family's answers equal the plain path's, also after a change of instruction;
- robots that are stepped together are recorded as one batch, of the vision tower and of the text
  model;
- preprocessing on the device changes a pixel by a level at most, the answers hardly; graphs on a
  CPU are refused;
- fp8: the text model's weights in fewer bytes, answers within the gate's tolerance or
  refused by the gate;
- torch.compile traces the limited text model and the vision stage, and the answers stay;
- bfloat16: both paths agree within its rounding; the output layers compute in float32.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robovlms_ros.bench.policy.variants import predict_together
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.inference.optimized import optimized_inference
from robovlms_ros.inference.optimized.cuda_graphs import SHAPES_KEPT, CudaGraphCallable, host_syncs
from robovlms_ros.inference.optimized.optimized_inference import Shared
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.optimized.quantization import Fp8Linear, quantized_tower
from robovlms_ros.inference.optimized.verification import (
    EXACT,
    FP8,
    Tolerance,
    verify_fast_path,
)
from robovlms_ros.inference.session import PolicySession

_spec = importlib.util.spec_from_file_location("fast_paths", Path(__file__).parent / "fast_paths.py")
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

MakeConfig = Callable[..., PolicyConfig]
TWO = {"cameras": ["static", "wrist"], "proprioception": {"names": ["gripper"]}}
FRAMES = [helpers.frame(i) for i in range(4)] + [helpers.frame(i, words="lift the green cube the cube") for i in (4, 5)]


KNOWN_SYNCS = {
    ("qwen2_5_vl", "vision"): [
        "index by a boolean mask",
        "repeat_interleave without output_size",
        "unique_consecutive",
    ],
    ("qwen3_vl", "vision"): ["repeat_interleave without output_size"],
}
"""Stages that transformers computes from values on the device: they run without a graph."""

ONE_BATCH = ("prompt_cache", "last_layer_action_only", "staggered_lstm", "batch_cameras", "cuda_graphs")


def stand_in(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A graph's manners without a GPU: fixed buffers in and out, the function's Python run while
    recording only.

    What it computes is run again, on the very buffers, at each replay.
    """
    outputs = tuple(torch.empty_like(x) for x in function(*[x.clone() for x in inputs]))

    def replay() -> tuple[Tensor, ...]:
        for output, value in zip(outputs, function(*inputs), strict=True):
            output.copy_(value)
        return outputs

    return replay


def test_replayed_function() -> None:
    recordings = []

    def recorder(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]):
        recordings.append(inputs[0].shape)
        return stand_in(function, inputs)

    def accumulate(x: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        state += x
        return state * 2, state

    replayed = CudaGraphCallable("sum", accumulate, recorder)
    one, two = torch.zeros(2), torch.zeros(3)
    for i in range(3):
        double, one = replayed(torch.full((2,), 1.0 + i), one)
        _, two = replayed(torch.ones(3), two)
    assert torch.equal(one, torch.full((2,), 6.0)) and torch.equal(double, one * 2)
    assert torch.equal(two, torch.full((3,), 3.0))
    assert len(recordings) == 2 and not replayed.refused


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    def recorder(function: object, inputs: object) -> Callable[[], tuple[Tensor, ...]]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    replayed = CudaGraphCallable("text", lambda x: (x + 1,), recorder)
    assert torch.equal(replayed(torch.ones(2))[0], torch.full((2,), 2.0))
    assert replayed.refused == "text: operation not permitted when stream is capturing"


@pytest.mark.parametrize("family", ["paligemma", "kosmos", "qwen2_5_vl", "qwen3_vl", "smolvlm", "flamingo-mpt"])
def test_recorded_stages_equal_the_plain_path(make_config: MakeConfig, monkeypatch, family: str) -> None:
    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, **TWO))
    monkeypatch.setattr(optimized_inference, "check_supported", lambda name, policy: None)
    monkeypatch.setattr(
        optimized_inference,
        "shared_by",
        lambda policy, options, parts, _: Shared(policy, parts, "none", stand_in),
    )
    assert helpers.largest_difference(policy, FastPathOptions(cuda_graphs=True), FRAMES) < 1e-5


def test_frames_that_were_only_observed_need_no_other_recording(make_config: MakeConfig, monkeypatch) -> None:
    shapes = []

    def recorder(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]):
        shapes.append(tuple(inputs[0].shape))
        return stand_in(function, inputs)

    policy = helpers.lively(make_config(**TWO))
    monkeypatch.setattr(optimized_inference, "check_supported", lambda name, policy: None)
    monkeypatch.setattr(
        optimized_inference, "shared_by", lambda policy, options, parts, _: Shared(policy, parts, "none", recorder)
    )
    plain, fast = PolicySession(policy), PolicySession(policy, fast=FastPathOptions(cuda_graphs=True))
    for i in range(9):
        for session in (plain, fast):
            session.predict_action_chunk(helpers.frame(i)) if i % 3 == 2 else session.observe(helpers.frame(i))
        if i % 3 == 2:
            np.testing.assert_allclose(fast.normalised, plain.normalised, atol=1e-5)
    assert len(shapes) == len(set(shapes)) and (2, 3, 28, 28) in shapes and (6, 3, 28, 28) not in shapes


def test_robots_together_are_recorded_as_one_batch(make_config: MakeConfig, monkeypatch) -> None:
    shapes = []

    def recorder(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]):
        shapes.append(tuple(inputs[0].shape[:1]) + tuple(inputs[0].shape[2:]))
        return stand_in(function, inputs)

    policy = helpers.lively(make_config(**TWO))
    monkeypatch.setattr(optimized_inference, "check_supported", lambda name, policy: None)
    shared = Shared(policy, ONE_BATCH, "none", recorder)
    monkeypatch.setattr(optimized_inference, "shared_by", lambda policy, options, parts, _: shared)
    options = FastPathOptions.only(*ONE_BATCH)
    together, alone = ([PolicySession(policy, fast=o) for _ in range(3)] for o in (options, None))
    for i in range(6):
        seen = [helpers.frame(10 * robot + i) for robot in range(3)]
        seen = [replace(o, stamp_ns=helpers.frame(i).stamp_ns) for o in seen]
        chunks = predict_together(together, seen)
        for chunk, session, observation in zip(chunks, alone, seen, strict=True):
            expected = session.predict_action_chunk(observation)
            np.testing.assert_allclose(chunk.values, expected.values, atol=1e-5)
    assert (6, 28, 28) in shapes, "three robots with two cameras"
    assert len(shapes) == len(set(shapes)) == 3, "vision, text model and the head's step"


def test_preprocessing_on_the_device(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(**TWO))
    assert helpers.largest_difference(policy, FastPathOptions(device_preprocess=True), FRAMES) < 1e-3
    session = PolicySession(policy, fast=FastPathOptions(cuda_graphs=True))
    assert "without cuda_graphs: the policy runs on cpu" in session.path_reason


@torch.no_grad()
def test_quantised_weights() -> None:
    size = 1.2
    error = 0.05
    torch.manual_seed(0)
    linear = torch.nn.Linear(128, 96)
    small = Fp8Linear(linear)
    kept = sum(buffer.numel() * buffer.element_size() for buffer in small.buffers())
    assert kept <= size * linear.weight.numel()
    x = torch.randn(3, 5, 128)
    assert (small.weight - linear.weight).abs().max() <= error * linear.weight.abs().max()
    assert (small(x) - linear(x)).norm() <= error * linear(x).norm()
    model = torch.nn.Sequential(linear, torch.nn.LayerNorm(96), torch.nn.Linear(96, 7))
    other = quantized_tower(model)
    assert other[1].weight is model[1].weight and model[0] is linear, "the model keeps its own; norms are shared"


@pytest.mark.parametrize("family", ["paligemma", "kosmos", "flamingo-mpt"])
def test_quantised_policy(make_config: MakeConfig, family: str) -> None:
    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, **TWO))
    options = FastPathOptions(quantize="fp8")
    assert 0 < helpers.largest_difference(policy, options, FRAMES[:3]) < FP8.difference
    assert "text model in fp8" in PolicySession(policy, fast=options).path_reason
    refused = verify_fast_path(policy, FRAMES[:3], options, Tolerance(1.0, 1e-9))
    assert not refused.accepted and "allowed" in refused.reason


def test_bfloat16(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(**TWO)).to(torch.bfloat16)
    judged = verify_fast_path(policy, FRAMES, FastPathOptions(), EXACT["bfloat16"])
    assert judged.accepted, judged.reason
    mlp = policy.head.actions
    x = torch.randn(1, 16)
    with torch.no_grad():
        assert torch.equal(mlp(x), mlp.float()(x))


def test_compiled_stages(make_config: MakeConfig, monkeypatch) -> None:
    compile_ = torch.compile
    # The tracing is what depends on our code; making machine code of it takes minutes.
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: compile_(function, backend="eager", **kwargs))
    policy = helpers.lively(make_config(**TWO))
    assert helpers.largest_difference(policy, FastPathOptions(compile=True), FRAMES[2:]) < 1e-5


def test_a_replay_that_computes_nothing_is_refused() -> None:
    """A graph recorded on another device's stream is empty: each replay leaves the first answer."""

    def empty(function, inputs):
        outputs = function(*inputs)
        return lambda: outputs

    replayed = CudaGraphCallable("vision", lambda x: (x + 1,), empty)
    for value in (1.0, 2.0):
        assert torch.equal(replayed(torch.full((2,), value))[0], torch.full((2,), value + 1))
    assert "vision: the replay differs from the function" in replayed.refused


def test_the_shape_used_longest_ago_is_dropped() -> None:
    recordings = []

    def recorder(function, inputs):
        recordings.append(len(inputs[0]))
        return stand_in(function, inputs)

    replayed = CudaGraphCallable("text", lambda x: (x * 2,), recorder)
    for size in (*range(1, SHAPES_KEPT + 1), 1, 100, 1, 2):
        assert torch.equal(replayed(torch.ones(size))[0], torch.full((size,), 2.0))
    assert recordings == [*range(1, SHAPES_KEPT + 1), 100, 2]


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: (x[x > 0],), "index by a boolean mask"),
        (lambda x: (x * x.sum().item(),), "_local_scalar_dense"),
        (lambda x: (torch.nonzero(x),), "nonzero"),
        (lambda x: (torch.masked_select(x, x > 0),), "masked_select"),
    ],
)
def test_host_syncs_are_found_before_a_recording(function, operation: str) -> None:
    found = host_syncs(function, [torch.ones(3)])
    assert len(found) == 1, found
    assert found[0].startswith(f"{operation} at core/test_fast_device.py:")


@pytest.mark.parametrize("family", sorted(helpers.FAMILIES))
def test_recorded_stages_have_no_host_sync(make_config: MakeConfig, monkeypatch, family: str) -> None:
    """Families whose stages wait for the device are named here, so that none joins them
    unnoticed."""
    found: dict[str, list[str]] = {}

    def recorder(function, inputs):
        key = {4: "vision"}.get(inputs[0].ndim, "text or head")
        found.setdefault(key, []).extend(host_syncs(function, inputs))
        return stand_in(function, inputs)

    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, **TWO))
    monkeypatch.setattr(optimized_inference, "check_supported", lambda name, policy: None)
    monkeypatch.setattr(
        optimized_inference, "shared_by", lambda policy, options, parts, _: Shared(policy, parts, "none", recorder)
    )
    session = PolicySession(policy, fast=FastPathOptions(cuda_graphs=True))
    for observation in FRAMES[:4]:
        session.predict_action_chunk(observation)
    assert "vision" in found
    for stage, lines in found.items():
        assert sorted({line.split(" at ")[0] for line in lines}) == KNOWN_SYNCS.get((family, stage), []), lines
