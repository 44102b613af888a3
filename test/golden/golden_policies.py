"""Golden answers of policies: shipped checkpoints, and tiny ones of every family and head."""

from typing import Any

import api
import golden_inputs as inputs
from golden_inputs import MILLISECOND, ONE, OTHER, STEP, Answers
from golden_store import DIGEST, digest


def policy() -> Answers:
    """Chunks of shipped checkpoints over six frames by the reference path, four by the others."""
    answers: Answers = {}
    frames = inputs.frames([ONE] * 6)
    switched = inputs.frames([ONE, ONE, OTHER, OTHER], period_ns=50 * MILLISECOND, size=(120, 160))
    for name in api.checkpoints():
        loaded = api.shipped_policy(name)
        whole = api.infer(loaded, frames)
        normalised = whole.pop("normalised")
        answers[name] = {**whole, "normalised": normalised}
        answers[name]["switched"] = thin_chunks(api.infer(loaded, switched))
        for path in ("auto", *api.PROCESSOR_PARTS, *api.QUANTIZED):
            answers[name][path] = thin_chunks(api.infer(loaded, frames[:4], path))
    return answers


def thin_chunks(answer: Answers) -> Answers:
    """An answer at every fifth step, the digest of all values, its path and history."""
    return {
        "normalised": answer["normalised"][:, ::5],
        DIGEST: digest(answer["normalised"], answer["values"]),
        "path": answer["path"],
        "history": answer["history"],
    }


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, tuple[str, Answers]] = {
    "paligemma": ("paligemma", {}),
    "paligemma2": ("paligemma", {"settings": {"text_config": {"model_type": "gemma2"}}}),
    "llava": ("llava", {}),
    "llava_next": ("llava", {"settings": {"model_type": "llava_next"}, "image_size": 56}),
    "kosmos": ("kosmos", {}),
    "qwen2_5_vl": ("qwen", {}),
    "qwen3_vl": ("qwen", {"settings": {"model_type": "qwen3_vl"}}),
    "smolvlm": ("smolvlm", {}),
    "flamingo": ("flamingo", {}),
    "flamingo_llama": ("flamingo", {"settings": {"text_config": LLAMA}}),
}
HEADS: dict[str, Answers] = {
    "lstm_three_tokens": {"action_head": {"latent": 3}},
    "lstm_pooled_pre": {
        "model": {"history_type": "pre"},
        "action_head": {"action_space": "down_sample", "down_sample": "pooling", "latent": 2},
    },
    "gpt": {"action_head": {"type": "gpt", "hidden_size": 32, "num_layers": 2}},
    "fc_video": {
        "model": {"history_type": "video"},
        "action_head": {"type": "fc", "num_layers": None},
    },
    "resampled": {
        "action_head": {
            "action_space": "down_sample",
            "down_sample": "resampler",
            "token_source": "text",
        }
    },
    "oldest": {"model": {"pre_executes": "oldest", "history_gap": "hold"}},
    "discrete": {
        "model": {"history_length": 1, "action_chunk_size": 2},
        "vlm": {"vocabulary": []},
        "action_head": {
            "type": "discrete",
            "action_space": "discrete",
            "num_layers": None,
            "n_bin": 64,
        },
    },
    "absolute": {
        "action": {
            "space": "eef_pose",
            "rotation": "euler_xyz_intrinsic",
            "normalization": [{"method": "mean_std", "mean": [0.4], "std": [0.2]}],
        }
    },
    "gripper_rule": {"action": {"gripper": {"open_value": 0, "rule": "sticky", "threshold": 0.4}}},
}


def tiny_mapping(backbone: str = "paligemma", **blocks: Any) -> Answers:
    """The configuration of a tiny policy; each keyword is laid on its block, None empties it."""
    mapping: Answers = {
        "model": {
            "backbone": backbone,
            "history_length": 3,
            "action_chunk_size": 4,
            "history_step": 0.1,
        },
        "action_head": {"type": "lstm", "hidden_size": 16, "num_layers": 1},
        "vlm": {"size": "tiny", "vocabulary": ["lift", "the", "red", "green", "cube"]},
        "cameras": ["static", "wrist"],
        "proprioception": {"names": ["eef_position", "gripper"]},
        "action": {
            "space": "eef_delta",
            "frame": "base",
            "rotation": "rotation_vector",
            "composition": "chained",
            "step_duration": STEP,
            "units": {"translation": 0.02, "rotation": 0.05},
            "gripper": {"open_value": 1},
        },
    }
    for name, block in blocks.items():
        mapping[name] = None if block is None else {**mapping.get(name, {}), **block}
    return mapping


def backbones() -> Answers:
    """Chunks of tiny policies: every family by both paths, every head and history on one."""
    frames = inputs.frames([ONE, ONE, ONE, f"{OTHER} the cube"], size=(40, 60))
    answers: Answers = {}
    for name, (backbone, vlm) in FAMILIES.items():
        made = api.tiny_policy(tiny_mapping(backbone, vlm={**tiny_mapping()["vlm"], **vlm}))
        for path in ("plain", "auto"):
            answers[f"{name}_{path}"] = tiny_answer(made, frames, path)
    for name, blocks in HEADS.items():
        answers[name] = tiny_answer(api.tiny_policy(tiny_mapping(**blocks)), frames, "plain")
    return answers


def tiny_answer(made: Any, frames: list[Any], path: str) -> Answers:
    """Values and history of a tiny policy."""
    answer = api.infer(made, frames, path)
    kept = {name: answer[name] for name in ("normalised", "history", "path")}
    return {**kept, "values": answer["values"][-1], DIGEST: digest(answer["values"])}
