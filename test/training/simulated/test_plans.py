"""`robovlms train` of a plan that records in the simulator.

- `--no-ground-truth` trains a plan of the tabletop tasks without it, and is refused where there is none.
- A folder goes on with the plan that it was begun with: more stages, threads or workers; anything else is refused.
- The log tells how long training is left, at the pace of the run.
- `robovlms ablate` says what is left of the variants that it was given before it runs them, in order.
"""

import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from robovlms_ros.cli.main import main
from robovlms_ros.resources import share_directory
from robovlms_ros.schema import ConfigError
from robovlms_ros.training.simulated import ablations, pipeline, trainer
from robovlms_ros.training.simulated.behaviour_cloning import Losses, Recipe, Stage
from robovlms_ros.training.simulated.pipeline import load_plan
from robovlms_ros.training.simulated.trainer import Trainer

TASKS = share_directory() / "config" / "train" / "tasks.yaml"


def test_ground_truth_is_left_out_on_request(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(pipeline, "train", lambda plan, folder: seen.append(plan) or folder)
    for options in ([], ["--no-ground-truth"]):
        assert main(["train", "--config", "tasks", "--output", str(tmp_path), *options]) == 0
    assert [plan.ground_truth for plan in seen] == [True, False]
    learned = tuple(stage for stage in seen[0].stages if not stage.seeing)
    assert len(learned) < len(seen[0].stages)  # where things are is what only the simulator knows
    assert replace(seen[1], ground_truth=True) == replace(seen[0], stages=learned)
    assert main(["train", "--config", "demo", "--output", str(tmp_path), "--no-ground-truth"]) != 0
    assert "a plan of the tabletop tasks" in capsys.readouterr().err
    policy = share_directory() / "config" / "backbones" / "paligemma.yaml"
    assert main(["train", "--config", str(policy), "--no-ground-truth"]) != 0
    assert "leave it out" in capsys.readouterr().err and len(seen) == 2


def test_folder_goes_on_with_its_own_plan(tmp_path):
    plan = load_plan(TASKS)
    for same in (plan, replace(plan, threads=1, workers=7), replace(plan, stages=plan.stages[:1])):
        pipeline._require_same(same, tmp_path)
    with pytest.raises(ConfigError, match=r"another plan \(goals: 3 then, 2 now\).*another --output"):
        pipeline._require_same(replace(plan, goals=2), tmp_path)
    with pytest.raises(ConfigError, match="another plan \\(stages: "):
        pipeline._require_same(replace(plan, stages=(Stage(7), *plan.stages[1:])), tmp_path)


class Straight(torch.nn.Module):
    """A learner whose loss is its one number."""

    def __init__(self, *_):
        super().__init__()
        self.number = torch.nn.Parameter(torch.ones(1))

    def losses(self, windows, generator):
        one = self.number.sum()
        return Losses(one, one.detach(), one.detach(), one.detach())


def test_log_tells_how_long_is_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(trainer, "REPORT_EVERY", 2)
    data = SimpleNamespace(starts=torch.arange(4).numpy(), windows=lambda starts: None)
    seconds = iter([100.0, 110.0, 150.0])
    with caplog.at_level(logging.INFO):
        Trainer(None, Recipe(windows=2), tmp_path, Straight).run(data, Stage(4), 0, 64, lambda: next(seconds))
    told = [record.message for record in caplog.records if "left" in record.message]
    assert [line.rpartition(", ")[2] for line in told] == ["5 min of training left", "12 min of training left"]


def test_ablate_says_first_what_is_left(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(ablations, "run", lambda name, *_: ran.append((name, capsys.readouterr().out)))
    options = ["ablate", "--output", str(tmp_path), "--steps", "30", "--seeds", "5"]
    assert main([*options, "--only", "history_1", "executed_4"]) == 0
    assert [name for name, _ in ran] == ["history_1", "executed_4"]
    rows = {line.split()[0]: line.split()[1:4] for line in ran[0][1].splitlines()}
    # Both need the same 400 demonstrations; executed_4 needs the reference's checkpoint.
    assert rows["history_1"] == ["400", "30", "20"] and rows["executed_4"] == ["0", "30", "20"]
    assert "| history_1 | not run" in capsys.readouterr().out
    assert main([*options, "--report"]) == 0 and len(ran) == 2
    assert "about" not in capsys.readouterr().out
