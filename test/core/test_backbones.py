"""Backbones against transformers' own forward pass, and the contract that all of them meet.

- visual tokens and last hidden states equal transformers' full forward on the same sequence within 1e-5, with one and
  two cameras, with a padded row, and with an action token that is a copy of an ordinary word's embedding;
- positions on three axes equal transformers' own;
- every backbone has the required attributes; all faults of one that has not are listed in one message;
- a padded row of a batch computes what it computes alone; `last_column` (RoboVLMs) does not;
- Flamingo's resampler and cross attention take sizes, which are checked and saved;
- histories that a family cannot have, remote-code families, old Qwen and unknown names are refused by name.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy, save_policy
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.core.registry import BACKBONES, resolve
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.models.backbones import sequence as seq
from robovlms_ros.models.backbones.base import REQUIRED
from robovlms_ros.models.backbones.paligemma import RoboPaligemma
from robovlms_ros.models.backbones.qwen import grid_positions, to_patches
from robovlms_ros.models.backbones.spec import BackboneError
from robovlms_ros.models.vla_policy import VLAPolicy

MakeConfig = Callable[..., PolicyConfig]
# backbone, model type, other vlm settings
VARIANTS = [
    ("paligemma", "paligemma", {}),
    ("paligemma", "paligemma", {"text_config": {"model_type": "gemma2"}}),
    ("llava", "llava", {}),
    ("llava", "llava", {"text_config": {"model_type": "mistral"}}),
    ("llava", "llava_next", {}),
    ("qwen", "qwen2_5_vl", {}),
    ("qwen", "qwen3_vl", {}),
    ("smolvlm", "smolvlm", {}),
]
PLACEHOLDER = 8  # the word "green", which no test's sequence holds
IDS = ["paligemma", "paligemma2", "llava", "llava-mistral", "llava_next", "qwen2_5_vl", "qwen3_vl", "smolvlm"]


def variant_policy(make_config: MakeConfig, variant: tuple[str, str, dict[str, Any]], **blocks: Any) -> VLAPolicy:
    backbone, model_type, settings = variant
    name = "image_token_index" if backbone in ("paligemma", "llava") else "image_token_id"
    vlm: dict[str, Any] = {"settings": {"model_type": model_type, name: PLACEHOLDER, **settings}}
    if model_type == "llava_next":
        vlm["image_size"] = 56
    policy = build_policy(make_config(backbone, vlm=vlm, **blocks), seed=1)
    # Larger weights than transformers' initialisation: small ones hide errors.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return policy


def own_inputs(policy: VLAPolicy, images: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Inputs of transformers' full forward for images (N, 3, S, S), cameras in the sequence's order, row by row."""
    kind = policy.vlm.hf_config.model_type
    ordered = [images[name] for name in reversed(policy.config.cameras)]
    rows = torch.stack(ordered, dim=1)  # (N, cameras, 3, S, S)
    flat = rows.flatten(0, 1)
    if kind == "smolvlm":
        return {"pixel_values": rows}
    if kind in ("qwen2_5_vl", "qwen3_vl"):
        vision = policy.vlm.hf_config.vision_config
        side = flat.shape[-1] // vision.patch_size
        patches = to_patches(flat, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, side, side]] * len(flat))}
    if kind == "llava_next":
        half = torch.nn.functional.interpolate(flat, (28, 28), mode="bicubic", antialias=True)
        corners = [flat[..., i : i + 28, j : j + 28] for i in (0, 28) for j in (0, 28)]
        return {
            "pixel_values": torch.stack([half, *corners], dim=1),
            "image_sizes": torch.tensor([[56, 56]] * len(flat)),
        }
    return {"pixel_values": flat}


@pytest.mark.parametrize("cameras", [["static"], ["static", "wrist"]], ids=["one", "two"])
@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
@torch.no_grad()
def test_equals_transformers_forward(make_config: MakeConfig, variant: Any, cameras: list[str]) -> None:
    policy = variant_policy(make_config, variant, cameras=cameras)
    vlm, size = policy.vlm, policy.vlm.image_size
    word = 7
    vlm.action_token.copy_(vlm.word_embedding.weight[word])
    generator = torch.Generator().manual_seed(3)
    images = {name: torch.randn(2, 3, size, size, generator=generator) for name in cameras}
    text = policy.tokenize(["lift the red cube", "lift"])
    visual = vlm.encode_frames(images)
    sequence = vlm.build_sequence(visual, text["input_ids"], text["attention_mask"])
    ours = vlm.run_text_tower(sequence).last_hidden_state

    ids = ids_of(vlm, sequence, word)
    extra = own_inputs(policy, images)
    if "image_grid_thw" in extra:
        extra["mm_token_type_ids"] = (sequence.kinds == seq.IMAGE).int()
    theirs = vlm.backbone.model(input_ids=ids, attention_mask=sequence.mask.long(), **extra).last_hidden_state
    attended = sequence.mask
    assert (ours - theirs)[attended].abs().max() < 1e-5
    assert theirs[attended].abs().max() > 0.5
    got = sequence.select(ours, (seq.ACTION,))
    features = vlm.forward_features(visual, text["input_ids"], text["attention_mask"])
    assert torch.equal(got[:, None], features)


def ids_of(vlm: Any, sequence: seq.TokenSequence, word: int) -> torch.Tensor:
    """Token ids of a spliced sequence: words found by their embeddings, placeholders where the images are."""
    known = {tuple(vlm.word_embedding.weight[i].tolist()): i for i in range(vlm.word_embedding.num_embeddings)}
    ids = torch.full(sequence.kinds.shape, PLACEHOLDER)
    for row, column in (sequence.kinds != seq.IMAGE).nonzero().tolist():
        ids[row, column] = known[tuple(sequence.embeds[row, column].tolist())]
    assert (ids[sequence.kinds == seq.ACTION] == word).all()
    return ids


@pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
@torch.no_grad()
def test_image_features_equal_transformers(make_config: MakeConfig, variant: Any) -> None:
    policy = variant_policy(make_config, variant)
    size = policy.vlm.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))
    features = policy.vlm.model_encode_images(images)
    extra = own_inputs(policy, {"static": images})
    theirs = policy.vlm.backbone.model.get_image_features(**extra).pooler_output
    theirs = torch.stack(list(theirs)) if isinstance(theirs, list | tuple) else theirs
    if variant[0] == "paligemma":
        theirs = theirs / policy.vlm.hidden_size**0.5
    assert (features - theirs).abs().max() < 1e-5


@torch.no_grad()
def test_a_grey_image_is_an_image(make_config: MakeConfig) -> None:
    policy = build_policy(make_config("smolvlm"))
    features = policy.vlm.model_encode_images(torch.zeros(2, 3, 56, 56))
    assert features.shape == (2, 4, 64)


def test_positions_equal_transformers(make_config: MakeConfig) -> None:
    policy = build_policy(make_config("qwen"))
    kinds = torch.tensor([[0, 4, 2, 2, 2, 2, 2, 2, 4, 0, 0], [0, 4, 2, 2, 2, 2, 2, 2, 4, 0, 6]])
    mask = kinds != seq.PAD
    theirs, _ = policy.vlm.backbone.model.get_rope_index(
        input_ids=torch.zeros_like(kinds),
        mm_token_type_ids=(kinds == seq.IMAGE).int(),
        image_grid_thw=torch.tensor([[1, 4, 6], [1, 4, 6]]),
        attention_mask=mask.long(),
    )
    assert torch.equal(grid_positions(kinds, seq.IMAGE, mask, ((1, 2, 3),)), theirs)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@torch.no_grad()
def test_every_backbone_meets_the_contract(make_config: MakeConfig, name: str) -> None:
    policy = build_policy(make_config(name, cameras=["static", "wrist"], proprioception={"names": ["gripper"]}))
    policy.vlm.validate()
    size = policy.vlm.image_size
    batch = {
        "images": {camera: torch.randn(2, 3, 3, size, size) for camera in policy.config.cameras},
        "proprioception": torch.rand(2, 3, 1),
        **policy.tokenize(["lift the red cube", "lift"]),
    }
    output = policy(batch)
    assert output.arm.shape == (2, 3, 4, 6) and output.gripper_logits.shape == (2, 3, 4, 1)
    assert torch.isfinite(output.arm).all()
    assert not hasattr(policy.vlm.backbone, "lm_head") or isinstance(policy.vlm.backbone.lm_head, nn.Identity)


@pytest.mark.parametrize("name", sorted(BACKBONES))
@pytest.mark.parametrize("history", ["post", "pre", "video"])
@torch.no_grad()
def test_a_padded_row_computes_what_it_computes_alone(make_config: MakeConfig, name: str, history: str) -> None:
    head = {"type": "fc", "num_layers": None}
    state = {"names": ["gripper"]}
    config = make_config(name, model={"history_type": history}, action_head=head, proprioception=state)
    if name == "flamingo" and history != "post":
        with pytest.raises(BackboneError, match="one frame"):
            build_policy(config)
        return
    policy = build_policy(config, seed=3)
    size = policy.vlm.image_size
    batch = {
        "images": {"static": torch.randn(2, 3, 3, size, size)},
        "proprioception": torch.rand(2, 3, 1),
        **policy.tokenize(["lift", "lift the red cube"]),
    }
    alone = {
        "images": {"static": batch["images"]["static"][:1]},
        "proprioception": batch["proprioception"][:1],
        **policy.tokenize(["lift"]),
    }
    assert (policy.action_features(batch)[0] - policy.action_features(alone)[0]).abs().max() < 1e-5


@torch.no_grad()
def test_the_reference_layout_leaves_the_action_token_in_the_last_column(make_config: MakeConfig) -> None:
    policy = build_policy(make_config(model={"padding": "last_column"}))
    text = policy.tokenize(["lift", "lift the red cube"])
    visual = policy.vlm.encode_frames({"static": torch.randn(2, 3, 28, 28)})
    sequence = policy.vlm.build_sequence(visual, text["input_ids"], text["attention_mask"])
    assert (sequence.kinds[:, -2] == seq.ACTION).all()


def test_validate_lists_every_fault(make_config: MakeConfig) -> None:
    class Faulty(RoboPaligemma):
        hidden_size = "wide"  # type: ignore[assignment]
        text_tower = None  # type: ignore[assignment]
        model_encode_images = 3  # type: ignore[assignment]

        @property
        def vision_tower(self) -> nn.Module:
            raise AttributeError("there is none")

    with pytest.raises(BackboneError) as caught:
        Faulty(make_config())
    message = str(caught.value)
    for name in ("hidden_size", "text_tower", "vision_tower", "model_encode_images", "word_embedding"):
        assert name in message
    assert set(REQUIRED) >= {"image_processor", "hidden_size", "word_embedding", "text_tower", "vision_tower", "model"}


def test_refused_by_name(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"moondream.*remote code.*smolvlm"):
        resolve("backbone", "moondream")
    with pytest.raises(ConfigError, match=r"Did you mean 'paligemma'"):
        resolve("backbone", "paligema")
    with pytest.raises(BackboneError, match=r"Qwen/Qwen-VL.*Qwen2.5-VL"):
        build_policy(make_config("qwen", vlm={"model_name": "Qwen/Qwen-VL", "size": "full", "vocabulary": []}))
    with pytest.raises(ConfigError, match=r"unknown key 'num_layerz'"):
        build_policy(make_config(vlm={"settings": {"text_config": {"num_layerz": 3}}}))


def test_cameras_must_match(make_config: MakeConfig) -> None:
    policy = build_policy(make_config())
    with pytest.raises(BackboneError, match=r"static.*wrist|wrist.*static"):
        policy.vlm.encode_frames({"static": torch.zeros(1, 3, 28, 28), "wrist": torch.zeros(1, 3, 28, 28)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perceiver": {"deep": 1}}, r"vlm.settings.perceiver: unknown key 'deep'.*depth"),
        ({"cross_attention": {"heads": 0}}, r"cross_attention.heads = 0: must be a whole number above 0"),
        ({"perceiver": 3}, r"perceiver = 3: must be a mapping with depth, dim_head, heads, num_latents"),
    ],
)
def test_flamingos_sizes_are_checked(
    make_config: MakeConfig, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_policy(make_config("flamingo", vlm={"settings": settings}))


def test_flamingo_takes_sizes(make_config: MakeConfig, tmp_path: Path) -> None:
    """They are in the checkpoint; what is left out is OpenFlamingo's."""
    sizes = {"perceiver": {"depth": 1, "num_latents": 5}, "cross_attention": {"heads": 2}}
    policy = build_policy(make_config("flamingo", vlm={"settings": sizes}), seed=1)
    save_policy(policy, tmp_path / "saved")
    for made in (policy, load_policy(tmp_path / "saved")):
        backbone = made.vlm.backbone
        assert len(backbone.perceiver.layers) == 1
        assert len(backbone.perceiver.latents) == 5
        gated = [layer.gated_cross_attn_layer.attn for layer in backbone.decoder_layers]
        assert {attention.heads for attention in gated} == {2}
        assert {attention.to_q.out_features for attention in gated} == {2 * 64}
