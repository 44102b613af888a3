"""The one configuration object of a policy.

Read from the tutorial's JSON (`model`, `action_head`, `vlm`, `training` blocks), from our YAML (the
same blocks and `cameras`, `proprioception`, `action`), or from the JSON that a RoboVLMs training
run writes (`config_reference`). Every key is known and every value is checked; a block that only
running a policy needs (`action`, `history_step`) may be absent until then (`require_runnable`).
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from robovlms_ros.config.action import ActionConfig, ProprioConfig, resolve_statistics
from robovlms_ros.config.robovlms_import import expand
from robovlms_ros.config.training import TrainingConfig
from robovlms_ros.core.schema import ConfigError, build, read_mapping, require

HistoryType = Literal["post", "pre", "video", "one_step"]
ALIASES = {"window_size": "history_length", "fwd_pred_next_n": "action_chunk_size"}


@dataclass(frozen=True)
class ModelConfig:
    """Prediction inputs and outputs: cameras, history, chunk.

    backbone: name in the registry. history_length: frames that the head (or the VLM) sees, W.
        action_chunk_size: steps predicted at once, n. Their RoboVLMs names are `window_size` and
            `fwd_pred_next_n`.
    history_type: `post`, each frame through the VLM alone and the head aggregates; `pre`, one
        interleaved sequence; `video`, all frames' images then the text once; `one_step`, no
        history.
    history_step: s between the frames of the history, as in training. No default: a policy cannot
        run without it.
    history_tolerance: s by which a frame may miss its place in the history; None is half a history
        step.
    history_gap: what a missing frame does: `hold` (the nearest older frame is used and reported) or
        `refuse`.
    pre_executes: with `pre`, whose action is executed; `oldest` is what RoboVLMs' own wrapper does,
        for comparison.
    padding: position of a padded row's action token: at the row's own end, or (RoboVLMs) in the
        batch's last column.
    """

    backbone: str
    history_length: int = 16
    action_chunk_size: int = 10
    history_type: HistoryType = "post"
    history_step: float | None = None
    history_tolerance: float | None = None
    history_gap: Literal["hold", "refuse"] = "hold"
    pre_executes: Literal["newest", "oldest"] = "newest"
    padding: Literal["row_end", "last_column"] = "row_end"

    def __post_init__(self) -> None:
        where = "model"
        require(bool(self.backbone), f"{where}.backbone", self.backbone, "the name of a backbone")
        require(1 <= self.history_length <= 1024, f"{where}.history_length", self.history_length, "1 to 1024")
        require(1 <= self.action_chunk_size <= 1000, f"{where}.action_chunk_size", self.action_chunk_size, "1 to 1000")
        for name in ("history_step", "history_tolerance"):
            value = getattr(self, name)
            require(value is None or 0 < value <= 10, f"{where}.{name}", value, "above 0 and at most 10 s")
        if self.history_type == "one_step" and self.history_length != 1:
            raise ConfigError(
                f"{where}.history_length = {self.history_length} with history_type 'one_step': must be 1, "
                "or choose history_type 'post', 'pre' or 'video'."
            )


@dataclass(frozen=True)
class HeadConfig:
    """The policy head. Defaults are RoboVLMs'.

    type: name in the registry: lstm, gpt, fc, discrete. hidden_size, num_layers, dropout: of the
        head's core; num_layers None is the head's own (LSTM 4, GPT 8). action_dim: numbers in an
        action, the last one the gripper.
    down_sample: `none` (tokens side by side), `pooling` (max over tokens) or `resampler`. latent:
        action tokens, or tokens left after down-sampling. action_space: `continuous` reads the
        action token, `down_sample` the tokens named by token_source, `discrete` generates tokens.
        fill_zero: later positions do not see the action token.
    n_bin, min_action, max_action: bins of the discrete head.
    """

    type: str = "lstm"
    hidden_size: int = 1024
    num_layers: int | None = None
    dropout: float = 0.0
    action_dim: int = 7
    down_sample: Literal["none", "pooling", "resampler"] = "none"
    latent: int = 1
    action_space: Literal["continuous", "down_sample", "discrete"] = "continuous"
    token_source: Literal["all", "text", "vision"] = "all"
    fill_zero: bool = False
    n_bin: int = 256
    min_action: float = -1.0
    max_action: float = 1.0

    def __post_init__(self) -> None:
        where = "action_head"
        ranges = {"hidden_size": (1, 65536), "action_dim": (2, 64), "latent": (1, 64), "n_bin": (2, 4096)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            require(low <= value <= high, f"{where}.{name}", value, f"{low} to {high}")
        layers = self.num_layers
        require(layers is None or 1 <= layers <= 64, f"{where}.num_layers", layers, "1 to 64")
        require(0 <= self.dropout < 1, f"{where}.dropout", self.dropout, "0 or more and below 1")
        finite = math.isfinite(self.min_action) and math.isfinite(self.max_action)
        if not (finite and self.min_action < self.max_action):
            raise ConfigError(
                f"{where}: min_action = {self.min_action} and max_action = {self.max_action}: "
                "must be finite and min_action below max_action."
            )
        if (self.type == "discrete") != (self.action_space == "discrete"):
            raise ConfigError(
                f"{where}: type '{self.type}' with action_space '{self.action_space}': the discrete head and the "
                "discrete action space go together. Set both to 'discrete', or neither."
            )


@dataclass(frozen=True)
class VLMConfig:
    """The vision-language model.

    model_name: pretrained VLM: hub id or local folder; only its config and tokenizer files are read
        once a checkpoint holds the weights. size: `full` (that model's configuration, or the
        family's) or `tiny` (for tests and small policies). settings: overrides of the transformers
        configuration, nested as there (`text_config`, `vision_config`); unknown names are refused.
        vocabulary: words of a word-level tokenizer (tiny models).
    image_size: pixels, None is the model's own. max_length: tokens of the prompt. prompt: template
        with `{instruction}`, None is the family's. temperature: of the discrete head; None or 0 is
        greedy.
    attention: transformers' attention implementation. precision: of the policy's weights at run
        time.
    resampler: RoboVLMs' own perceiver after the vision tower (`use_vision_resampler`).
    """

    model_name: str | None = None
    size: Literal["full", "tiny"] = "full"
    settings: dict[str, Any] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
    image_size: int | None = None
    max_length: int = 512
    prompt: str | None = None
    temperature: float | None = None
    attention: Literal["eager", "sdpa"] = "sdpa"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    resampler: bool = False

    def __post_init__(self) -> None:
        size = self.image_size
        require(size is None or 14 <= size <= 4096, "vlm.image_size", size, "14 to 4096 pixels")
        require(1 <= self.max_length <= 32768, "vlm.max_length", self.max_length, "1 to 32768 tokens")
        warm = self.temperature
        require(warm is None or 0 <= warm <= 10, "vlm.temperature", warm, "0 (greedy) to 10")
        good = self.prompt is None or "{instruction}" in self.prompt
        require(good, "vlm.prompt", self.prompt, "a text with {instruction}")


@dataclass(frozen=True)
class PolicyConfig:
    """Everything that makes a policy what it is, weights apart.

    cameras: names, in the order in which the policy was trained; the first is the reference camera.
    proprioception: None for a policy that does not see the robot's state. action: None until the
        policy is to run.
    """

    model: ModelConfig
    action_head: HeadConfig = field(default_factory=HeadConfig)
    vlm: VLMConfig = field(default_factory=VLMConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    cameras: tuple[str, ...] = ("static",)
    proprioception: ProprioConfig | None = None
    action: ActionConfig | None = None

    def __post_init__(self) -> None:
        require(len(self.cameras) > 0, "cameras", list(self.cameras), "at least one camera name")
        doubled = sorted({name for name in self.cameras if self.cameras.count(name) > 1})
        require(not doubled and all(self.cameras), "cameras", list(self.cameras), "names that differ, none empty")
        if self.action is not None:
            self.action.check_dimensions(self.action_head.action_dim)
        head = self.action_head.type
        history = self.model.history_type
        if history == "video" and head in ("lstm", "gpt"):
            raise ConfigError(
                f"action_head.type '{head}' with model.history_type 'video': the window is one sequence with one "
                "action token there, so the head sees no history. Use action_head.type 'fc', or history_type 'post' "
                "or 'pre'."
            )

    def require_runnable(self) -> None:
        """Raise ConfigError listing everything that only running the policy needs and that is
        absent."""
        missing = []
        if self.model.history_step is None and self.model.history_length > 1:
            missing.append("model.history_step (s between the frames of the history, as in training)")
        if self.action is None:
            missing.append("action (what the numbers mean: space, frame, rotation, composition, step_duration, ...)")
        if missing:
            raise ConfigError(f"The policy's configuration cannot be run; it lacks: {'; '.join(missing)}.")


def load_config(path: str | Path) -> PolicyConfig:
    """The policy configuration in a YAML or JSON file: the tutorial's, ours, or a RoboVLMs training
    run's.

    The block `data` of a training file names recordings, which are no part of the policy.
    """
    path = Path(path)
    mapping = expand(read_mapping(path), path.name, path.parent)
    policy = {key: value for key, value in mapping.items() if key != "data"}
    return config_from_mapping(policy, path.name, path.parent)


def config_from_mapping(data: Mapping[str, Any], where: str = "config", folder: Path | None = None) -> PolicyConfig:
    """A PolicyConfig from a mapping; `folder` is where files that it names are looked up. Raises
    ConfigError."""
    blocks = expand(data, where, folder)
    if isinstance(blocks.get("model"), Mapping):
        blocks = _lift_action_head(blocks, where)
        blocks["model"] = _resolve_aliases(blocks["model"], f"{where}: model")
    if isinstance(blocks.get("action"), Mapping):
        blocks["action"] = resolve_statistics(blocks["action"], folder, f"{where}: action")
    return build(PolicyConfig, blocks, where)


def config_to_mapping(config: PolicyConfig) -> dict[str, Any]:
    """The mapping that `config_from_mapping` reads back to an equal configuration (YAML-ready
    types)."""
    plain = _plain(config)
    assert isinstance(plain, dict)
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _lift_action_head(blocks: dict[str, Any], where: str) -> dict[str, Any]:
    """`model.action_head` (a name, or the block itself) into the top-level `action_head` block."""
    model = dict(blocks["model"])
    if "action_head" not in model:
        return blocks
    inner = model.pop("action_head")
    block = dict(inner) if isinstance(inner, Mapping) else {"type": inner}
    outer = blocks.get("action_head") or {}
    if isinstance(outer, str):
        outer = {"type": outer}
    for key in set(block) & set(outer):
        if block[key] != outer[key]:
            raise ConfigError(
                f"{where}: model.action_head says {key} = {block[key]!r}, action_head.{key} = {outer[key]!r}: "
                "must be equal. Give one of them."
            )
    merged = {**block, **outer}
    if merged.get("type") == "discrete":
        merged.setdefault("action_space", "discrete")
    return {**blocks, "model": model, "action_head": merged}


def _resolve_aliases(model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """RoboVLMs' names of two settings into ours; both given and unequal is an error."""
    resolved = dict(model)
    for alias, name in ALIASES.items():
        if alias not in resolved:
            continue
        value = resolved.pop(alias)
        if name in resolved and resolved[name] != value:
            raise ConfigError(
                f"{where}: {name} = {resolved[name]!r} and {alias} = {value!r} are the same setting and differ. "
                "Give one."
            )
        resolved[name] = value
    if resolved.get("history_type") == "one_step":
        resolved.setdefault("history_length", 1)
    return resolved
