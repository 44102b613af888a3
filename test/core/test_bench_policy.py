"""`robovlms bench policy` on models of a few thousand weights.

- Random weights keep tied parameters one tensor, stay in the asked precision, and give the same policy for one seed.
- Every way of doing a step answers alike, each family, from the first step of a full window on.
- A by-hand model with logits is transformers' own: its logits are those of the tied output matrix.
- FLOPs and bytes: a linear layer, attention, a convolution and an LSTM as counted by hand; a whole vision tower and
  language model by the sum over their matrices; the fast path counts less than the plain one.
- Operations that only a GPU has are counted: attention with grouped heads (like repeated ones), products with another
  output precision, cuDNN's LSTM.
- The roofline takes the larger of arithmetic and traffic, operation by operation.
- Robots stepped together answer as they do alone, every family, plain and fast, with different instructions and frames
  that were only observed; on the fast path the layout is made once per instruction and the last layer sees the action
  token alone; what does not fit is refused.
- The head's window by its states equals the window run again; its parts make up the whole.
- The presets' mid sizes have 0.2 to 0.5 billion parameters without the embedding.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from robovlms_ros.bench.policy.cases import BACKBONES, Case, SyntheticFrames, config_of
from robovlms_ros.bench.policy.head_window import window_cost
from robovlms_ros.bench.policy.models import build, size_of
from robovlms_ros.bench.policy.run import PRESETS, preset
from robovlms_ros.bench.policy.timing import (
    Alternating,
    Ceilings,
    Operation,
    OperationCounter,
    count,
    roofline,
)
from robovlms_ros.bench.policy.variants import (
    BY_HAND,
    countable,
    is_own,
    make_way,
    options_of,
    predict_together,
    with_output_matrix,
)
from robovlms_ros.checkpoints.checkpoint import random_tokenizer
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.inference.optimized.options import FastPathError, options_for
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.backbones.meta_parameters import parameters_on_meta
from robovlms_ros.models.vla_policy import VLAPolicy

CPU = torch.device("cpu")
SHAPE = (24, 32, 3)


def tiny(backbone: str = "paligemma", **changes: object) -> Case:
    return Case(backbone, "tiny", **{"history": 3, **changes})  # type: ignore[arg-type]


def test_random_weights_are_seeded_tied_and_of_the_asked_precision() -> None:
    first, again, other = build(tiny(), CPU), build(tiny(), CPU), build(replace(tiny(), dtype="bfloat16"), CPU)
    assert {p.dtype for p in other.parameters()} == {torch.bfloat16}
    assert not any(t.is_meta for t in (*first.parameters(), *first.buffers()))
    for (name, mine), theirs in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
        assert torch.isfinite(mine).all(), name
    assert size_of(first)["all"] == sum(p.numel() for p in first.parameters())
    assert size_of(first)["all"] - size_of(first)["without_embedding"] == first.vlm.word_embedding.weight.numel()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_way_answers_alike(backbone: str) -> None:
    policy = build(tiny(backbone, cameras=2), CPU)
    frames = SyntheticFrames(policy.config.cameras, shape=SHAPE)
    names = ("plain", "fast", "fast:staggered_lstm+batch_cameras", "careful", "logits", "logits_float32")
    ways = [make_way(name, policy, frames) for name in names]
    for index in range(5):
        plain, *others = (way.step(index) for way in ways)
        assert plain.shape == (10, 7)
        for other in others:
            np.testing.assert_allclose(other, plain, atol=1e-5)


def test_a_bfloat16_copy_leaves_the_policy_alone() -> None:
    policy = build(tiny(), CPU)
    way = make_way("logits_bfloat16", policy, SyntheticFrames(policy.config.cameras, shape=SHAPE))
    assert way.policy.dtype == torch.bfloat16 and policy.dtype == torch.float32


def test_parts_and_quantisation_by_name() -> None:
    assert options_of("plain", "cpu") is None
    only = options_of("fast:prompt_cache", "cpu")
    assert only is not None and only.prompt_cache and not only.staggered_lstm
    quantised = options_of("fast:fp8", "cpu")
    assert quantised is not None and quantised.quantize == "fp8" and quantised.staggered_lstm
    with pytest.raises(FastPathError, match="no part 'prompt'"):
        options_of("fast:prompt", "cpu")


def test_an_unknown_way_and_robots_by_hand_are_refused() -> None:
    policy = build(tiny(), CPU)
    frames = SyntheticFrames(policy.config.cameras, shape=SHAPE)
    with pytest.raises(ConfigError, match="plain, careful, logits"):
        make_way("quick", policy, frames)
    with pytest.raises(ConfigError, match="robots"):
        make_way("logits", policy, frames, robots=2)


@torch.inference_mode()
def test_logits_are_those_of_transformers_own_class() -> None:
    policy = build(tiny(), CPU)
    model = with_output_matrix(policy)
    ids = policy.tokenize(["pick up the red block"])["input_ids"]
    output = model(input_ids=ids, output_hidden_states=True)
    words = policy.vlm.word_embedding.weight
    torch.testing.assert_close(output.logits, output.hidden_states[-1] @ words.T)
    assert type(model).__name__ == "PaliGemmaForConditionalGeneration"
    assert not isinstance(policy.vlm.backbone.lm_head, nn.Linear), "the policy itself keeps none"


@pytest.mark.parametrize("inference", [False, True])
def test_counts_of_single_layers_are_those_by_hand(inference: bool) -> None:
    x = torch.randn(5, 7)
    layer, conv, lstm = nn.Linear(7, 11), nn.Conv2d(3, 8, 4, stride=4), nn.LSTM(7, 6, 2, batch_first=True)
    q = torch.randn(1, 2, 9, 4)
    pixels, steps = torch.randn(2, 3, 16, 16), torch.randn(1, 5, 7)
    with torch.inference_mode(inference), torch.no_grad():
        linear = count(lambda: layer(x))
        attention = count(lambda: functional.scaled_dot_product_attention(q, q, q))
        patches = count(lambda: conv(pixels))
        recurrent = count(lambda: lstm(steps))
    assert [op.flops for op in linear] == [2 * 5 * 7 * 11]
    assert linear[0].bytes == 4 * (5 * 7 + 7 * 11 + 11 + 5 * 11) and linear[0].dtype == "float32"
    assert sum(op.flops for op in attention) == 2 * 2 * (9 * 9 * 4) * 2
    assert sum(op.flops for op in patches) == 2 * 2 * 8 * 16 * (3 * 4 * 4)
    assert sum(op.flops for op in recurrent) == 2 * 5 * 4 * 6 * (7 + 6) + 2 * 5 * 4 * 6 * (6 + 6)


@pytest.mark.parametrize("inference", [False, True])
def test_grouped_heads_on_the_cpu_count_like_repeated_ones(inference: bool) -> None:
    """As transformers calls it for PaliGemma-3B, whose 8 heads of queries meet one of keys."""
    q, k, v = torch.randn(2, 8, 9, 16), torch.randn(2, 1, 11, 16), torch.randn(2, 1, 11, 16)
    with torch.inference_mode(inference), torch.no_grad():
        grouped = count(lambda: functional.scaled_dot_product_attention(q, k, v, enable_gqa=True))
        keys, values = (x.repeat_interleave(8, 1) for x in (k, v))
        repeated = count(lambda: functional.scaled_dot_product_attention(q, keys, values))
    assert sum(op.flops for op in grouped) == sum(op.flops for op in repeated) == 2 * 8 * 4 * (9 * 11 * 16)


@pytest.mark.parametrize(("name", "more"), [("flash", ()), ("efficient", (None, False)), ("cudnn", (None, False))])
def test_a_gpus_attention_with_fewer_heads_of_keys_counts_like_repeated_ones(name: str, more: tuple[Any, ...]) -> None:
    """The meta device knows a GPU's operations."""
    operation = getattr(torch.ops.aten, f"_scaled_dot_product_{name}_attention")
    query = torch.empty(2, 8, 9, 16, device="meta", dtype=torch.bfloat16)
    with OperationCounter() as counter:
        for heads in (1, 8):
            key, value = (torch.empty(2, heads, 11, 16, device="meta", dtype=torch.bfloat16) for _ in range(2))
            operation(query, key, value, *more)
    assert [op.flops for op in counter.operations] == 2 * [2 * 8 * 4 * (9 * 11 * 16)]
    rows = 16 * 2  # bytes
    assert [op.bytes for op in counter.operations] == [rows * 2 * (8 * 9 + 2 * heads * 11 + 8 * 9) for heads in (1, 8)]


def test_products_that_only_a_gpu_has_are_counted() -> None:
    aten = torch.ops.aten
    a, b, bias = (torch.empty(s, device="meta", dtype=torch.bfloat16) for s in ((32, 16), (16, 48), (48,)))
    eight = [x.to(torch.float8_e4m3fn) for x in (a, b.t().contiguous())]
    whole = [x.to(torch.int8) for x in (a, b)]
    one = torch.empty((), device="meta")
    with OperationCounter() as counter:
        aten.mm.dtype(a, b, torch.float32)
        aten.addmm.dtype(bias, a, b, torch.float32)
        aten.bmm.dtype(a[None], b[None], torch.float32)
        aten._scaled_mm(eight[0], eight[1].t(), one, one, out_dtype=torch.bfloat16)
        aten._int_mm(*whole)
        aten.mm.out(a, b, out=torch.empty(32, 48, device="meta", dtype=torch.bfloat16))
    operations = counter.operations
    assert [op.flops for op in operations] == 6 * [2 * 32 * 16 * 48]
    dtypes = ["bfloat16", "bfloat16", "bfloat16", "float8_e4m3fn", "int8", "bfloat16"]
    assert [op.dtype for op in operations] == dtypes
    assert operations[0].bytes == 2 * (32 * 16 + 16 * 48) + 4 * 32 * 48
    assert operations[-1].bytes == 2 * (32 * 16 + 16 * 48 + 32 * 48)


def test_cudnns_lstm_counts_like_the_whole_one() -> None:
    steps, lstm = torch.empty(1, 5, 7, device="meta"), nn.LSTM(7, 6, 2, batch_first=True, device="meta")
    state = torch.empty(2, 1, 6, device="meta")
    buffer = torch.empty(sum(p.numel() for p in lstm.parameters()), device="meta")
    weights = list(lstm.parameters())
    with OperationCounter() as counter, torch.no_grad():
        torch.ops.aten._cudnn_rnn(
            steps, weights, 4, buffer, state, state, 2, 6, 0, 2, True, 0.0, False, False, [], None
        )
    (operation,) = counter.operations
    assert operation.flops == 2 * 5 * 4 * 6 * (7 + 6) + 2 * 5 * 4 * 6 * (6 + 6)
    assert operation.bytes == 4 * (5 * 7 + buffer.numel() + 2 * 2 * 6 + 5 * 6)


@torch.inference_mode()
def test_counts_of_a_whole_step_are_the_sum_over_its_matrices() -> None:
    """LLaVA: every linear layer's weights times its rows, attention, patches; one camera, a window of one frame."""
    policy = build(tiny("llava", history=1, head="fc"), CPU)
    frames = SyntheticFrames(policy.config.cameras, shape=SHAPE)
    way = make_way("careful", policy, frames)
    way.step(0)
    # transformers' rotary tables are an outer product, in some versions by bmm.
    counted = sum(op.flops for op in count(lambda: way.step(1)) if op.name != "bmm")
    rows: list[tuple[nn.Linear, int]] = []
    hooks = [m.register_forward_hook(lambda m, i, o: rows.append((m, i[0].numel() // i[0].shape[-1])))
             for m in policy.modules() if isinstance(m, nn.Linear)]
    way.step(2)
    for hook in hooks:
        hook.remove()
    linear = sum(2 * n * m.weight.numel() for m, n in rows)
    vision, text = policy.vlm.hf_config.vision_config, policy.vlm.hf_config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2
    convolution = 2 * patches * vision.hidden_size * 3 * vision.patch_size**2
    length = next(n for m, n in rows if m is policy.vlm.text_tower.layers[0].self_attn.q_proj)
    layers = sum(1 for m, _ in rows if any(m is layer.self_attn.q_proj for layer in tower_layers(policy)))
    attention = layers * 4 * (patches + 1) ** 2 * vision.hidden_size
    attention += text.num_hidden_layers * 4 * length**2 * text.hidden_size
    assert counted == linear + convolution + attention


def tower_layers(policy: VLAPolicy) -> list[nn.Module]:
    return [m for m in policy.vlm.vision_tower.modules() if hasattr(m, "self_attn")]


def test_fast_counts_less_than_plain() -> None:
    policy = build(tiny(cameras=2), CPU)
    frames = SyntheticFrames(policy.config.cameras, shape=SHAPE)
    flops = {}
    for name in ("fast", "plain", "logits"):
        way = make_way(name, policy, frames)
        for index in range(4):
            way.step(index)
        flops[name] = sum(op.flops for op in count(lambda way=way: way.step(4)))  # type: ignore[misc]
    assert flops["fast"] < flops["plain"] < flops["logits"]


def test_roofline_is_the_larger_of_arithmetic_and_traffic_by_operation() -> None:
    ceilings = Ceilings({"float32": 100.0, "bfloat16": 1000.0}, 10.0)
    operations = [Operation("mm", "float32", 500, 10), Operation("mm", "bfloat16", 500, 10)]
    assert roofline(operations, ceilings) == 5.0 + 1.0


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("mode", ["auto", "off"])
def test_robots_together_answer_as_alone(backbone: str, mode: str) -> None:
    policy = build(tiny(backbone, cameras=2), CPU)
    words = ("pick up the red block", "put the left block into the drawer", "pick up the red block")
    frames = [SyntheticFrames(policy.config.cameras, seed, shape=SHAPE) for seed in range(3)]
    together = [PolicySession(policy, fast=options_for(mode, "cpu")) for _ in words]
    alone = [PolicySession(policy) for _ in words]
    for index in range(5):
        seen = [replace(f[index], instruction=text) for f, text in zip(frames, words, strict=True)]
        if index == 2:
            for session in (together[1], alone[1]):
                session.observe(replace(seen[1], stamp_ns=seen[1].stamp_ns - 1))
        chunks = predict_together(together, seen)
        for chunk, session, observation in zip(chunks, alone, seen, strict=True):
            expected = session.predict_action_chunk(observation)
            np.testing.assert_allclose(chunk.values, expected.values, atol=1e-6)
            assert chunk.instruction == observation.instruction and chunk.stamp_ns == observation.stamp_ns


def test_robots_together_take_the_fast_path() -> None:
    policy = build(tiny("paligemma"), CPU)
    spliced, widths = [], []
    make = policy.vlm.build_sequence
    policy.vlm.build_sequence = lambda *args: spliced.append(1) or make(*args)  # type: ignore[method-assign,func-returns-value]
    policy.vlm.text_tower.layers[-1].mlp.register_forward_pre_hook(lambda m, args: widths.append(args[0].shape[:2]))
    words = ("pick up the red block", "put the left block into the drawer", "pick up the red block")
    frames = SyntheticFrames(policy.config.cameras, shape=SHAPE)
    sessions = [PolicySession(policy, fast=options_for("auto", "cpu")) for _ in words]
    for index in range(4):
        predict_together(sessions, [replace(frames[index], instruction=text) for text in words])
    assert len(spliced) == 2 and widths == [(2, 1), (1, 1)] * 4


def test_robots_of_different_policies_or_paths_are_refused() -> None:
    policies = [build(tiny(), CPU) for _ in range(2)]
    frames = SyntheticFrames(("static",), shape=SHAPE)
    for sessions, reason in (
        ([PolicySession(policy) for policy in policies], "share one policy"),
        ([PolicySession(policies[0]), PolicySession(policies[0], fast=options_for("auto", "cpu"))], "take one path"),
    ):
        with pytest.raises(RoboVLMsError, match=reason):
            predict_together(sessions, [frames[0], frames[0]])


def test_the_heads_window_by_its_states_equals_the_window_run_again() -> None:
    cost = window_cost(CPU, torch.float32, window=5, in_features=16, hidden_size=8, num_layers=2, rounds=2, steps=3)
    assert cost.difference < 1e-6
    assert set(cost.seconds) == {"one_frame", "answer", "put_off", "whole", "again"}
    assert 0 < cost.seconds["answer"] < cost.seconds["whole"] and cost.growth < cost.whole_growth
    assert cost.whole_gain < cost.gain


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mid_sizes_have_the_parameters_that_they_say(backbone: str) -> None:
    config = config_of(Case(backbone, "mid"))
    with parameters_on_meta():
        policy = VLAPolicy(config, random_tokenizer(config, None))
    assert 0.2e9 <= size_of(policy)["without_embedding"] <= 0.5e9
    if backbone == "paligemma":
        assert policy.vlm.word_embedding.num_embeddings == 257216


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("on_gpu", [False, True])
def test_presets_name_cases_that_can_be_built(name: str, on_gpu: bool) -> None:
    for job in preset(name, on_gpu).jobs:
        config_of(job.case)
        # A path that may fail or take minutes is a job of its own.
        alone = name == "gpu" and len(job.paths) == 1
        assert alone or job.paths[0] == ("plain" if name == "parts" else "fast")
        assert all(is_own(path) or path in BY_HAND for path in job.paths)


def test_the_counted_twin_has_the_text_length_that_ran() -> None:
    policy = build(tiny(), CPU)
    frames = SyntheticFrames(policy.config.cameras, shape=SHAPE)
    name = "fast:prompt_cache+staggered_lstm+compile"
    twin = countable(make_way("fast", policy, frames), name, policy, frames)
    assert twin.sessions[0].fast.prompt_bucket == 32 and not twin.sessions[0].fast.compile
    assert countable(twin, "plain", policy, frames) is twin


def test_percentiles_are_of_consecutive_steps() -> None:
    order: list[str] = []
    steps = {name: lambda index, name=name: order.append(name) for name in ("a", "b")}
    alternating = Alternating(steps, CPU)
    assert len(alternating.run("a", 5, 60.0)) == 5 and order == ["a"] * 5
    assert len(alternating.run("b", 5, 0.0)) == 0


def test_the_roofline_knows_the_rate_of_each_precision() -> None:
    ceilings = Ceilings({"bfloat16": 1.0, "float8_e4m3fn": 2.0}, 1e9)
    assert roofline([Operation("_scaled_mm", "float8_e4m3fn", 10, 1)], ceilings) == 5.0
