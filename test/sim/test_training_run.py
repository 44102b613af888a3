"""From nothing to a checkpoint, in small: demonstrations, training, an episode that the policy
drove, training again, what a later stage needs being recorded meanwhile; what is finished is not
done again; and the commands around it, with their refusals.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml

from robovlms_ros.checkpoints.checkpoint import load_policy
from robovlms_ros.cli.main import main
from robovlms_ros.core.resources import share_directory
from robovlms_ros.sim.rollout import ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import CUBES, TRAINING_SEEDS
from robovlms_ros.sim.tasks.language import INSTRUCTIONS, goals
from robovlms_ros.sim.tasks.objects import THINGS
from robovlms_ros.sim.training.demonstrations import CUBE_SETTINGS, Recording, record_shard
from robovlms_ros.sim.training.pipeline import train
from robovlms_ros.sim.training.plans import load_plan
from robovlms_ros.sim.training.shards import find_shards
from robovlms_ros.sim.world import SimWorld, expert_of

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def small_plan(tmp_path_factory):
    """The shipped plan with a model, data and stages that take seconds."""
    text = (share_directory() / "config" / "train" / "demo.yaml").read_text(encoding="utf-8")
    plan = yaml.safe_load(text)
    plan["policy"]["model"]["history_length"] = 2
    plan["policy"]["action_head"]["hidden_size"] = 16
    for tower in ("text_config", "vision_config"):
        plan["policy"]["vlm"]["settings"][tower].update(hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    plan["policy"]["vlm"]["settings"]["text_config"]["head_dim"] = 8
    stages = [{"steps": 2}, {"steps": 2, "episodes": 1, "demonstrations": 1},
              {"steps": 2, "episodes": 1, "ahead": True}]
    plan |= {"episodes": 1, "shard": 1, "workers": 1, "recipe": {"windows": 2}, "stages": stages}
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return load_plan(path)


def test_run_from_nothing_to_a_checkpoint(small_plan, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        checkpoint = train(small_plan, tmp_path)
    assert not load_policy(checkpoint).is_random
    names = [str(shard.relative_to(tmp_path)) for shard in find_shards(tmp_path)]
    folders = ("aggregation_1", "aggregation_2", "demonstrations", "demonstrations")
    assert names == [f"{folder}/{TRAINING_SEEDS[i]}" for folder, i in zip(folders, (2, 3, 0, 1), strict=True)]
    begun = [(Path(record.args[2]).name, record.threadName == "MainThread") for record in caplog.records
             if record.message.startswith("recording")]
    assert sorted(begun) == [("aggregation_1", True), ("aggregation_2", False), ("demonstrations", False),
                             ("demonstrations", True)]
    frames = [len(np.load(tmp_path / name / "frames.npz")["episodes"]) for name in names]
    told = [record.args for record in caplog.records if "frames in" in record.message]
    assert told == [(frames[2], 1), (sum(frames) - frames[1], 3), (sum(frames), 4)]
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/frames.npz")}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(small_plan, tmp_path)
    assert "recording" not in caplog.text
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.glob("**/frames.npz")}


def test_shard_holds_every_instructions_label(tmp_path):
    world = SimWorld(0)
    loop = build_loop(world)
    outcomes = record_shard(
        tmp_path, TRAINING_SEEDS[5:6], loop, ExpertSession(world), CUBE_SETTINGS, Recording(world)
    )
    images = np.load(tmp_path / "images.npy")
    with np.load(tmp_path / "frames.npz") as data:
        frames = {name: data[name] for name in data.files}
    assert len(outcomes) == 1 and len(images) == len(frames["poses"]) > 20
    assert images.shape[1:] == (2, 96, 96, 3) and images.any(axis=(1, 2, 3, 4)).all()
    asked = [goals().index(goal) for goal in INSTRUCTIONS.values()]
    assert (np.sort(frames["goals"], axis=1) == np.sort(asked)).all()
    # The first frame's scene is known from its seed: the labels are the expert's there, the
    # followed goal's first.
    world.reset(TRAINING_SEEDS[5])
    for number, label in zip(frames["goals"][0], frames["labels"][0], strict=True):
        goal = goals()[number]
        place = world.ground_truth().things[goal.thing].position
        assert np.allclose(frames["things"][0, THINGS.index(goal.thing)], place, atol=1e-5)
        expert = expert_of(
            CUBES, goal, world.ground_truth(), frames["poses"][0], float(frames["openings"][0])
        )
        assert np.allclose(label, expert.chunk(), atol=1e-5)
    assert record_shard(
        tmp_path, TRAINING_SEEDS[5:6], loop, ExpertSession(world), CUBE_SETTINGS, Recording(world)
    ) == []


def test_rollout_command_reports(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert main(["rollout", "--seeds", "1", "--first-seed", "42", "--json", str(report)]) == 0
    data = json.loads(report.read_text())
    assert data["pass"] and [row["success"] for row in data["rows"]] == [1, 1]
    assert "lift the green cube" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rollout", "--seeds", "0"], "--seeds"),
        (["rollout", "--first-seed", "1000000"], "0 to 9999"),
        (["rollout", "--seeds", "1", "--checkpoint", "no/such/folder"], "no such checkpoint"),
        (["train", "--config", "no_such_plan"], "demo"),
        (["demo-data", "--output", "unused", "--episodes", "0"], "--episodes"),
    ],
)
def test_commands_refuse_with_a_reason(arguments, words, capsys):
    assert main(arguments) == 1
    assert words in capsys.readouterr().err
