"""The configuration object.

- the tutorial's JSON is read as it is, `action_head` as a name or as a block; YAML with the same blocks likewise;
- `window_size`, `fwd_pred_next_n` are `history_length`, `action_chunk_size`; given twice and unequal is an error;
- unknown keys are refused with the nearest known one; every value is checked against its range;
- what it is written to reads back equal; a RoboVLMs run's JSON is read as it is, with its data set's profile;
- statistics come from a named file; a missing key lists the candidates;
- units and polarity have no default;
- the Google profile holds the data set's quantiles with all their digits.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from robovlms_ros.config.policy import (
    PolicyConfig,
    config_from_mapping,
    config_to_mapping,
    load_config,
)
from robovlms_ros.core.registry import BACKBONES
from robovlms_ros.core.schema import ConfigError

TUTORIAL = {
    "model": {"backbone": "paligemma", "action_head": "lstm", "history_length": 16, "action_chunk_size": 10},
    "training": {
        "batch_size": 128,
        "learning_rate": 1e-4,
        "epochs": 5,
        "warmup_ratio": 0.25,
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
    },
    "action_head": {"type": "lstm", "hidden_size": 512, "num_layers": 2, "dropout": 0.1},
    "vlm": {"model_name": "google/paligemma-3b-pt-224", "image_size": 224, "max_length": 512, "temperature": 0.7},
}
REFERENCE = {
    "robovlm_name": "RoboKosMos",
    "model": "kosmos",
    "image_size": 224,
    "window_size": 16,
    "fwd_pred_next_n": 10,
    "use_hand_rgb": True,
    "act_head": {"type": "LSTMDecoder", "hidden_size": 1024, "action_dim": 7, "window_size": 1, "fwd_pred_next_n": 1},
    "vlm": {"type": "AutoModelForVision2Seq", "name": "kosmos", "pretrained_model_name_or_path": "kosmos-2"},
    "trainer": {"precision": "bf16", "gradient_clip_val": 1.0},
    "train_dataset": {"type": "DiskCalvinDataset"},
    "norm_action": True,
    "norm_min": -0.65,
    "norm_max": 0.65,
}


def test_tutorial(tmp_path: Path) -> None:
    (tmp_path / "tutorial.json").write_text(json.dumps(TUTORIAL))
    config = load_config(tmp_path / "tutorial.json")
    assert config.model.backbone == "paligemma" and config.model.history_length == 16
    head = config.action_head
    assert (head.type, head.hidden_size, head.num_layers, head.dropout) == ("lstm", 512, 2, 0.1)
    assert config.vlm.temperature == 0.7 and config.training.weight_decay == 0.01
    with pytest.raises(ConfigError, match=r"history_step.*action"):
        config.require_runnable()
    block = {**TUTORIAL, "model": {**TUTORIAL["model"], "action_head": TUTORIAL["action_head"]}}
    assert config_from_mapping({k: v for k, v in block.items() if k != "action_head"}) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"action_head": "gpt"}}, r"type = 'gpt'.*type = 'lstm'"),
        ({"model": {"window_size": 8}}, r"history_length = 16 and window_size = 8"),
        ({"model": {"fwd_pred_next_n": 11}}, r"action_chunk_size = 10 and fwd_pred_next_n = 11"),
        ({"model": {"history_lenght": 4}}, r"unknown key 'history_lenght'. Did you mean 'history_length'"),
        ({"model": {"history_length": 0}}, r"history_length = 0: must be 1 to 1024"),
        ({"model": {"history_length": 1.5}}, r"history_length = 1.5: must be a whole number"),
        ({"action_head": {"dropout": 1.0}}, r"dropout = 1.0: must be 0 or more and below 1"),
        ({"action_head": {"down_sample": "poolin"}}, r"down_sample = 'poolin'.*'pooling'"),
        ({"action_head": {"action_space": "discrete"}}, r"go together"),
        ({"vlm": {"temperature": -1}}, r"vlm.temperature = -1"),
        ({"vlm": {"prompt": "go"}}, r"a text with \{instruction\}"),
        ({"training": {"learning_rate": 0}}, r"learning_rate = 0"),
        ({"model": {"history_type": "video"}}, r"'fc'"),
        ({"modle": {}}, r"unknown key 'modle'. Did you mean 'model'"),
    ],
)
def test_refused(change: dict[str, dict[str, Any]], message: str) -> None:
    data = {**TUTORIAL, **{name: {**TUTORIAL.get(name, {}), **block} for name, block in change.items()}}
    with pytest.raises(ConfigError, match=message):
        config_from_mapping(data)


def test_aliases_alone(make_mapping: Callable[..., dict[str, Any]]) -> None:
    data = make_mapping()
    data["model"] = {"backbone": "kosmos", "window_size": 5, "fwd_pred_next_n": 6, "history_length": 5}
    model = config_from_mapping(data).model
    assert (model.history_length, model.action_chunk_size) == (5, 6)


def test_reads_back_equal(make_config: Callable[..., PolicyConfig], tmp_path: Path) -> None:
    config = make_config(
        proprioception={"names": ["eef_position", "joint_positions"], "joints": 2, "mean": [0.0] * 5, "std": [1.0] * 5},
        action={"normalization": [{"method": "min_max", "low": [-1.0], "high": [1.0], "mask": [True] * 6 + [False]}]},
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config_to_mapping(config)))
    assert load_config(tmp_path / "config.yaml") == config


def test_a_training_file_is_a_policys_configuration(tmp_path):
    """The node and `robovlms check` take it as it is: the recordings are no part of the policy."""
    policy = yaml.safe_dump({"model": {"backbone": "paligemma"}})
    (tmp_path / "policy.yaml").write_text(policy)
    (tmp_path / "train.yaml").write_text(policy + "data: {keep_images: true}\n")
    assert load_config(tmp_path / "train.yaml") == load_config(tmp_path / "policy.yaml")


def test_a_base_that_is_not_there(tmp_path):
    (tmp_path / "train.yaml").write_text("base: config/backbones/paligemma.yaml\n")
    says = r"train.yaml: base = 'config/backbones/paligemma.yaml': no such file \(/.*Give its path"
    with pytest.raises(ConfigError, match=says):
        load_config(tmp_path / "train.yaml")


def test_training_run_json(tmp_path: Path) -> None:
    config = config_from_mapping(REFERENCE, "run.json")
    assert config.cameras == ("static", "wrist") and config.model.padding == "last_column"
    assert config.action_head.num_layers is None and config.vlm.precision == "bfloat16"
    assert config.training.gradient_clip == 0.0
    config.require_runnable()
    assert config.action is not None
    assert (config.action.units.translation, config.action.units.rotation) == (0.02, 0.05)
    assert config.action.normalization[0].mask == (True,) * 6 + (False,)

    without = {k: v for k, v in REFERENCE.items() if k != "train_dataset"}
    with pytest.raises(ConfigError, match="lacks"):
        config_from_mapping(without, "run.json").require_runnable()
    (tmp_path / "run.json").write_text(json.dumps(without))
    overlay = {"base": "run.json", "profile": "bridge", "model": {"history_gap": "refuse"}}
    laid = config_from_mapping(overlay, "mine.yaml", tmp_path)
    assert laid.action is not None and len(laid.action.normalization) == 2 and laid.action.robot == "widowx"
    assert laid.model.history_gap == "refuse" and laid.model.history_length == 16


@pytest.mark.parametrize("key", ["robovlm_name", "act_head", "vlm", "window_size", "fwd_pred_next_n"])
def test_training_run_json_missing_a_key(key: str) -> None:
    data = {k: v for k, v in REFERENCE.items() if k != key}
    if key == "act_head":
        data["act_head"] = None
    with pytest.raises(ConfigError, match=f"'{key}' is missing"):
        config_from_mapping({"robovlm_name": None, **data}, "run.json")


def test_statistics_from_a_file(make_mapping: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    low, high = [-0.1] * 6 + [0.0], [0.1] * 6 + [1.0]
    table = {"bridge_orig": {"action": {"q01": low, "q99": high, "mask": [True] * 6 + [False]}}}
    (tmp_path / "stats.json").write_text(json.dumps(table))
    norm = {"method": "quantile", "statistics": "stats.json", "key": "bridge_orig"}
    config = config_from_mapping(make_mapping(action={"normalization": [norm]}), "c", tmp_path)
    assert config.action is not None and config.action.normalization[0].low == tuple(low)
    with pytest.raises(ConfigError, match=r"'bridge' is not in.*Did you mean 'bridge_orig'"):
        config_from_mapping(make_mapping(action={"normalization": [{**norm, "key": "bridge"}]}), "c", tmp_path)
    with pytest.raises(ConfigError, match=r"no 'min'. It holds: q01, q99, mask"):
        config_from_mapping(make_mapping(action={"normalization": [{**norm, "method": "min_max"}]}), "c", tmp_path)


@pytest.mark.parametrize("lost", ["units", "gripper", "space", "frame", "rotation", "composition", "step_duration"])
def test_no_silent_default(make_mapping: Callable[..., dict[str, Any]], lost: str) -> None:
    data = make_mapping()
    data["action"] = {k: v for k, v in data["action"].items() if k != lost}
    with pytest.raises(ConfigError, match=f"'{lost}' is missing"):
        config_from_mapping(data)


def test_units_that_the_space_needs(make_mapping: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"units.rotation is missing"):
        config_from_mapping(make_mapping(action={"units": {"translation": 1.0}}))
    with pytest.raises(ConfigError, match=r"action.names.*7 \(action_head.action_dim\)"):
        joints = {"space": "joint_position", "names": ["a", "gripper"], "units": {"joint": 1.0}}
        config_from_mapping(make_mapping(action=joints))


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_presets(name: str) -> None:
    config = load_config(Path(__file__).parents[2] / "config" / "backbones" / f"{name}.yaml")
    assert config.model.backbone == name
    config.require_runnable()


GOOGLE_Q01 = (
    -0.22453527510166169, -0.14820013284683228, -0.231589707583189,
    -0.3517994859814644, -0.4193011274933815, -0.43643461108207704, 0.0,
)
GOOGLE_Q99 = (
    0.17824687153100965, 0.14938379630446405, 0.21842354819178575,
    0.5892666035890578, 0.35272657424211445, 0.44796681255102094, 1.0,
)
GOOGLE_STATISTICS = Path(__file__).resolve().parents[3] / "shared" / "google_statistics.json"


def google_quantiles() -> tuple[tuple[float, ...], tuple[float, ...]]:
    config = config_from_mapping({**REFERENCE, "profile": "google_robot"}, "test")
    step = config.action.normalization[-1]
    assert step.method == "quantile"
    return step.low, step.high


def test_the_google_profile_has_all_digits():
    assert google_quantiles() == (GOOGLE_Q01, GOOGLE_Q99)


@pytest.mark.skipif(not GOOGLE_STATISTICS.is_file(), reason="no ../shared/google_statistics.json")
def test_the_google_profile_equals_the_data_set_s_statistics():
    (statistics,) = json.loads(GOOGLE_STATISTICS.read_text(encoding="utf-8")).values()
    assert google_quantiles() == (tuple(statistics["q01"]), tuple(statistics["q99"]))
