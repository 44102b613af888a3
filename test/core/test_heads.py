"""Policy heads.

- Every head is causal and stateless: the answer to a frame depends on it and those before it, not on earlier calls.
- latent 1 and 2 with down_sample none, pooling and resampler, in all three heads; shapes and range of the output.
- What does not fit is refused with the remedy: tokens, width, window, dropout without a place, GPT's odd widths.
- The perceiver is indifferent to the order of its media; a gated cross attention with closed gates changes nothing.
- Action tokens: round trip within half a bin, ids outside the range become the nearest value, steps must be whole.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robovlms_ros.config.policy import HeadConfig
from robovlms_ros.models.heads.base import HeadError
from robovlms_ros.models.heads.discrete import ActionTokenizer
from robovlms_ros.models.perceiver import GatedCrossAttention, PerceiverResampler
from robovlms_ros.models.vla_policy import build_discrete_head, build_head

FEW = settings(deadline=None, max_examples=30)
WIDTH, HORIZON, WINDOW = 24, 3, 5


def head_of(kind, down_sample="none", latent=1, **settings):
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "num_layers": 2, **settings}
    config = HeadConfig(kind, down_sample=down_sample, latent=latent, **settings)
    return build_head(config, WIDTH, HORIZON, WINDOW).eval()


def features(tokens, frames=WINDOW, batch=2):
    return torch.randn(batch, frames, tokens, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("latent", [1, 2])
@pytest.mark.parametrize("down_sample", ["none", "pooling", "resampler"])
@pytest.mark.parametrize("kind", ["lstm", "gpt", "fc"])
def test_shapes_range_and_causality(kind, down_sample, latent):
    head, tokens = head_of(kind, down_sample, latent), latent if down_sample == "none" else 7
    x = features(tokens)
    output = head(x)
    assert output.arm.shape == (2, WINDOW, HORIZON, 6) and output.gripper_logits.shape == (2, WINDOW, HORIZON, 1)
    assert output.arm.abs().max() <= 1
    changed = x.clone()
    changed[:, 3:] *= -1
    later = head(changed)
    torch.testing.assert_close(later.arm[:, :3], output.arm[:, :3])
    assert not torch.allclose(later.arm[:, 3], output.arm[:, 3])
    torch.testing.assert_close(head(x).arm, output.arm)  # the call in between left nothing behind


@pytest.mark.parametrize("kind", ["lstm", "gpt"])
def test_history_matters_and_fc_has_none(kind):
    x = features(1)
    changed = x.clone()
    changed[:, 0] += 1
    assert not torch.allclose(head_of(kind)(changed).arm[:, -1], head_of(kind)(x).arm[:, -1])
    torch.testing.assert_close(head_of("fc")(changed).arm[:, -1], head_of("fc")(x).arm[:, -1])


def test_other_action_dimensions():
    assert head_of("fc", action_dim=8)(features(1)).arm.shape == (2, WINDOW, HORIZON, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: head_of("lstm")(features(3)), ["3 tokens", "down_sample"]),
        (lambda: head_of("fc")(features(1)[..., :-1]), ["(2, 5, 1, 23)", "24"]),
        (lambda: head_of("gpt")(features(1, frames=6)), ["6 frames", "5 positions"]),
        (lambda: head_of("lstm", num_layers=1, dropout=0.1), ["dropout = 0.1", "num_layers"]),
        (lambda: head_of("gpt", hidden_size=12), ["12", "multiple of 8"]),
        (lambda: build_head(HeadConfig("fcc"), WIDTH, HORIZON, WINDOW), ["'fcc'", "Did you mean 'fc'?"]),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(HeadError) as error:
        make()
    assert all(word in str(error.value) for word in words)


def test_layers_default_to_the_reference():
    assert build_head(HeadConfig("lstm", hidden_size=16), WIDTH, HORIZON, WINDOW).rnn.num_layers == 4
    assert len(build_head(HeadConfig("gpt", hidden_size=16), WIDTH, HORIZON, WINDOW).gpt.h) == 8


def test_parameter_counts_of_the_published_sizes():
    """Kosmos, chunk of 10: 41.21 M (LSTM), 6.58 M (FC), 106.3 M (GPT, window 16)."""
    counts = {}
    for kind in ("lstm", "fc", "gpt"):
        with torch.device("meta"):
            head = build_head(HeadConfig(kind), 2048, 10, 16)
        counts[kind] = sum(p.numel() for p in head.parameters()) / 1e6
    assert counts == pytest.approx({"lstm": 41.21, "fc": 6.58, "gpt": 106.3}, abs=0.06)


@torch.no_grad()
def test_perceiver_does_not_see_the_order_of_its_media():
    torch.manual_seed(0)
    module = PerceiverResampler(16, depth=2, dim_head=8, heads=2, num_latents=3)
    media = torch.randn(2, 5, 9, 16)
    assert module(media).shape == (2, 5, 3, 16)
    torch.testing.assert_close(module(media.flip(-2)), module(media), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_closed_gates_change_nothing():
    torch.manual_seed(0)
    module = GatedCrossAttention(16, 8, dim_head=8, heads=2)
    x, media = torch.randn(2, 4, 16), torch.randn(2, 1, 6, 8)
    torch.testing.assert_close(module(x, media), x)
    module.attn_gate.fill_(1.0)
    before_any_medium = module(x, media, torch.zeros(2, 4, dtype=torch.bool))
    torch.testing.assert_close(before_any_medium, x)


@FEW
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30), st.integers(2, 300))
def test_action_tokens_round_trip_within_half_a_bin(values, bins):
    tokens = ActionTokenizer(600, 5, bins)
    values = np.array(values)
    ids = tokens.encode(values)
    assert tokens.is_action(ids).all()
    assert np.abs(tokens.decode(ids) - values).max() <= 1.0 / (bins - 1) + 1e-12


def test_action_tokens_outside_the_range():
    tokens = ActionTokenizer(600, 5, 64)
    np.testing.assert_array_equal(tokens.encode(np.array([-9.0, 9.0])), tokens.encode(np.array([-1.0, 1.0])))
    assert tokens.decode(np.array([0, 599])).tolist() == [tokens.centres[-1], tokens.centres[0]]
    with pytest.raises(HeadError, match="vocabulary of 50"):
        ActionTokenizer(50, 5, 256)


def test_discrete_head_wants_whole_steps():
    config = dataclasses.replace(HeadConfig(), type="discrete", action_space="discrete", n_bin=64)
    head = build_discrete_head(config, 600, 5, HORIZON)
    assert head.decode(np.arange(14)).shape == (2, 7)
    with pytest.raises(HeadError, match="multiple of 7"):
        head.decode(np.arange(15))
