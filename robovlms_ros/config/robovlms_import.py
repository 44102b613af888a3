"""The JSON that a RoboVLMs training run writes, as our configuration blocks.

The file is read as it is. The action's physical meaning, which it lacks, comes from the profile of
the data set that it names, shipped in `profiles/`, or from an `action` block added to it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robovlms_ros.core.caps import MAX_CONFIG_BASES
from robovlms_ros.core.schema import ConfigError, did_you_mean, read_mapping

BACKBONES = {
    "RoboKosMos": "kosmos",
    "RoboPaligemma": "paligemma",
    "RoboFlamingo": "flamingo",
    "RoboLLaVA": "llava",
    "RoboQwen": "qwen",
    "RoboMoonDream": "moondream",
    "RoboUform": "uform",
    "RoboSmolVLM": "smolvlm",
}
HEADS = {"LSTMDecoder": "lstm", "GPTDecoder": "gpt", "FCDecoder": "fc", "DiscreteDecoder": "discrete"}
# The evaluation code knows these two words; every other value of trainer.precision runs in float32.
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
# Lightning's words for how training computed.
TRAINING_PRECISIONS = {
    "bf16": "bfloat16", "bf16-mixed": "bfloat16", "16": "float16", "16-mixed": "float16", "32": "float32",
}
HEAD_KEYS = {
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "policy_rnn_dropout_p": "dropout",
    "action_dim": "action_dim",
    "down_sample": "down_sample",
    "latent": "latent",
    "action_space": "action_space",
    "token_source": "token_source",
    "fill_zero": "fill_zero",
    "n_bin": "n_bin",
    "min_action": "min_action",
    "max_action": "max_action",
}
CAMERAS = ("static", "wrist")
PROFILE_FOLDER = Path(__file__).parent / "profiles"
# Gripper last: a RoboVLMs run normalises the arm only.
ARM_MASK = [True] * 6 + [False]


def expand(data: Mapping[str, Any], where: str, folder: Path | None, depth: int = 0) -> dict[str, Any]:
    """Our blocks from a file of any of the three kinds.

    A file may name another by `base` (looked up beside it) and lay its own blocks on that one's,
    key by key; `profile` names what a RoboVLMs JSON leaves open. Raises ConfigError.
    """
    if "base" in data:
        if depth >= MAX_CONFIG_BASES:
            raise ConfigError(
                f"{where}: `base` leads from file to file more than {MAX_CONFIG_BASES} times (MAX_CONFIG_BASES). Does "
                "a file name itself?"
            )
        path = Path(str(data["base"]))
        path = path if folder is None else folder / path
        if not path.exists():
            raise ConfigError(
                f"{where}: base = {data['base']!r}: no such file ({path.absolute()}). Give its path from the folder "
                "of the file that names it, or an absolute one."
            )
        base = read_mapping(path)
        if data.get("profile") is not None:
            base = {**base, "profile": data["profile"]}
        blocks = expand(base, path.name, path.parent, depth + 1)
        for name, block in data.items():
            if name not in ("base", "profile"):
                both = isinstance(block, Mapping) and isinstance(blocks.get(name), Mapping)
                blocks[name] = {**blocks[name], **block} if both else block
        return blocks
    if "robovlm_name" in data or "act_head" in data:
        return read_reference(data, where)
    return dict(data)


def read_reference(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our blocks (`model`, `action_head`, `vlm`, `training`, `cameras`, `action`) from a training
    run's JSON.

    Raises ConfigError for an absent or unknown value. `action` and `history_step` are absent from
    the result when neither the file nor a data set's profile gives them: such a policy loads, but
    cannot be run.
    """
    head = _need(data, "act_head", where)
    vlm = _need(data, "vlm", where)
    trainer = data.get("trainer") or {}
    window = data.get("window_size")
    profile = _profile(data, where)
    blocks: dict[str, Any] = {
        "model": {
            "backbone": _translate(BACKBONES, _need(data, "robovlm_name", where), f"{where}: robovlm_name"),
            "history_length": _need(data, "window_size", where) if window is None else window,
            "action_chunk_size": _need(data, "fwd_pred_next_n", where),
            "history_type": head.get("history_type", "post"),
            "padding": "last_column",
            **profile.get("model", {}),
        },
        "action_head": {
            "type": _translate(HEADS, _need(head, "type", f"{where}: act_head"), f"{where}: act_head.type"),
            **{ours: head[theirs] for theirs, ours in HEAD_KEYS.items() if head.get(theirs) is not None},
        },
        "vlm": {
            "model_name": _need(vlm, "pretrained_model_name_or_path", f"{where}: vlm"),
            "image_size": data.get("image_size"),
            "precision": PRECISIONS.get(str(trainer.get("precision")), "float32"),
            "resampler": bool(data.get("use_vision_resampler", False)),
            "attention": "eager",
        },
        "training": _training(data, trainer),
        "cameras": list(CAMERAS if data.get("use_hand_rgb") else CAMERAS[:1]),
    }
    if blocks["model"]["backbone"] == "paligemma":
        blocks["vlm"]["attention"] = "sdpa"
    action = _action(data, profile)
    return blocks if action is None else {**blocks, "action": action}


def _training(data: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """RoboVLMs clips gradients by the top-level key alone; without it clipping is off."""
    setup = data.get("train_setup") or {}
    steps = trainer.get("max_steps")
    sources = {
        "batch_size": data.get("batch_size"),
        "learning_rate": data.get("learning_rate"),
        "epochs": trainer.get("max_epochs"),
        "max_steps": steps if steps is not None and steps > 0 else None,
        "accumulation": trainer.get("accumulate_grad_batches"),
        "warmup_ratio": data.get("warmup_epochs"),
        "weight_decay": data.get("weight_decay"),
        "arm_gripper_loss_ratio": data.get("arm_gripper_loss_ratio"),
        "seed": data.get("seed"),
        "gradient_clip": data.get("gradient_clip_val", 0.0),
        "schedule": {"half-cosine": "cosine", "cosine": "cosine"}.get(str(data.get("scheduler"))),
        "precision": TRAINING_PRECISIONS.get(str(trainer.get("precision"))),
        "gradient_checkpointing": setup.get("gradient_checkpointing"),
        "freeze": _frozen(setup),
        "lora": _lora(setup),
    }
    return {k: v for k, v in sources.items() if v is not None}


def _frozen(setup: Mapping[str, Any]) -> list[str]:
    switches = {"vision": setup.get("train_vision", True), "word_embedding": setup.get("train_text_embedding", True)}
    frozen = [part for part, trained in switches.items() if not trained]
    return ["backbone"] if setup.get("freeze_backbone") else frozen


def _lora(setup: Mapping[str, Any]) -> dict[str, Any] | None:
    if not setup.get("lora_enable"):
        return None
    names = {"rank": "lora_r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
    return {ours: setup[theirs] for ours, theirs in names.items() if setup.get(theirs) is not None}


def _action(data: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, Any] | None:
    """The action block: the file's own, else the profile's with the file's normalisation next to
    the head."""
    own = data.get("action")
    if own is None and "action" not in profile:
        return None
    action = dict(own if own is not None else profile["action"])
    if own is None:
        norms: list[dict[str, Any]] = []
        if data.get("norm_action"):
            low = data.get("norm_min", -1.0)
            high = data.get("norm_max", 1.0)
            norms.append({"method": "min_max", "low": [low], "high": [high], "mask": ARM_MASK})
        action["normalization"] = [*norms, *action.get("normalization", [])]
        if data.get("use_mu_law"):
            action["mu_law"] = float(data.get("mu_val", 255))
    return action


def _profile(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The profile that the file names (`profile`), or that of the data set it was trained on; empty
    when neither is."""
    name = data.get("profile")
    dataset = data.get("train_dataset") or data.get("val_dataset") or {}
    if isinstance(dataset, list):
        dataset = dataset[0] if dataset else {}
    if name is None and dataset.get("type") == "DiskCalvinDataset":
        name = "calvin"
    if name is None:
        name = {"bridge": "bridge", "rt_1": "google_robot"}.get(str(dataset.get("data_mix")))
    if name is None:
        return {}
    known = sorted(path.stem for path in PROFILE_FOLDER.glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"{where}: profile '{name}': unknown.{did_you_mean(str(name), known)}")
    return read_mapping(PROFILE_FOLDER / f"{name}.yaml")


def _need(data: Mapping[str, Any], key: str, where: str) -> Any:
    if data.get(key) is None:
        raise ConfigError(f"{where}: '{key}' is missing: a RoboVLMs training run's JSON holds it. Give the full file.")
    return data[key]


def _translate(table: Mapping[str, str], name: Any, where: str) -> str:
    if name not in table:
        raise ConfigError(f"{where} = {name!r}: unknown.{did_you_mean(str(name), table)}")
    return table[name]
