"""From the `action_head` block of a configuration to a head."""

from typing import Any

from robovlms_ros.config.policy import HeadConfig
from robovlms_ros.core.schema import did_you_mean
from robovlms_ros.models.heads.base import HeadError, PolicyHead
from robovlms_ros.models.heads.discrete import ActionTokenizer, DiscreteHead
from robovlms_ros.models.heads.fc import FCHead
from robovlms_ros.models.heads.gpt import GPTHead
from robovlms_ros.models.heads.lstm import LSTMHead


def build_head(config: HeadConfig, in_features: int, horizon: int, window: int) -> PolicyHead:
    """The continuous head that `config` names, randomly initialised.

    in_features: width d of the backbone's action features. horizon: steps of a chunk. window:
        frames of history.
    Raises HeadError for a setting that does not fit.
    """
    shared: dict[str, Any] = {
        "in_features": in_features,
        "horizon": horizon,
        "hidden_size": config.hidden_size,
        "down_sample": config.down_sample,
        "latent": config.latent,
        "arm_dims": config.action_dim - 1,
    }
    sequence: dict[str, Any] = {"window": window, "dropout": config.dropout}
    if config.num_layers is not None:
        sequence["num_layers"] = config.num_layers
    if config.type == "lstm":
        return LSTMHead(**shared, **sequence)
    if config.type == "gpt":
        return GPTHead(**shared, **sequence)
    if config.type == "fc":
        return FCHead(**shared)
    known = did_you_mean(config.type, ("lstm", "gpt", "fc"))
    raise HeadError(f"action_head.type = {config.type!r} is not a continuous head.{known}")


def build_discrete_head(config: HeadConfig, vocab_size: int, special_tokens: int, horizon: int) -> DiscreteHead:
    """The discrete head over a tokenizer of `vocab_size` entries, `special_tokens` of them
    special."""
    tokens = ActionTokenizer(vocab_size, special_tokens, config.n_bin, config.min_action, config.max_action)
    return DiscreteHead(tokens, horizon, config.action_dim)
