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
- bfloat16: both paths agree within its rounding; the output layers compute in float32;
- a step is one recording from the images to the answer, with every head and family; prompts of
  every length are recorded at configure, and later ones run as they are;
- joined weights: the same numbers, fewer products, one set of weights; a causal text model builds
  no mask while it is recorded; LLaVA's last vision layer does not run;
- a compiled vision tower is compiled once; quantised weights are made once for all steps down;
- calibrated fp8: inputs are rounded by stored scales, and an output of 3 bits' precision stays near.
"""

import importlib.util
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from robovlms_ros.bench.policy.variants import predict_together
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.inference.optimized import optimized_inference, shared_stages
from robovlms_ros.inference.optimized.cuda_graphs import SHAPES_KEPT, CudaGraphCallable, host_syncs
from robovlms_ros.inference.optimized.fused_projections import JoinedLinear, fused_tower
from robovlms_ros.inference.optimized.options import PARTS, FastPathOptions
from robovlms_ros.inference.optimized.quantization import Fp8Linear, largest_inputs, quantized_tower
from robovlms_ros.inference.optimized.shared_stages import Shared
from robovlms_ros.inference.optimized.verification import (
    EXACT,
    FP8,
    Tolerance,
    verify_fast_path,
)
from robovlms_ros.inference.session import PolicySession

_spec = importlib.util.spec_from_file_location(
    "fast_paths", Path(__file__).parent / "fast_paths.py"
)
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

MakeConfig = Callable[..., PolicyConfig]
TWO = {"cameras": ["static", "wrist"], "proprioception": {"names": ["gripper"]}}
FRAMES = [helpers.frame(i) for i in range(4)] + [
    helpers.frame(i, words="lift the green cube the cube") for i in (4, 5)
]


KNOWN_SYNCS = {
    ("qwen2_5_vl", "vision"): [
        "index by a boolean mask",
        "repeat_interleave without output_size",
        "unique_consecutive",
    ],
    ("qwen3_vl", "vision"): ["repeat_interleave without output_size"],
}
"""Stages that transformers computes from values on the device: they run without a graph."""

ONE_BATCH = (
    "prompt_cache",
    "last_layer_action_only",
    "staggered_lstm",
    "batch_cameras",
    "cuda_graphs",
)


def stand_in(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> Callable[[], tuple[Tensor, ...]]:
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


WHOLE = FastPathOptions(cuda_graphs=True, device_preprocess=True, fused_weights=True)


def share(monkeypatch, policy, options: FastPathOptions, recorder=stand_in) -> Shared:
    """The stages that every session of the policy runs, recorded by a stand-in."""
    monkeypatch.setattr(optimized_inference, "check_supported", lambda name, policy: None)
    parts = tuple(name for name in PARTS if getattr(options, name))
    shared = Shared(policy, parts, options.quantize, recorder)
    monkeypatch.setattr(optimized_inference, "shared_by", lambda *args: shared)
    return shared


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("paligemma", "lstm"),
        ("paligemma", "gpt"),
        ("paligemma", "fc"),
        ("paligemma2", "lstm"),
        ("llava", "lstm"),
        ("kosmos", "lstm"),
        ("smolvlm", "lstm"),
        ("flamingo-mpt", "lstm"),
        ("flamingo-llama", "lstm"),
    ],
)
def test_a_step_is_one_recording(
    make_config: MakeConfig, monkeypatch, family: str, head: str
) -> None:
    recordings = []
    tensor = torch.tensor

    def recorder(function, inputs):
        function(*inputs)  # what is kept is made by the first run
        found = []

        def from_host(*args, **kwargs):
            if kwargs.get("device") is not None:
                found.append(traceback.extract_stack()[-2])
            return tensor(*args, **kwargs)

        with monkeypatch.context() as patch:
            # On a processor its values need not travel, so that no operation shows it.
            patch.setattr(torch, "tensor", from_host)
            recordings.append([*host_syncs(function, inputs), *found])
        return stand_in(function, inputs)

    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, action_head={"type": head}, **TWO))
    shared = share(monkeypatch, policy, WHOLE, recorder)
    assert helpers.largest_difference(policy, WHOLE, FRAMES) < 1e-4
    assert 1 <= len(recordings) <= 2, "one for each length of the prompt in steps of 8"
    assert not any(recordings) and not shared.refusals(), "no host sync"


@pytest.mark.parametrize("family", ["paligemma", "kosmos", "llava"])
def test_generated_actions_are_one_recording(
    make_config: MakeConfig, monkeypatch, family: str
) -> None:
    recordings = []

    def recorder(function, inputs):
        recordings.append((inputs[0].ndim, host_syncs(function, inputs)))
        return stand_in(function, inputs)

    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(
        make_config(
            backbone,
            vlm={**vlm, "vocabulary": []},
            action_head={"type": "discrete", "action_space": "discrete", "n_bin": 64},
        )
    )
    # Tied, small random embeddings repeat one token: an output matrix of its own makes ids vary.
    output = policy.vlm.backbone.get_output_embeddings()
    policy.vlm.word_embedding.weight.data.mul_(10)
    noise = torch.randn(output.weight.shape, generator=torch.Generator().manual_seed(0))
    output.weight = torch.nn.Parameter(noise)
    parts = ("batch_cameras", "device_preprocess", "fused_weights", "cuda_graphs")
    options = FastPathOptions.only(*parts)
    shared = share(monkeypatch, policy, options, recorder)
    plain, fast = PolicySession(policy), PolicySession(policy, fast=options)
    assert fast.record_prompts(FRAMES[0], 64) == [
        fast.policy.tokenize([FRAMES[0].instruction])["input_ids"].shape[1]
    ]
    answers = set()
    for observation in FRAMES:  # the last ones have a longer prompt
        chunks = [session.predict_action_chunk(observation) for session in (plain, fast)]
        answers.update(np.round(chunks[0].values, 6).flatten().tolist())
        np.testing.assert_allclose(chunks[1].values, chunks[0].values, atol=1e-6)
    assert len(answers) > 3, "the ids vary"
    assert recordings == [(4, []), (3, [])], "the images, and the prompt with every token"
    assert any("not recorded at configure" in line for line in shared.refusals())


def test_frames_that_were_only_observed_are_recorded_as_one_more(
    make_config: MakeConfig, monkeypatch
) -> None:
    recordings = []

    def recorder(function, inputs):
        recordings.append(tuple(inputs[0].shape))
        return stand_in(function, inputs)

    policy = helpers.lively(make_config(**TWO))
    shared = share(monkeypatch, policy, WHOLE, recorder)
    plain, fast = PolicySession(policy), PolicySession(policy, fast=WHOLE)
    for i in range(9):
        for session in (plain, fast):
            session.predict_action_chunk(helpers.frame(i)) if i % 3 == 2 else session.observe(
                helpers.frame(i)
            )
        if i % 3 == 2:
            np.testing.assert_allclose(fast.normalised, plain.normalised, atol=1e-4)
    assert {key[0] for key in shared._replayed if shared._replayed[key]._recorded} <= {
        "frame",
        "step",
        "head",
    }
    assert len(recordings) <= 3


def test_a_step_that_cannot_be_recorded_runs_by_stages(
    make_config: MakeConfig, monkeypatch
) -> None:
    def recorder(function, inputs):
        if getattr(function, "func", None) is not None:
            raise RuntimeError("capture of the step failed")
        return stand_in(function, inputs)

    policy = helpers.lively(make_config(**TWO))
    shared = share(monkeypatch, policy, WHOLE, recorder)
    assert helpers.largest_difference(policy, WHOLE, FRAMES) < 1e-4
    assert any("capture of the step failed" in line for line in shared.refusals())


def test_prompts_are_recorded_at_configure(make_config: MakeConfig, monkeypatch) -> None:
    recordings = []

    def recorder(function, inputs):
        recordings.append(len(inputs))
        return stand_in(function, inputs)

    policy = helpers.lively(make_config(**TWO))
    shared = share(monkeypatch, policy, WHOLE, recorder)
    session = PolicySession(policy, fast=WHOLE)
    lengths = session.record_prompts(FRAMES[0], 24)
    assert lengths == [8, 16, 24]
    recorded = len(recordings)
    plain = PolicySession(policy)
    known, unknown = helpers.frame(0), helpers.frame(1, words="the cube " * 14)
    for observation in (known, unknown):
        session.predict_action_chunk(observation)
        plain.predict_action_chunk(observation)
        np.testing.assert_allclose(session.normalised, plain.normalised, atol=1e-4)
    assert len(recordings) == recorded, "nothing is recorded once the policy runs"
    assert any("were not recorded at configure" in line for line in shared.refusals())
    assert PolicySession(policy).record_prompts(FRAMES[0], 24) == []


@pytest.mark.parametrize("family", ["paligemma", "kosmos", "qwen3_vl", "llava"])
def test_joined_weights(make_config: MakeConfig, family: str) -> None:
    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, **TWO))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    one = FastPathOptions(fused_weights=True)
    assert helpers.largest_difference(policy, one, FRAMES[:2]) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    attention = next(m for m in policy.vlm.text_tower.modules() if hasattr(m, "q_proj"))
    assert (
        attention.q_proj.weight.untyped_storage().data_ptr()
        == attention.v_proj.weight.untyped_storage().data_ptr()
    )

    def products(options: FastPathOptions) -> int:
        session = PolicySession(policy, fast=options)
        session.predict_action_chunk(FRAMES[0])
        with torch.profiler.profile() as run:
            session.predict_action_chunk(FRAMES[1])
        counts = {event.key: event.count for event in run.key_averages()}
        return counts.get("aten::linear", 0)

    layers = sum(isinstance(m, JoinedLinear) for m in fused_tower(policy.vlm.text_tower).modules())
    # In the last layer, whose queries are those of the action token, queries are apart.
    assert products(one) <= products(FastPathOptions()) - layers


@pytest.mark.parametrize("family", ["paligemma", "paligemma2", "kosmos", "flamingo-mpt", "llava"])
def test_a_recorded_text_model_builds_no_mask(
    make_config: MakeConfig, monkeypatch, family: str
) -> None:
    places: set[str] = set()

    class Places(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            frames = traceback.extract_stack()
            library = [frame for frame in frames if "/transformers/" in frame.filename]
            places.update(
                f.name for f in library if "masking_utils" in f.filename or "_mask" in f.name
            )
            return func(*args, **(kwargs or {}))

    def recorder(function, inputs):
        function(*inputs)  # as before a capture: what is kept is made now
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with Places():
            function(*inputs)
        return stand_in(function, inputs)

    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, **TWO))
    share(monkeypatch, policy, WHOLE, recorder)
    PolicySession(policy, fast=WHOLE).predict_action_chunk(FRAMES[0])
    assert not places


def test_llava_runs_no_vision_layer_that_nothing_reads(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config("llava", **TWO))
    layers = (
        policy.vlm.vision_tower.encoder.layers
        if hasattr(policy.vlm.vision_tower, "encoder")
        else None
    )
    assert policy.vlm.vision_depth == policy.vlm.hf_config.vision_config.num_hidden_layers - 1
    calls = []
    last = [
        m for m in policy.vlm.vision_tower.modules() if type(m).__name__.endswith("EncoderLayer")
    ][-1]
    assert layers is None or last is layers[-1]
    last.mlp.register_forward_hook(lambda *_: calls.append(1))
    PolicySession(policy).predict_action_chunk(FRAMES[0])
    assert calls
    fast = PolicySession(policy, fast=FastPathOptions())
    fast.predict_action_chunk(FRAMES[0])
    calls.clear()
    fast.predict_action_chunk(FRAMES[1])
    assert not calls


def test_stages_are_compiled_once(make_config: MakeConfig, monkeypatch) -> None:
    graphs = []
    compile_ = torch.compile

    def backend(module, example):
        graphs.append(module)
        return module.forward

    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, **kwargs: compile_(function, backend=backend, dynamic=False),
    )
    policy = helpers.lively(make_config(cameras=["static"]))
    shared = Shared(policy, ("compile",), "none")
    pixels = torch.rand(1, 3, 28, 28)
    with torch.no_grad():
        for _ in range(3):
            shared.encode(pixels)
    assert len(graphs) == 1, "one vision graph, whatever the object has come to hold"


def test_quantised_weights_are_made_once(make_config: MakeConfig, monkeypatch) -> None:
    made = []
    quantize = shared_stages.quantized_tower
    monkeypatch.setattr(
        shared_stages, "quantized_tower", lambda *args: made.append(1) or quantize(*args)
    )
    policy = helpers.lively(make_config(**TWO))
    options = FastPathOptions(quantize="fp8")
    for change in ({}, {"batch_cameras": False}):
        PolicySession(policy, fast=replace(options, **change))
        shared_stages.release_stages(policy, weights=False)
    assert made == [1]
    shared_stages.release_stages(policy)
    PolicySession(policy, fast=options)
    assert made == [1, 1], "a refused variant does not live as long as the policy"


@torch.no_grad()
def test_calibrated_inputs() -> None:
    torch.manual_seed(0)
    tower = torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Linear(64, 7))
    x = torch.randn(3, 5, 128)
    with largest_inputs(tower) as largest:
        expected = tower(x)
    assert set(largest) == {"0", "1"} and largest["0"] == pytest.approx(float(x.abs().max()))
    small = quantized_tower(tower, largest)
    assert small[0].input_scale == pytest.approx(largest["0"] / 448)
    assert 0 < (small(x) - expected).norm() <= 0.1 * expected.norm()
    # e4m3 has 3 bits behind the leading one; larger inputs are clipped and not NaN.
    rounded = small[0]._rounded(x).float() * small[0].input_scale
    assert ((rounded - x).abs() <= x.abs() / 16 + small[0].input_scale * 2**-9).all()
    assert torch.isfinite(small(100 * x)).all()
    assert not [hook for layer in tower for hook in layer._forward_pre_hooks]


@pytest.mark.parametrize("fused", [False, True])
def test_a_calibrated_policy(make_config: MakeConfig, fused: bool) -> None:
    policy = helpers.lively(make_config(**TWO))
    session = PolicySession(policy)
    with largest_inputs(policy.vlm.text_tower) as largest:
        for observation in FRAMES[:2]:
            session.predict_action_chunk(observation)
    policy.fp8_scales = largest
    options = FastPathOptions(quantize="fp8", fused_weights=fused)
    tower = shared_stages.tower_of(policy, fused, "fp8")
    layers = [m for m in tower.modules() if isinstance(m, Fp8Linear)]
    assert layers and all(layer.input_scale is not None for layer in layers)
    assert 0 < helpers.largest_difference(policy, options, FRAMES[:3]) < FP8.difference


@pytest.mark.parametrize(
    "family", ["paligemma", "kosmos", "qwen2_5_vl", "qwen3_vl", "smolvlm", "flamingo-mpt"]
)
def test_recorded_stages_equal_the_plain_path(
    make_config: MakeConfig, monkeypatch, family: str
) -> None:
    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, **TWO))
    monkeypatch.setattr(optimized_inference, "check_supported", lambda name, policy: None)
    monkeypatch.setattr(
        optimized_inference,
        "shared_by",
        lambda policy, options, parts, _: Shared(policy, parts, "none", stand_in),
    )
    assert helpers.largest_difference(policy, FastPathOptions(cuda_graphs=True), FRAMES) < 1e-5


def test_frames_that_were_only_observed_need_no_other_recording(
    make_config: MakeConfig, monkeypatch
) -> None:
    shapes = []

    def recorder(function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]):
        shapes.append(tuple(inputs[0].shape))
        return stand_in(function, inputs)

    policy = helpers.lively(make_config(**TWO))
    monkeypatch.setattr(optimized_inference, "check_supported", lambda name, policy: None)
    monkeypatch.setattr(
        optimized_inference,
        "shared_by",
        lambda policy, options, parts, _: Shared(policy, parts, "none", recorder),
    )
    plain, fast = (
        PolicySession(policy),
        PolicySession(policy, fast=FastPathOptions(cuda_graphs=True)),
    )
    for i in range(9):
        for session in (plain, fast):
            session.predict_action_chunk(helpers.frame(i)) if i % 3 == 2 else session.observe(
                helpers.frame(i)
            )
        if i % 3 == 2:
            np.testing.assert_allclose(fast.normalised, plain.normalised, atol=1e-5)
    assert (
        len(shapes) == len(set(shapes))
        and (2, 3, 28, 28) in shapes
        and (6, 3, 28, 28) not in shapes
    )


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
    assert (
        helpers.largest_difference(policy, FastPathOptions(device_preprocess=True), FRAMES) < 1e-3
    )
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
    assert other[1].weight is model[1].weight and model[0] is linear, (
        "the model keeps its own; norms are shared"
    )


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
    monkeypatch.setattr(
        torch, "compile", lambda function, **kwargs: compile_(function, backend="eager", **kwargs)
    )
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
def test_recorded_stages_have_no_host_sync(
    make_config: MakeConfig, monkeypatch, family: str
) -> None:
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
        optimized_inference,
        "shared_by",
        lambda policy, options, parts, _: Shared(policy, parts, "none", recorder),
    )
    session = PolicySession(policy, fast=FastPathOptions(cuda_graphs=True))
    for observation in FRAMES[:4]:
        session.predict_action_chunk(observation)
    assert "vision" in found
    for stage, lines in found.items():
        assert sorted({line.split(" at ")[0] for line in lines}) == KNOWN_SYNCS.get(
            (family, stage), []
        ), lines
