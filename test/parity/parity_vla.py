"""Checks of `vla/`: whole tiny models from pixels and token ids to actions, with both attention implementations."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from parity_case import LOSS, OTHER_ATTENTION, TOLERANCE, close, filled_state
from torch import Tensor, nn
from torch.nn import functional

from robovlms_ros.checkpoints.parameter_names import KeyLayout
from robovlms_ros.checkpoints.weights import assign
from robovlms_ros.config.policy import PolicyConfig, config_from_mapping
from robovlms_ros.models.action_tokens import generate, training_logits
from robovlms_ros.models.heads.base import HeadOutput
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.engine.objective import action_loss, token_loss


@torch.no_grad()
def check(case: dict[str, Any], path: Path) -> None:
    if "image_names" in case and "raw_arm" in case:
        import parity_wrapper

        parity_wrapper.check_checkpoint(case, path)
        return
    named = case.get("attn_impl", "eager")
    for attention in ("eager", "sdpa"):
        tolerance = TOLERANCE if attention == named else OTHER_ATTENTION
        policy = policy_of(case, attention)
        if "pred" in case and "train" in case:
            check_discrete(policy, case)
        elif "window" in case:
            check_spliced(policy, case, tolerance)
        elif "obs_embed" in case:
            check_cross_attention(policy, case, tolerance)
        else:
            raise AssertionError(f"unknown kind of model case, with {sorted(case)}")


def settings_of(case: dict[str, Any]) -> dict[str, Any]:
    """The tiny model's transformers configuration, as overrides of our own tiny one."""
    if "tiny_vlm" in case:
        return case["tiny_vlm"]
    if "tiny_text" in case:
        # Gemma's activation had a name of its own in the transformers of the recording.
        text = {"hidden_act" if key == "hidden_activation" else key: value for key, value in case["tiny_text"].items()}
        return {"text_config": text, "vision_config": case["tiny_vision"]}
    if "mpt" in case:
        # expansion_ratio has no effect in transformers' MPT.
        return {
            "text_config": {"model_type": "mpt", **{k: v for k, v in case["mpt"].items() if k != "expansion_ratio"}}
        }
    raise AssertionError(f"unknown kind of tiny model, with {sorted(case)}")


def configuration(case: dict[str, Any], settings: dict[str, Any], attention: str = "eager") -> PolicyConfig:
    """The case's own JSON, read as a published one, with the tiny model in place of the named one."""
    resampler = bool((case.get("kwargs") or {}).get("resampler", False))
    config = config_from_mapping({**case["config"], "use_vision_resampler": resampler}, "case")
    vlm = dataclasses.replace(config.vlm, model_name=None, size="tiny", settings=settings, attention=attention)
    return dataclasses.replace(config, vlm=vlm)


def policy_of(case: dict[str, Any], attention: str) -> VLAPolicy:
    policy = VLAPolicy(configuration(case, settings_of(case), attention))
    if "obs_embed" in case:
        policy.vlm.backbone.vision_encoder = StandInVision(case["obs_embed"].shape[-1])
    load(policy, filled_state(case["param_shapes"]))
    if "gates" in case:
        set_gates(policy, case["gates"])
    return policy.eval()


def load(policy: VLAPolicy, tensors: dict[str, Tensor]) -> None:
    """The reference's tensors through the loader of published checkpoints: every key is accounted for."""
    layout = KeyLayout(policy, tensors)
    assign(policy, tensors, layout.canonical, "case", layout.ignored)


def images_of(policy: VLAPolicy, record: dict[str, Any]) -> dict[str, Tensor]:
    streams = [record["vision_x"], record.get("vision_gripper")]
    return {name: x for name, x in zip(policy.config.cameras, streams, strict=False) if x is not None}


def check_spliced(policy: VLAPolicy, case: dict[str, Any], tolerance: float) -> None:
    record = case["window"]
    inputs = record["inputs"]
    images = images_of(policy, inputs)
    visual = policy.vlm.encode_frames({k: v.flatten(0, 1) for k, v in images.items()})
    static = visual[policy.config.cameras[0]].tokens
    close(
        static.unflatten(0, images[policy.config.cameras[0]].shape[:2]),
        case["encode_images"],
        tolerance,
        "visual tokens",
    )
    window = inputs["vision_x"].shape[1]
    sequence = policy.vlm.build_sequence(visual, inputs["lang_x"], inputs["attention_mask"], None, window)
    close(sequence.embeds, record["inputs_embeds"], tolerance, "spliced embeddings")
    close(sequence.mask.long(), record["vlm_attention_mask"], 0.0, "attention mask")
    batch = {"images": images, "input_ids": inputs["lang_x"], "attention_mask": inputs["attention_mask"]}
    features = policy.action_features(batch)
    close(features.reshape(record["action_hs"].shape), record["action_hs"], tolerance, "action features")
    output = policy(batch)
    check_output(output, record, tolerance)
    if "loss" in case:
        check_losses(output, case["loss"])
    if "stepwise" in case:
        check_steps(policy, case["stepwise"], tolerance)


def check_output(output: HeadOutput, record: dict[str, Any], tolerance: float) -> None:
    arm, logits = record["actions"], record["gripper_logits"]
    close(output.arm.reshape(arm.shape), arm, tolerance, "actions")
    close(output.gripper_logits.reshape(logits.shape), logits, tolerance, "gripper logits")


def check_losses(output: HeadOutput, record: dict[str, Any]) -> None:
    labels = record["gripper"]
    shaped = HeadOutput(output.arm.reshape(record["arm"].shape), output.gripper_logits.reshape(*labels.shape, 1))
    loss, expected = action_loss(shaped, record["arm"], labels, record["mask"]), record["out"]
    close(loss.arm, expected["loss_arm_act"], LOSS, "arm loss")
    close(loss.gripper, expected["loss_gripper_act"], LOSS, "gripper loss")
    close(loss.gripper_accuracy, expected["acc_gripper_act"], LOSS, "gripper accuracy")
    close(loss.total(1.0), expected["loss"], LOSS, "sum of both losses")


def check_steps(policy: VLAPolicy, record: dict[str, Any], tolerance: float) -> None:
    """One frame per call in the reference; ours keeps the features of the last W frames and calls the head on them."""
    window = policy.config.model.history_length
    features: list[Tensor] = []
    for t in range(len(record["vision_x"])):
        frame = {k: record[k][t] for k in ("vision_x", "vision_gripper") if record.get(k) is not None}
        batch = {
            "images": images_of(policy, frame),
            "input_ids": record["lang_x"],
            "attention_mask": record["attention_mask"],
        }
        features.append(policy.action_features(batch))
        output = policy.head(torch.cat(features[-window:], dim=1))
        newest = HeadOutput(output.arm[:, -1:], output.gripper_logits[:, -1:])
        check_output(newest, {k: record[k][t] for k in ("actions", "gripper_logits")}, tolerance)


def check_discrete(policy: VLAPolicy, case: dict[str, Any]) -> None:
    head, tok = policy.head, case["tok"]
    assert (head.tokens.begin, head.tokens.end) == (tok["begin"], tok["end"])
    train, camera = case["train"], policy.config.cameras[0]
    visual = policy.vlm.encode_frames({camera: train["vision_x"].flatten(0, 1)})
    logits, labels = training_logits(policy.vlm, visual, train["ids"], train["mask"], train["labels"])
    loss, expected = token_loss(logits, labels, head.tokens), train["out"]
    close(loss.cross_entropy, expected["loss_arm_act"], LOSS, "token loss")
    close(loss.l1, expected["action_l1_act"], LOSS, "l1 of the actions")
    close(loss.arm_accuracy, expected["acc_arm_act"], LOSS, "arm accuracy")
    close(loss.gripper_accuracy, expected["acc_gripper_act"], LOSS, "gripper accuracy")
    ids = case["pred"]["ids"]
    pred_visual = policy.vlm.encode_frames({camera: case["pred"]["vision_x"].flatten(0, 1)})
    sequence = policy.vlm.build_sequence(pred_visual, ids, torch.ones_like(ids))
    values = torch.from_numpy(head.decode(generate(policy.vlm, sequence, 7).numpy()))[:, 0]  # (1, 7)
    values[:, -1] = torch.where(values[:, -1] > 0, 1.0, -1.0)
    close(values, case["pred"]["actions"], 0.0, "generated actions")


class StandInVision(nn.Module):
    """The recording's vision tower: one convolution, its tokens row by row, behind an empty class token."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(3, width, kernel_size=14, stride=14)

    def forward(self, images: Tensor, **kwargs: Any) -> SimpleNamespace:
        tokens = self.conv(images).flatten(2).transpose(1, 2)  # (N, n, width)
        return SimpleNamespace(last_hidden_state=functional.pad(tokens, (0, 0, 1, 0)))


def set_gates(policy: VLAPolicy, gates: list[float]) -> None:
    """Set the cross attention's gates, (attention, feed-forward), as the recording did."""
    for name, parameter in policy.named_parameters():
        for gate, value in zip(("attn_gate", "ff_gate"), gates, strict=True):
            if name.endswith(gate):
                parameter.data.fill_(value)


def check_cross_attention(policy: VLAPolicy, case: dict[str, Any], tolerance: float) -> None:
    inputs = case["inputs"]
    images = images_of(policy, inputs)
    visual = policy.vlm.encode_frames({k: v.flatten(0, 1) for k, v in images.items()})
    check_latents([visual[name].tokens for name in images], case["obs_embed"], tolerance)
    batch = {"images": images, "input_ids": inputs["lang_x"], "attention_mask": inputs["attention_mask"]}
    close(policy.action_features(batch), case["action_hs"], tolerance, "hidden states")
    output = policy(batch)
    check_output(output, case, tolerance)
    if "loss" in case:
        check_losses(output, case["loss"])
    if "stepwise" in case:
        check_steps(policy, case["stepwise"], tolerance)


def check_latents(cameras: list[Tensor], recorded: Tensor, tolerance: float) -> None:
    """cameras: (B x W, n, d) each; recorded: (B, W, n, d) of the first camera alone or of all."""
    alone = recorded.shape[2] == cameras[0].shape[1]
    latents = cameras[0] if alone else torch.cat(cameras, dim=1)
    close(latents.unflatten(0, recorded.shape[:2]), recorded, tolerance, "visual latents")
