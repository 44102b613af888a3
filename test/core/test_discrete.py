"""The discrete action space, end to end.

- Generation with a key-value cache gives the ids that decoding without one gives, seven different ones a step.
- Greedy is repeatable; a temperature samples, repeatably for a seed.
- A session answers a chunk of whole steps; a padded prompt, a cross-attention backbone and a forward pass are refused.
- Training: labels stand where the text stands, images are not learned, every frame of a window counts.
"""

import numpy as np
import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.core.types import Observation
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.action_tokens import generate, token_logits, training_logits
from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.sequence import TokenBlock
from robovlms_ros.models.backbones.spec import BackboneError
from robovlms_ros.models.heads.base import HeadError

WORDS = ["lift", "the", "red", "cube", *(f"word{i}" for i in range(480))]
BACKBONES = [("kosmos", {}), ("paligemma", {}), ("llava", {}), ("qwen", {}), ("qwen", {"model_type": "qwen3_vl"})]


@pytest.fixture
def make_policy(make_config):
    def make(backbone="kosmos", settings=None, **vlm):
        config = make_config(
            backbone,
            model={"history_length": 1, "action_chunk_size": 2},
            action_head={"type": "discrete", "action_space": "discrete", "n_bin": 64},
            vlm={"size": "tiny", "vocabulary": WORDS, "settings": settings or {}, **vlm},
        )
        policy = build_policy(config, seed=3)
        # Tied, small random embeddings repeat one token for ever; an output matrix of its own makes the ids vary.
        output = policy.vlm.backbone.get_output_embeddings()
        policy.vlm.word_embedding.weight.data.mul_(10)
        noise = torch.randn(output.weight.shape, generator=torch.Generator().manual_seed(0))
        output.weight = torch.nn.Parameter(noise)
        return policy

    return make


def prompt_sequence(policy):
    image = policy.vlm.image_processor(frame())[None]
    visual = policy.vlm.encode_frames({"static": image})
    tokens = policy.tokenize(["lift the red cube"])
    return policy.vlm.build_sequence(visual, tokens["input_ids"], tokens["attention_mask"])


def frame(seed=0):
    return np.random.RandomState(seed).randint(0, 255, (40, 50, 3), dtype=np.uint8)


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "settings"), BACKBONES)
def test_cache_changes_nothing(make_policy, backbone, settings):
    policy = make_policy(backbone, settings)
    sequence = prompt_sequence(policy)
    ids = generate(policy.vlm, sequence, 7)[0].tolist()
    without = []
    for _ in ids:
        hidden = policy.vlm.run_text_tower(sequence).last_hidden_state[:, -1]
        token = token_logits(policy.vlm, hidden).argmax(-1)
        without.append(int(token))
        block = TokenBlock(policy.vlm.embed_text(token[:, None]), seq.TEXT)
        sequence = seq.insert(sequence, block, sequence.embeds.shape[1])
    assert ids == without
    assert len(set(ids)) == 7


@torch.no_grad()
def test_temperature_samples_repeatably(make_policy):
    policy = make_policy()
    sequence = prompt_sequence(policy)

    def sample(seed, temperature=5.0):
        return generate(policy.vlm, sequence, 14, temperature, torch.Generator().manual_seed(seed)).tolist()

    assert sample(1) == sample(1) != sample(2)
    assert sample(1, 0.0) == sample(2, None) == generate(policy.vlm, sequence, 14).tolist()


def test_session_answers_whole_steps(make_policy):
    policy = make_policy(temperature=0.5)
    chunks = [
        PolicySession(policy).predict_action_chunk(Observation(1, {"static": frame()}, "lift the cube"))
        for _ in range(2)
    ]
    assert chunks[0].values.shape == (2, 7)
    np.testing.assert_array_equal(chunks[0].values, chunks[1].values)
    assert set(chunks[0].values[:, 6]) <= {0.0, 1.0}
    bound = np.array([0.02] * 3 + [0.05] * 3)
    assert (np.abs(chunks[0].values[:, :6]) <= bound).all()


@torch.no_grad()
def test_padding_is_refused(make_policy):
    policy = make_policy()
    sequence = prompt_sequence(policy)
    sequence.mask[0, -1] = False
    with pytest.raises(ValueError, match="padding"):
        generate(policy.vlm, sequence, 7)


def test_a_forward_pass_says_what_to_call_instead(make_policy):
    with pytest.raises(HeadError, match="training_logits"):
        make_policy().head(torch.zeros(1, 1, 1, 64))


def test_cross_attention_backbone_is_refused(make_policy):
    with pytest.raises(BackboneError, match="down_sample"):
        make_policy("flamingo")


@torch.no_grad()
def test_training_labels_follow_their_tokens(make_policy):
    policy = make_policy()
    ids = torch.arange(2 * 3 * 9).reshape(2, 3, 9) + 10
    images = torch.randn(6, 3, policy.vlm.image_size, policy.vlm.image_size)
    visual = policy.vlm.encode_frames({"static": images})
    logits, labels = training_logits(policy.vlm, visual, ids, torch.ones_like(ids), ids)
    assert logits.shape[:2] == labels.shape
    assert labels[labels != -100].tolist() == ids.flatten().tolist()
    assert (labels == -100).sum() == 6 * visual["static"].tokens.shape[1]
