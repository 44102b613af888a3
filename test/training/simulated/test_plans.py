"""`robovlms train` of a plan that records in the simulator.

- `--no-ground-truth` trains a plan without it, and is refused where there is none.
- A folder goes on with the plan that it was begun with: more stages, threads or workers; anything
else is refused. - `--device` and `--workers` reach the run; a device that is not there is refused
before anything is recorded, and both
  are refused for a configuration that is no plan.
- Every stage has scenes of its own, which further stages leave as they are. Demonstrations can be
recorded ahead; a
  stage that is recorded ahead is driven by the policy as it was a stage earlier.
- The log tells how long training is left, at the pace of the run.
- `robovlms ablate` says what is left of the variants that it was given before it runs them, in
order.
"""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robovlms_ros.cli.main import main
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.sim.tasks.base import TRAINING_SEEDS
from robovlms_ros.sim.training import ablations, pipeline, plans
from robovlms_ros.sim.training.pipeline import build_trainer
from robovlms_ros.sim.training.plans import Recipe, TrainingStage, load_plan
from robovlms_ros.training.engine import stages

TASKS = share_directory() / "config" / "train" / "tasks.yaml"


def test_ground_truth_is_left_out_on_request(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(pipeline, "train", lambda plan, folder, device: seen.append(plan) or folder)
    for options in ([], ["--no-ground-truth"]):
        assert main(["train", "--config", "tasks", "--output", str(tmp_path), *options]) == 0
    assert [plan.ground_truth for plan in seen] == [True, False]
    learned = tuple(replace(stage, glimpses=0) for stage in seen[0].stages if not stage.seeing)
    assert len(learned) < len(seen[0].stages)  # where things are is what only the simulator knows
    assert replace(seen[1], ground_truth=True) == replace(seen[0], stages=learned)
    assert main(["train", "--config", "demo", "--output", str(tmp_path), "--no-ground-truth"]) == 0
    assert seen.pop().ground_truth is False
    policy = share_directory() / "config" / "backbones" / "paligemma.yaml"
    assert main(["train", "--config", str(policy), "--no-ground-truth"]) != 0
    assert "leave it out" in capsys.readouterr().err and len(seen) == 2


def test_device_and_workers_reach_the_run(tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(pipeline, "train", lambda plan, folder, device: seen.append((device, plan.workers)) or folder)
    train = ["train", "--config", "tasks", "--output", str(tmp_path)]
    assert main([*train, "--device", "cpu", "--workers", "3"]) == 0
    assert main(train) == 0
    assert seen == [("cpu", 3), ("cuda" if torch.cuda.is_available() else "cpu", load_plan(TASKS).workers)]
    capsys.readouterr()
    policy = str(share_directory() / "config" / "backbones" / "paligemma.yaml")
    for command, words in (
        ([*train, "--device", "cuda:77"], ("--device cuda:77", "Use cpu")),
        (["ablate", "--output", str(tmp_path / "new"), "--device", "cuda:77"], ("--device cuda:77", "Use cpu")),
        ([*train, "--workers", "-1"], ("--workers = -1", "0 or more")),
        (["train", "--config", policy, "--device", "cpu"], ("--device = 'cpu'", "left out", "no plan")),
        (["train", "--config", policy, "--workers", "2"], ("--workers = 2", "left out", "no plan")),
    ):
        assert main(command) == 1
        told = capsys.readouterr().err
        assert all(word in told for word in words), told
    assert len(seen) == 2 and not any(tmp_path.iterdir())


def test_stages_have_scenes_of_their_own():
    parts = (
        TrainingStage(10),
        TrainingStage(20, demonstrations=3, glimpses=4),
        TrainingStage(30, episodes=2),
        TrainingStage(40, episodes=3, ahead=True),
        TrainingStage(50, episodes=1, demonstrations=1),
    )
    plan = replace(load_plan(TASKS), episodes=5, shard=2, stages=parts)
    run, shown = Path("run"), Path("shown")
    work = pipeline.shards_of_stages(plan, run, shown)
    jobs = [job for each in work for job in each.jobs]
    assert len({job.folder for job in jobs}) == len(jobs)

    def seeds(chosen):
        return [seed for job in chosen for seed in job.seeds]

    assert seeds(jobs) == list(TRAINING_SEEDS[: 9 + 4 + 6])
    assert {job.folder.parent for job in jobs if job.checkpoint is None} == {shown, run / "glimpses_1"}
    assert [job.glimpse for job in work[1].jobs] == [False, False, True]
    assert [len(seeds(each.jobs)) for each in work] == [5, 3 + 4, 2, 3, 2]
    assert pipeline.shards_of_stages(replace(plan, stages=parts[:4]), run, shown) == work[:4]
    # The first policy that drives is stage 2's own, and still is for stage 3, which is recorded
    # meanwhile.
    drivers = [{job.checkpoint for job in each.jobs} for each in work]
    early, late = (pipeline.step_folder(run, step) for step in (30, 100))
    assert drivers == [{None}, {None}, {early}, {early}, {None, late}]
    assert [each.ahead for each in work] == [work[0].jobs, work[1].jobs, [], work[3].jobs, work[4].jobs[:1]]
    assert seeds(work[4].ahead) == [TRAINING_SEEDS[17]]
    later = pipeline.shards_of_stages(replace(plan, first_scene=100), run, shown)
    assert seeds(job for each in later for job in each.jobs) == list(TRAINING_SEEDS[100 : 100 + 19])


def test_folder_goes_on_with_its_own_plan(tmp_path):
    plan = load_plan(TASKS)
    for same in (plan, replace(plan, threads=1, workers=7), replace(plan, stages=plan.stages[:1])):
        plans.require_same(same, tmp_path)
    with pytest.raises(ConfigError, match=r"another plan \(goals: 3 then, 2 now\).*another --output"):
        plans.require_same(replace(plan, goals=2), tmp_path)
    with pytest.raises(ConfigError, match="another plan \\(stages: "):
        plans.require_same(replace(plan, stages=(TrainingStage(7), *plan.stages[1:])), tmp_path)


class Straight(torch.nn.Module):
    """An objective whose loss is its one number, and whose distance to the target is `error`."""

    error = 1.0
    reported = ("loss", "arm", "gripper", "target_error_m")

    def __init__(self, policy, _):
        super().__init__()
        self.policy = policy
        self.number = torch.nn.Parameter(torch.ones(1))

    def inputs(self, windows, generator):
        return windows

    def forward(self, windows):
        one = self.number.sum()
        return {"loss": one, "arm": one, "gripper": one, "target_error_m": torch.tensor(self.error)}


def test_log_tells_how_long_is_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stages, "REPORT_EVERY", 2)
    data = SimpleNamespace(starts=torch.arange(4).numpy(), windows=lambda starts: None)
    seconds = iter([100.0, 110.0, 150.0])
    with caplog.at_level(logging.INFO):
        run = build_trainer(torch.nn.Identity(), Recipe(windows=2), tmp_path, Straight).run
        run(data, TrainingStage(4), 0, 64, lambda: next(seconds))
    told = [record.message for record in caplog.records if "left" in record.message]
    assert [line.rpartition(", ")[2] for line in told] == ["5 min of training left", "12 min of training left"]
    assert "target_error_m 1.0000" in told[0]


def test_log_tells_no_distance_that_is_not_known(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stages, "REPORT_EVERY", 1)
    monkeypatch.setattr(Straight, "error", float("nan"))
    data = SimpleNamespace(starts=torch.arange(4).numpy(), windows=lambda starts: None)
    with caplog.at_level(logging.INFO):
        build_trainer(torch.nn.Identity(), Recipe(windows=2), tmp_path, Straight).run(
            data, TrainingStage(1)
        )
    assert "gripper" in caplog.text and "nan" not in caplog.text and "target" not in caplog.text


def test_ablate_says_first_what_is_left(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(ablations, "run", lambda name, *_, **__: ran.append((name, capsys.readouterr().out)))
    options = ["ablate", "--output", str(tmp_path), "--steps", "30", "--seeds", "5"]
    assert main([*options, "--only", "history_1", "executed_4"]) == 0
    assert [name for name, _ in ran] == ["history_1", "executed_4"]
    rows = {line.split()[0]: line.split()[1:4] for line in ran[0][1].splitlines()}
    # Both need the same 400 demonstrations; executed_4 needs the reference's checkpoint.
    assert rows["history_1"] == ["400", "30", "20"] and rows["executed_4"] == ["0", "30", "20"]
    assert "| history_1 | not run" in capsys.readouterr().out
    assert main([*options, "--report"]) == 0 and len(ran) == 2
    assert "about" not in capsys.readouterr().out
