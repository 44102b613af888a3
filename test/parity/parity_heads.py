"""Checks of `models/heads/`: policy heads over a window and frame by frame, their losses, and the action tokens."""

import dataclasses
from typing import Any

import torch
from parity_case import LOSS, close, filled_state

from robovlms_ros.config.policy import HeadConfig
from robovlms_ros.models.heads.base import HeadOutput, PolicyHead
from robovlms_ros.models.heads.discrete import ActionTokenizer
from robovlms_ros.models.vla_policy import build_head
from robovlms_ros.training.engine.objective import action_loss, token_loss

TYPES = {"LSTMDecoder": "lstm", "GPTDecoder": "gpt", "FCDecoder": "fc"}


def check(case: dict[str, Any]) -> None:
    if "cls" in case:
        check_head(case)
    elif "token_ids" in case:
        check_action_tokens(case)
    else:
        raise AssertionError(f"unknown kind of head case, with {sorted(case)}")


def head_of(case: dict[str, Any]) -> PolicyHead:
    kwargs = case["kwargs"]
    names = {field.name for field in dataclasses.fields(HeadConfig)}
    config = HeadConfig(TYPES[case["cls"]], **{k: v for k, v in kwargs.items() if k in names})
    head = build_head(config, kwargs["in_features"], kwargs["fwd_pred_next_n"], kwargs["window_size"])
    head.load_state_dict(filled_state(case["param_shapes"]))
    return head.eval()


@torch.no_grad()
def check_head(case: dict[str, Any]) -> None:
    head = head_of(case)
    for name, sample in case["cases"].items():
        output = head(windowed(sample["input"]))
        arm, logits = sample["actions"], sample["gripper_logits"]
        close(output.arm.reshape(arm.shape), arm, what=f"{name} actions")
        close(output.gripper_logits.reshape(logits.shape), logits, what=f"{name} gripper logits")
        if "loss" in sample:
            check_loss(output, sample["loss"])
    if "stepwise" in case:
        check_steps(head, case["stepwise"]["inputs"], case["stepwise"], case["kwargs"]["window_size"])
    if "stepwise_after_reset" in case:
        after = case["stepwise_after_reset"]
        inputs = after.get("inputs", case["stepwise"]["inputs"])[: len(after["actions"])]
        check_steps(head, inputs, after, case["kwargs"]["window_size"])


def windowed(features: torch.Tensor) -> torch.Tensor:
    """The reference also takes (B, tokens, d) and (B, d), a window of one."""
    while features.ndim < 4:
        features = features.unsqueeze(1)
    return features


def check_loss(output: HeadOutput, expected: dict[str, Any]) -> None:
    for name, mask in (("nomask", None), ("masked", expected["mask"])):
        loss = action_loss(output, expected["arm"], expected["gripper"], mask)
        numbers = expected[name]
        close(loss.arm, numbers["loss_arm"], LOSS, f"{name} arm loss")
        close(loss.gripper, numbers["loss_gripper"], LOSS, f"{name} gripper loss")
        close(loss.gripper_accuracy, numbers["acc_gripper"], LOSS, f"{name} gripper accuracy")


def check_steps(head: PolicyHead, inputs: torch.Tensor, expected: dict[str, Any], window: int) -> None:
    """One frame per call in the reference is our head over the last `window` frames."""
    for t, (actions, logits) in enumerate(zip(expected["actions"], expected["gripper_logits"], strict=True)):
        frames = torch.cat(list(inputs[max(0, t - window + 1) : t + 1]), dim=1)
        output = head(frames)
        close(output.arm[:, -1:], actions, what=f"step {t} actions")
        close(output.gripper_logits[:, -1:], logits, what=f"step {t} gripper logits")


def check_action_tokens(case: dict[str, Any]) -> None:
    tokens = ActionTokenizer(
        case["vocab_size"], case["special_tokens_count"], case["n_bin"], case["min_action"], case["max_action"]
    )
    assert (tokens.begin, tokens.end) == (case["begin_idx"], case["end_idx"])
    close(tokens.edges, case["bins"], 0.0, "bin edges")
    close(tokens.centres, case["bin_centers"], 0.0, "bin centres")
    close(tokens.encode(case["actions"].numpy()), case["token_ids"], 0.0, "token ids")
    close(tokens.decode(case["token_ids"].numpy()), case["decoded"], 0.0, "decoded values")
    close(tokens.decode(case["all_ids"].numpy()), case["all_decoded"], 0.0, "values of all ids")
    loss, expected = token_loss(case["loss"]["logits"], case["loss"]["labels"], tokens), case["loss"]["out"]
    close(loss.cross_entropy, expected["loss_arm"], LOSS, "token loss")
    close(loss.l1, expected["action_l1"], LOSS, "l1 of the actions")
    close(loss.arm_accuracy, expected["acc_arm"], LOSS, "arm accuracy")
    close(loss.gripper_accuracy, expected["acc_gripper"], LOSS, "gripper accuracy")
