"""`robovlms improve`: B is written where it is better, and else the reasons are given.

- From real bags: A is evaluated and mined, B trained from its weights, both are compared.
- The worst frames and those whose chunk the gate refuses have the weight of a person's corrections.
- B is not better by a lower error with less success, by a clear loss under one instruction, by more
  refusals.
"""

import json

import numpy as np
import pytest
import yaml

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy, save_policy
from robovlms_ros.checkpoints.passport import difference
from robovlms_ros.cli.improve import NOT_BETTER, Scores, judge, mine, table
from robovlms_ros.cli.main import main
from robovlms_ros.config.training import CorrectionsConfig
from robovlms_ros.training.data.episodes import EpisodeArrays
from robovlms_ros.training.data.windows import frame_weights


@pytest.fixture
def command(bags, tmp_path):
    paths = [
        bags.write(tmp_path / f"bag{i}", seconds=2.4, begin=bags.BEGIN + i * bags.NANOSECONDS)
        for i in range(3)
    ]
    normalization = {"method": "min_max", "low": [-3.0] * 7 + [0.0], "high": [3.0] * 7 + [1.0]}
    action = {**bags.ACTION, "normalization": [normalization]}
    config = bags.config(
        action=action,
        action_head={"type": "lstm", "hidden_size": 16, "num_layers": 1, "action_dim": 8},
        vlm={"size": "tiny", "vocabulary": ["lift", "the", "cube"]},
        training={
            "batch_size": 8,
            "max_steps": 8,
            "learning_rate": 1e-2,
            "warmup_ratio": 0,
            "workers": 0,
            "validation_fraction": 0,
        },
    )
    save_policy(build_policy(config), tmp_path / "old")
    return [
        "improve",
        "--checkpoint",
        str(tmp_path / "old"),
        "--robot",
        "panda",
        "--data",
        *map(str, paths[:2]),
        "--gate",
        str(paths[2]),
        "--output",
        str(tmp_path / "new"),
    ]


def test_a_better_policy_is_written(command, tmp_path, capsys):
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "A: 96 frames scored" in text and "written: " in text
    found = json.loads((tmp_path / "new.work" / "improve.json").read_text())
    old, new = (found["scores"]["lift the cube"][name] for name in "AB")
    assert new["error"] < old["error"] and new["errors"] == old["errors"] > 0
    assert "other weights than" in difference(found["policies"]["A"], found["policies"]["B"])
    assert (
        load_policy(tmp_path / "new").config.action == load_policy(tmp_path / "old").config.action
    )
    assert main(command) == 1 and "a folder that does not exist yet" in capsys.readouterr().err


def test_a_policy_that_is_not_better_is_not_written(command, tmp_path, capsys):
    config = tmp_path / "worse.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "training": {
                    "max_steps": 3,
                    "learning_rate": 1.0,
                    "gradient_clip": 0,
                    "warmup_ratio": 0,
                    "workers": 0,
                    "validation_fraction": 0,
                }
            }
        )
    )
    assert main([*command, "--config", str(config), "--worst", "0"]) == NOT_BETTER
    assert "not written: error" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_what_is_asked_of_it_is_checked(command, capsys):
    gate = command.index("--gate") + 1
    assert main([*command[:gate], "scenes:none", *command[gate + 1 :]]) == 1
    assert "--gate = 'scenes:none': must be scenes:N" in capsys.readouterr().err
    data = command[command.index("--data") + 1]
    assert main([*command[:gate], data, *command[gate + 1 :]]) == 1
    assert "bags that --data does not name" in capsys.readouterr().err


def test_moments_weigh_like_corrections():
    part = {
        "bag": "bags/one",
        "notes": [],
        "results": {
            "A": {
                "errors": {"one 1": [[10, 0.1], [20, 0.3], [30, 0.2], [40, 0.0]]},
                "gate": {"refused_chunks": [[40, "lift"], [20, "lift"]]},
            }
        },
    }
    moments, lines = mine([part], 0.25)
    assert moments == {"bags/one": [20, 40]}
    assert lines == [
        "A: 4 frames scored, 2 chunks refused by the gate",
        "A: 1 worst moments, error 0.3 and more",
    ]
    arrays = EpisodeArrays(
        np.array([10, 20, 30, 40]),
        np.zeros((4, 7)),
        None,
        "lift",
        "bags/one, episode 0",
        takeover=np.array([0.3, 0.2, 0.1, 0.0]),
    )
    corrections = CorrectionsConfig(person=3.0, before=0.5, seconds=0.15)
    assert frame_weights(arrays, corrections, moments).tolist() == [1.0, 3.0, 0.5, 3.0]
    assert frame_weights(arrays, corrections, {"bags/two": [10]}).tolist() == [1.0, 1.0, 0.5, 3.0]


def scores(**new):
    found = Scores()
    usual = {"errors": [0.01, 0.03], "refused": 1, "success": 12, "episodes": 20}
    for words, changes in (("lift", {}), ("put", new)):
        found.add(words, "A", **usual)
        found.add(words, "B", **{**usual, **changes})
    return found


@pytest.mark.parametrize(
    "new, worse, better",
    [
        ({}, [], []),
        ({"success": 15}, [], ["success"]),
        ({"errors": [0.01, 0.02]}, [], ["error"]),
        ({"refused": 0}, [], []),
        ({"success": 15, "refused": 2}, ["gate refusals"], ["success"]),
        ({"success": 3}, ["success", "'put': success"], []),
        ({"success": 11, "errors": [0.01, 0.02]}, ["success"], []),
        ({"success": 15, "errors": [0.02, 0.03]}, ["error", "'put': error"], ["success"]),
    ],
)
def test_better_is_nowhere_worse(new, worse, better):
    found = judge(scores(**new))
    for texts, names in zip(found, (worse, better), strict=True):
        assert len(texts) == len(names)
        assert all(text.startswith(name) for text, name in zip(texts, names, strict=True))
    assert "12/20 (39% to 78%)" in table(scores(**new))
