"""`robovlms train` from a YAML file.

- Weights come from a checkpoint, from the pretrained VLM that is named, or are new; all in float32.
- A file without a model takes the rest from the checkpoint; a `data` block is kept apart; unknown
  keys are refused.
- A plan for the simulated arm and a configuration are told apart; what is missing is named.
"""

import dataclasses

import pytest
import torch
import yaml

from robovlms_ros.checkpoints.checkpoint import build_policy, save_policy
from robovlms_ros.cli.main import main
from robovlms_ros.config.policy import config_to_mapping
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.training.engine.trainable import count
from robovlms_ros.training.runs import is_plan, read_run, starting_policy


def write(path, mapping):
    path.write_text(yaml.safe_dump(mapping))
    return path


def silent(text):
    pass


def test_weights_come_from_a_checkpoint(make_training_config, tmp_path):
    config = make_training_config()
    source = build_policy(config, seed=7)
    folder = save_policy(source, tmp_path / "checkpoint")
    path = write(tmp_path / "train.yaml", {"training": {"learning_rate": 5e-5}, "data": {"exclude": ["a"]}})
    run = read_run(path, str(folder))
    assert run.config.model == config.model and run.config.training.learning_rate == 5e-5
    assert run.config.training.batch_size == 4 and run.data == {"exclude": ["a"]}
    policy = starting_policy(run, silent)
    assert policy.config.training.learning_rate == 5e-5
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), policy.parameters(), strict=True))


def test_weights_come_from_the_named_vlm_or_are_new(make_training_config, tmp_path):
    from transformers import AutoModelForImageTextToText

    from robovlms_ros.core.registry import resolve
    from robovlms_ros.models.backbones.hf_config import build_hf_config
    from robovlms_ros.models.tokenization import build_word_tokenizer

    config, adapter = make_training_config(), resolve("backbone", "paligemma")
    hf_config = build_hf_config(adapter.spec, config.vlm, None, None, adapter.complete_config)
    model = AutoModelForImageTextToText.from_config(hf_config)
    model.save_pretrained(tmp_path / "vlm")
    build_word_tokenizer(["lift", "the", "cube"], adapter.spec.prompt).save_pretrained(tmp_path / "vlm")
    mapping = config_to_mapping(config)
    mapping["vlm"] |= {"size": "full", "model_name": "vlm", "vocabulary": [], "precision": "bfloat16"}
    path = write(tmp_path / "train.yaml", mapping)
    theirs = model.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"]
    for start, same in ((None, True), ("random", False)):
        policy = starting_policy(read_run(path, start), silent)
        ours = policy.vlm.backbone.state_dict()["model.language_model.layers.0.mlp.up_proj.weight"]
        assert torch.equal(ours, theirs) == same and ours.dtype == torch.float32
        assert policy.config.vlm.precision == "bfloat16"


def test_plans_and_configurations_are_told_apart(make_training_config, tmp_path, capsys):
    path = write(tmp_path / "train.yaml", config_to_mapping(make_training_config()))
    assert is_plan(share_directory() / "config" / "train" / "demo.yaml") and not is_plan(path)
    assert main(["train", "--config", str(path)]) == 1
    assert "--data is missing" in capsys.readouterr().err
    assert main(["train", "--config", "demo", "--data", "bag"]) == 1
    assert "is a plan that records its own demonstrations" in capsys.readouterr().err
    assert main(["train", "--config", str(path), "--dry-run"]) == 0
    assert "full fine-tuning" in capsys.readouterr().out


def test_unknown_keys_are_refused(make_training_config, tmp_path):
    mapping = config_to_mapping(make_training_config())
    with pytest.raises(ConfigError, match="unknown key 'dta'. Did you mean 'data'|unknown key 'dta'"):
        read_run(write(tmp_path / "a.yaml", {**mapping, "dta": {}}))
    with pytest.raises(ConfigError, match="data = 'bags': must be a mapping"):
        read_run(write(tmp_path / "b.yaml", {**mapping, "data": "bags"}))
    with pytest.raises(ConfigError, match=r"topics = .*must be in the block `data\.bag`"):
        read_run(write(tmp_path / "c.yaml", {**mapping, "topics": {"cameras": {"wrist": "/a"}}}))


def test_a_data_block_is_laid_on_the_bases(tmp_path):
    path = write(tmp_path / "train.yaml", {
        "base": str(share_directory() / "config" / "train" / "from_recordings.yaml"),
        "data": {"jobs": 3, "bag": {"instruction": "lift the cube"}},
    })
    run = read_run(path)
    assert run.keep_images and run.data["jobs"] == 3
    assert run.data["bag"]["instruction"] == "lift the cube"


def test_a_robots_file_gives_the_policy_its_name(make_training_config, tmp_path):
    from robovlms_ros.core.resources import find

    robot = str(find("ur5e", "config/robots"))
    mapping = config_to_mapping(make_training_config())
    mapping["action"]["robot"] = robot
    run = read_run(write(tmp_path / "a.yaml", mapping))
    assert run.config.action.robot == "ur5e" and run.data["bag"] == {"robot": robot}
    bag = {"robot": "panda", "instruction": "lift"}
    run = read_run(write(tmp_path / "b.yaml", {**mapping, "data": {"bag": bag}}))
    assert run.data["bag"] == bag


@pytest.mark.parametrize("name", ["", "_llava", "_kosmos", "_qwen", "_smolvlm", "_flamingo"])
def test_the_shipped_files_for_recordings_are_whole(name):
    """All families learn by one recipe, at a size that fits into 8 MB at half precision."""
    from robovlms_ros.core.resources import find

    run = read_run(find(f"from_recordings{name}", "config/train"))
    usual = read_run(find("from_recordings", "config/train"))
    assert run.config.model.backbone == (name.removeprefix("_") or "paligemma")
    schedule = {key: getattr(usual.config.training, key) for key in ("max_steps", "threads")}
    assert dataclasses.replace(run.config.training, **schedule) == usual.config.training
    assert run.keep_images and run.data == usual.data
    assert 2 * count(starting_policy(run, print))[0] < 8e6
    hindsight = run.config.training.hindsight
    assert run.keep_images and hindsight.relabel and hindsight.episodes_per_scene == 2
    assert hindsight.hand_camera.name in run.config.cameras
    run.config.require_runnable()


@pytest.mark.parametrize("family", ["paligemma", "kosmos"])
def test_the_shipped_files_for_full_sizes_step_128_windows(family):
    """Adapters on one GPU; every weight but the words' on eight."""
    from robovlms_ros.core.resources import find

    adapters = read_run(find(f"lora_{family}", "config/train"))
    whole = read_run(find(f"full_{family}", "config/train"))
    for run, processes in ((adapters, 1), (whole, 8)):
        training = run.config.training
        assert run.config.model.backbone == family and run.config.vlm.size == "full"
        assert training.batch_size * training.accumulation * processes == 128
        assert training.precision == "bfloat16" and training.gradient_checkpointing
        assert run.keep_images == find("lora_paligemma", "config/train").parent / "kept_images"
    assert adapters.config.training.lora.rank == 64
    assert whole.config.training.lora is None and whole.config.training.freeze == ("word_embedding",)


def test_keep_images_is_a_flag_or_a_folder_beside_the_file(tmp_path):
    path = tmp_path / "train.yaml"
    for value in ("3", "''", "[a]"):
        path.write_text(f"model: {{backbone: paligemma}}\ndata: {{keep_images: {value}}}\n")
        with pytest.raises(ConfigError, match="keep_images = .*true, false or a folder's path"):
            read_run(path)
    path.write_text("model: {backbone: paligemma}\ndata: {keep_images: kept}\n")
    with pytest.raises(ConfigError, match=r"keep_images = 'kept' needs vlm\.image_size"):
        read_run(path)
    path.write_text(
        "model: {backbone: paligemma}\nvlm: {image_size: 224}\ndata: {keep_images: kept}\n"
    )
    assert read_run(path).keep_images == tmp_path / "kept"
