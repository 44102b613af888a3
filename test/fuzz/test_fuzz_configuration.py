"""Damaged and hostile files of configuration and checkpoints: read or refused by name, never another exception.

Formats: policy YAML, RoboVLMs' JSON, robot YAML, safetensors, shard index, PyTorch archive, tokenizer, architecture.
"""

import json
import shutil

import pytest
import torch
from harness import judge

from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy
from robovlms_ros.checkpoints.weights import read_tensors
from robovlms_ros.config.policy import config_from_mapping, load_config
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.resources import share_directory
from robovlms_ros.models.tokenization import load_tokenizer

SEED = 15
POLICY = {
    "model": {"backbone": "paligemma", "history_length": 2, "action_chunk_size": 4, "history_step": 0.1},
    "action_head": {"type": "lstm", "hidden_size": 32, "num_layers": 1},
    "vlm": {"size": "tiny", "vocabulary": ["lift", "the", "red", "cube"]},
    "cameras": ["static"],
    "action": {
        "space": "eef_delta", "frame": "base", "rotation": "rotation_vector", "composition": "from_observation",
        "step_duration": 0.1, "units": {"translation": 0.0005, "rotation": 0.001}, "gripper": {"open_value": 1},
    },
}  # fmt: skip
REFERENCE = {
    "robovlm_name": "RoboKosMos", "model": "kosmos", "learning_rate": 2e-05, "window_size": 8, "fwd_pred_next_n": 10,
    "act_head": {"type": "LSTMDecoder", "hidden_size": 1024, "action_dim": 7, "down_sample": "none", "latent": 1,
                 "action_space": "continuous", "with_history": True, "history_type": "post"},
    "vlm": {"type": "AutoModelForVision2Seq", "name": "kosmos"}, "trainer": {"precision": "bf16"},
    "use_hand_rgb": False, "image_size": 224, "weight_decay": 0, "norm_action": True, "norm_min": -0.65,
    "norm_max": 0.65,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy") / "policy"
    return save_policy(build_policy(config_from_mapping(POLICY), seed=1), folder)


def test_policy_yaml(checkpoint, tmp_path):
    path = tmp_path / "config.yaml"
    outcomes = judge(lambda: load_config(path), path, (checkpoint / "config.yaml").read_bytes(), SEED)
    assert outcomes["refused"] > 20


def test_reference_json(tmp_path):
    path = tmp_path / "reference.json"
    outcomes = judge(lambda: load_config(path), path, json.dumps(REFERENCE, indent=2).encode(), SEED)
    assert outcomes["refused"] > 20


def test_robot_yaml(tmp_path):
    robots = share_directory() / "config" / "robots"
    shutil.copy(robots / "panda.urdf", tmp_path)
    path = tmp_path / "panda.yaml"
    outcomes = judge(lambda: load_robot(path), path, (robots / "panda.yaml").read_bytes(), SEED)
    assert outcomes["refused"] > 20


def test_safetensors(checkpoint, tmp_path):
    path = tmp_path / "model.safetensors"
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4), "b": torch.ones(2)}, path)
    outcomes = judge(lambda: read_tensors(path), path, path.read_bytes(), SEED)
    assert outcomes["refused"] > 20


def test_shard_index(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "one.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    content = json.dumps({"metadata": {"total_size": 12}, "weight_map": {"a": "one.safetensors"}}).encode()
    outcomes = judge(lambda: read_tensors(path), path, content, SEED)
    assert outcomes["refused"] > 20


def test_pytorch_archive(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {"a": torch.zeros(3, 4), "b": torch.ones(2, dtype=torch.int64)}}, path)
    outcomes = judge(lambda: read_tensors(path), path, path.read_bytes(), SEED)
    assert outcomes["refused"] > 20


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizer(checkpoint, tmp_path, name):
    for source in checkpoint.iterdir():
        if "token" in source.name:
            shutil.copy(source, tmp_path)
    path = tmp_path / name
    outcomes = judge(lambda: load_tokenizer(tmp_path), path, path.read_bytes(), SEED)
    assert outcomes["refused"] > 20
