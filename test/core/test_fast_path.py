"""The fast path's answers against the plain path's, part by part and together.

- parts by themselves, and all of them, on every family: equal within 1e-5, through instructions of two lengths;
- every history type, several action tokens, tokens pooled or resampled, masked action tokens, RoboVLMs' padding;
- a prompt padded to a bucket answers as the unpadded one; lengths within a bucket have one shape;
- prompts are embedded and spliced once per instruction; the last layer's MLP sees the action tokens alone;
- a timer is entered once per stage at a time, and left;
- an unknown last layer, a discrete head and unknown parts are refused by name, and the plain stage runs.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.inference.optimized.options import FastPathError, FastPathOptions, options_for
from robovlms_ros.inference.optimized.text_towers import prune_last_layer
from robovlms_ros.inference.session import PolicySession

_spec = importlib.util.spec_from_file_location("fast_paths", Path(__file__).parent / "fast_paths.py")
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

MakeConfig = Callable[..., PolicyConfig]
TWO = {"cameras": ["static", "wrist"], "proprioception": {"names": ["gripper"]}}
FRAMES = [helpers.frame(i) for i in range(4)] + [helpers.frame(i, words="lift the green cube the cube") for i in (4, 5)]
ONE_BY_ONE = ("prompt_cache", "last_layer_action_only", "staggered_lstm", "batch_cameras")


@pytest.mark.parametrize("family", helpers.FAMILIES)
def test_every_part_on_every_family(make_config: MakeConfig, family: str) -> None:
    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm, **TWO))
    parts = ONE_BY_ONE if family == "paligemma" else ONE_BY_ONE[:2]
    for options in (*(FastPathOptions.only(name) for name in parts), FastPathOptions(prompt_bucket=16)):
        assert helpers.largest_difference(policy, options, FRAMES) < 1e-5, options
    session = PolicySession(policy, fast=FastPathOptions())
    assert all(name in session.path_reason for name in ONE_BY_ONE)


HEADS: list[dict[str, Any]] = [
    {"latent": 3},
    {"latent": 2, "fill_zero": True},
    {"action_space": "down_sample", "down_sample": "pooling", "latent": 2},
    {"action_space": "down_sample", "down_sample": "resampler", "latent": 2, "token_source": "text"},
    {"action_space": "down_sample", "down_sample": "pooling", "token_source": "vision"},
]


NAMES = ["three", "fill-zero", "pooled", "resampled-text", "pooled-vision"]
COMBINED = [(h, "paligemma", t) for h in ("post", "pre", "video") for t in NAMES]
COMBINED += [(h, b, "three") for h in ("pre", "video") for b in ("kosmos", "smolvlm")]


@pytest.mark.parametrize(("history", "backbone", "tokens"), COMBINED)
def test_histories_and_tokens(make_config: MakeConfig, history: str, backbone: str, tokens: str) -> None:
    head = HEADS[NAMES.index(tokens)]
    kind = "fc" if history == "video" else "lstm"
    block = {"type": kind, "hidden_size": 16, "num_layers": None if kind == "fc" else 2, **head}
    policy = helpers.lively(make_config(backbone, model={"history_type": history}, action_head=block, **TWO))
    assert helpers.largest_difference(policy, FastPathOptions(prompt_bucket=8), FRAMES) < 1e-5


def test_padding_as_robovlms_has_it(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(model={"padding": "last_column"}, **TWO))
    assert helpers.largest_difference(policy, FastPathOptions(prompt_bucket=16), FRAMES) < 1e-5


def test_a_bucket_has_one_shape(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(**TWO))
    lengths: list[int] = []
    policy.vlm.text_tower.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True)
    for bucket in (16, 1):
        session = PolicySession(policy, fast=FastPathOptions(last_layer_action_only=False, prompt_bucket=bucket))
        for observation in FRAMES:
            session.predict_action_chunk(observation)
    padded, exact = lengths[: len(FRAMES)], lengths[len(FRAMES):]
    assert len(set(padded)) == 1 and len(set(exact)) == 2


def test_once_per_instruction(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(**TWO))
    spliced, widths = [], []
    build = policy.vlm.build_sequence
    policy.vlm.build_sequence = lambda *args: spliced.append(1) or build(*args)  # type: ignore[method-assign]
    policy.vlm.text_tower.layers[-1].mlp.register_forward_pre_hook(lambda m, args: widths.append(args[0].shape[1]))
    session = PolicySession(policy, fast=FastPathOptions())
    for observation in FRAMES:
        session.predict_action_chunk(observation)
    assert len(spliced) == 2 and set(widths) == {1}


def test_an_unknown_last_layer_is_refused(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(**TWO))
    policy.vlm.text_tower.layers[-1].extra = torch.nn.Identity()
    with pytest.raises(FastPathError, match=r"GemmaDecoderLayer holds extra"):
        prune_last_layer(policy.vlm.text_tower, torch.zeros(1, dtype=torch.int64))
    session = PolicySession(policy, fast=FastPathOptions())
    assert "without last_layer_action_only" in session.path_reason and "prompt_cache" in session.path_reason
    assert helpers.largest_difference(policy, FastPathOptions(), FRAMES) < 1e-5


def test_stages_are_timed_one_after_the_other(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(**TWO))
    for options in (None, FastPathOptions(), FastPathOptions(device_preprocess=True, batch_cameras=False)):
        entered: list[str] = []
        open_ones: list[str] = []

        @contextlib.contextmanager
        def timer(stage: str, entered: list[str] = entered, open_ones: list[str] = open_ones) -> Iterator[None]:
            assert not open_ones, f"{stage} within {open_ones}"
            entered.append(stage)
            open_ones.append(stage)
            yield
            open_ones.pop()

        PolicySession(policy, fast=options).predict_action_chunk(FRAMES[0], timer)
        order = list(dict.fromkeys(entered))
        assert [name for name in order if name != "projector"] == ["preprocess", "vision", "text", "head", "post"]
        assert "projector" in order and not open_ones


def test_the_model_itself_is_left_as_it_is(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config(**TWO))
    before = list(policy.state_dict())
    layer = policy.vlm.text_tower.layers[-1]
    PolicySession(policy, fast=FastPathOptions()).predict_action_chunk(FRAMES[0])
    assert list(policy.state_dict()) == before and policy.vlm.text_tower.layers[-1] is layer


def test_refused_by_name(make_config: MakeConfig) -> None:
    with pytest.raises(FastPathError, match="no part 'wings'"):
        FastPathOptions.only("wings")
    with pytest.raises(FastPathError, match="must be one of auto, max"):
        options_for("quick", "cpu")
    assert options_for("off", "cuda") is None and options_for("auto", "cpu") == FastPathOptions()
    assert options_for("fp8", "cpu") == FastPathOptions(quantize="fp8")
    for removed in ("int8", "int4"):
        with pytest.raises(FastPathError, match=f"'{removed}': .* were removed. Use bfloat16 weights"):
            options_for(removed, "cpu")
    assert options_for("max", "cuda") == FastPathOptions(
        device_preprocess=True, fused_weights=True, cuda_graphs=True, compile=True
    )
    policy = helpers.lively(make_config(**TWO))
    nothing = PolicySession(policy, fast=FastPathOptions.only())
    assert (nothing.path, PolicySession(policy).path) == ("plain", "plain")
    assert "switched off" in nothing.path_reason and "not asked" in PolicySession(policy).path_reason


def test_a_discrete_head_keeps_generating(make_config: MakeConfig) -> None:
    head = {"type": "discrete", "action_space": "discrete", "num_layers": None, "n_bin": 16}
    vlm = {"vocabulary": [], "size": "tiny"}
    policy = helpers.lively(make_config(action_head=head, vlm=vlm, model={"action_chunk_size": 2}, **TWO))
    session = PolicySession(policy, fast=FastPathOptions())
    assert "the discrete head generates words" in session.path_reason
    assert helpers.largest_difference(policy, FastPathOptions(), FRAMES[:2]) == 0.0
