"""`robovlms train --data` on rosbags, from the command line to a checkpoint that answers.

- Statistics of the training episodes are in the checkpoint, with their unit; a second call goes on,
  a third has nothing to do; fine-tuning from the checkpoint keeps its normalisation.
- Images kept in files train as decoded ones; `bench loader` measures both.
- Data that would train badly, and a split that cannot be made, are refused before anything is
  trained.
"""

import json
import logging

import pytest
import yaml

from robovlms_ros.checkpoints.checkpoint import load_policy
from robovlms_ros.cli.main import main
from robovlms_ros.config.policy import config_to_mapping, load_config


@pytest.fixture
def recorded(bags, tmp_path):
    """(configuration file, bags): three demonstrations of two seconds."""
    paths = [bags.write(tmp_path / f"bag{i}", seconds=2.4, begin=bags.BEGIN + i * bags.NANOSECONDS) for i in range(3)]
    config = bags.config(
        action_head={"type": "lstm", "hidden_size": 16, "num_layers": 1, "action_dim": 8},
        vlm={"size": "tiny", "vocabulary": ["lift", "the", "cube"]},
        training={"batch_size": 8, "max_steps": 3, "workers": 1, "validation_fraction": 0.3, "save_every": 1},
    )
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({**config_to_mapping(config), "data": bags.MAPPING}))
    return path, paths


def test_bags_become_a_checkpoint(recorded, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    path, paths = recorded
    command = ["train", "--config", str(path), "--data", *map(str, paths), "--output", str(tmp_path / "run")]
    assert main(command) == 0
    assert "2 episodes to train on, 1 held out" in capsys.readouterr().out
    place = tmp_path / "run" / "checkpoint"
    policy = load_policy(place)
    norm = policy.config.action.normalization[0]
    assert not policy.is_random and norm.method == "min_max" and norm.unit
    table = json.loads((place / "statistics.json").read_text())["train"]["action"]
    assert table["min"][:7] == pytest.approx(list(norm.low[:7])) and table["unit"] == norm.unit
    text = yaml.safe_load(path.read_text())
    text["training"]["max_steps"] = 5
    path.write_text(yaml.safe_dump(text))
    caplog.clear()
    assert main(command) == 0 and "going on at step 3 of 5" in caplog.text
    finer = tmp_path / "finer.yaml"
    finer.write_text(yaml.safe_dump({"training": {"max_steps": 1, "freeze": ["backbone"]}, "data": text["data"]}))
    output = ["--output", str(tmp_path / "finer")]
    assert main(["train", "--config", str(finer), "--from", str(place), "--data", str(paths[0]), str(paths[1]),
                 *output]) == 0
    assert load_config(tmp_path / "finer" / "checkpoint" / "config.yaml").action.normalization[0] == norm


def test_images_in_files_train_as_decoded_ones(recorded, tmp_path, capsys):
    """Two processes write the files; the losses are those of decoding."""
    path, paths = recorded
    text = yaml.safe_load(path.read_text())
    text["vlm"]["image_size"] = 28
    curves = []
    kept = {"keep_images": "images"}
    for name, more in (("decoded", {}), ("kept", {**kept, "jobs": 2}), ("again", kept)):
        path.write_text(yaml.safe_dump({**text, "data": {**text["data"], **more}}))
        output = tmp_path / name
        command = ["train", "--config", str(path), "--data", *map(str, paths), "--output", str(output)]
        assert main(command) == 0
        rows = (output / "curve.csv").read_text().splitlines()
        curves.append([row.split(",")[:3] for row in rows])
    assert "images: 3 of 3 episodes are in" in capsys.readouterr().out
    assert len(list((tmp_path / "images").iterdir())) == 3
    assert curves[0] == curves[1] == curves[2]


def test_the_loaders_rate_is_measured(recorded, tmp_path, capsys):
    path, paths = recorded
    file = tmp_path / "loader.json"
    command = ["bench", "loader", "--config", str(path), "--data", *map(str, paths), "--json", str(file)]
    assert main(command) == 1
    assert "--image-size = 0: must be pixels a side" in capsys.readouterr().err
    options = ["--image-size", "6", "--windows", "16", "--workers", "1", "--at-least", "0"]
    assert main([*command, *options]) == 0
    found = json.loads(file.read_text())
    assert len(found["ratio"]) == 4 and min(found["images_per_second"].values()) > 0
    assert "3 episodes, 1 cameras" in capsys.readouterr().out


def test_what_cannot_be_trained_on_is_refused_first(bags, recorded, tmp_path, capsys):
    path, paths = recorded
    output = ["--output", str(tmp_path / "run")]
    silent = bags.write(tmp_path / "silent", seconds=1.0, commands=False)
    assert main(["train", "--config", str(path), "--data", str(silent), *output]) == 1
    assert "command" in capsys.readouterr().err
    assert main(["train", "--config", str(path), "--data", str(paths[0]), *output]) == 1
    assert "one side would be empty" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["train", "--config", str(path), "--data", *map(str, paths), "--inspect", *output]) == 0
    assert (tmp_path / "run" / "inspection.html").exists()
