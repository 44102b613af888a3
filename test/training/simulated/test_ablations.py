"""Ablations: every variant's policy learns and drives, of the tabletop tasks and of the easy demo;
what is left is said beforehand, with the time it takes once one was timed; what was not run is
listed as not run beside what RoboVLMs found, what was is not run again.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import Observation, RobotState
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.sim.rollout import ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import TRAINING_SEEDS
from robovlms_ros.sim.training import ablations
from robovlms_ros.sim.training.ablations import Work
from robovlms_ros.sim.training.demonstrations import CUBE_SETTINGS, Recording, record_shard
from robovlms_ros.sim.training.objectives import CubeObjective, TaskObjective
from robovlms_ros.sim.training.plans import TrainingStage, load_plan
from robovlms_ros.sim.training.shards import DemonstrationSet, ShardFrames, find_shards
from robovlms_ros.sim.world import SimWorld

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def small_plan(small_mapping, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.yaml"
    path.write_text(yaml.safe_dump(small_mapping | {"workers": 1, "task": "lift"}), encoding="utf-8")
    return load_plan(path)


@pytest.fixture(scope="module")
def easy_plan(small_plan):
    """The easy demo's, with the same model."""
    return replace(small_plan, task="cubes", stages=(TrainingStage(4),))


@pytest.fixture(scope="module")
def easy_folder(tmp_path_factory):
    """An episode of the easy demo."""
    world = SimWorld(TRAINING_SEEDS[0])
    shard = tmp_path_factory.mktemp("easy") / str(TRAINING_SEEDS[0])
    record_shard(shard, TRAINING_SEEDS[:1], build_loop(world), ExpertSession(world), CUBE_SETTINGS,
                 Recording(world))
    world.close()
    return shard.parent


@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("name", [n for n, v in ablations.VARIANTS.items() if not v.base])
def test_every_variant_learns_and_predicts(small_plan, easy_plan, folder, easy_folder, name, easy):
    if easy:
        small_plan, folder = easy_plan, easy_folder
    elif name not in ablations.variants_of(small_plan):
        with pytest.raises(ConfigError, match="(hindsight|paired) = True"):
            ablations.plan_of(name, small_plan, 10)
        return
    plan = ablations.plan_of(name, small_plan, 10)
    policy = build_policy(plan.policy_config, seed=plan.recipe.seed)
    model = plan.policy_config.model
    make = (
        partial(CubeObjective, hindsight=plan.hindsight)
        if easy
        else partial(TaskObjective, chosen=2)
    )
    objective = make(policy, plan.recipe, ground_truth=plan.ground_truth)
    data = DemonstrationSet(
        ShardFrames(objective).add(find_shards(folder)), model.history_length, 2
    )
    inputs = objective.inputs(data.windows(data.starts[:2]), torch.Generator().manual_seed(0))
    objective(inputs)["loss"].backward()
    assert all(p.grad is not None for p in policy.head.parameters())
    images = {camera: np.zeros((96, 96, 3), np.uint8) for camera in ("static", "wrist")}
    state = RobotState(0, np.zeros(7), None, np.eye(4), 1.0)
    chunk = PolicySession(policy.eval()).predict_action_chunk(Observation(0, images, "lift the red cube", state))
    assert chunk.values.shape == (16, 7)


def test_ablation_runs_once_and_says_what_is_left(small_plan, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "REFERENCE_EPISODES", 5)

    small_plan = replace(
        small_plan,
        stages=(
            TrainingStage(2, seeing=True, history=1),
            TrainingStage(4, demonstrations=8),
            TrainingStage(9, episodes=7),
            TrainingStage(5),
        ),
    )

    def left(*names):
        return ablations.work(names, small_plan, tmp_path, 3, range(1))

    names = ("reference", "executed_4", "history_16")
    needed = [Work(5, 3, 1), Work(0, 0, 1), Work(0, 3, 1)]  # what several need counts once
    assert list(left(*names).values()) == needed
    assert left("executed_4") == {"executed_4": Work(5, 3, 1)}
    assert [stage.steps for stage in ablations.plan_of("reference", small_plan, 3).stages] == [1, 2]
    assert [stage.steps for stage in ablations.plan_of("without_ground_truth", small_plan, 3).stages] == [3]
    # What the later stages would add is left out, and a step has as many frames whatever the
    # history's length.
    reference, single = (ablations.plan_of(name, small_plan, 3) for name in ("reference", "history_1"))
    assert reference.demonstrations == 5 and single.recipe.windows == 2 * reference.recipe.windows
    with pytest.raises(ConfigError, match="variant = 'histroy_1'"):
        left("histroy_1")
    (tmp_path / "demonstrations").mkdir()
    (tmp_path / "demonstrations" / str(TRAINING_SEEDS[0])).symlink_to(folder / "0")
    seconds = iter([0.0, 0.0, 7.0, 10.0, 20.0, 20.0, 20.0, 25.0])
    for name in names[:2]:
        ablations.run(name, small_plan, tmp_path, 3, range(1), 0.3, lambda: next(seconds))
    assert list(left(*names).values()) == [Work(), Work(), Work(0, 3, 1)]
    rates = ablations.rates(tmp_path / name for name in names)
    assert rates == {"steps": pytest.approx(7.0 / 3), "episodes": 4.0}
    assert ablations.seconds_of(Work(0, 6, 3), rates) == pytest.approx(26.0)
    assert ablations.seconds_of(Work(1, 0, 0), rates) is None
    text = ablations.table({"a": Work(0, 80, 15), "b": Work(1)}, rates)
    assert "4 min" in text and "not known" in text.splitlines()[-1]
    written = (tmp_path / "executed_4" / "lift.json").stat().st_mtime_ns
    ablations.run("executed_4", small_plan, tmp_path, 3, range(1), 0.3)
    assert (tmp_path / "executed_4" / "lift.json").stat().st_mtime_ns == written
    table, note = ablations.report(tmp_path, replace(small_plan, task="all")).split("\n\n")
    lines = {line.split(" | ")[1]: line for line in table.splitlines()[2:]}
    assert set(lines) == set(ablations.VARIANTS) - {"hindsight", "hindsight_paired"}
    assert "/1 (" in lines["reference"] and lines["reference"].count("not run") == 3
    assert lines["history_16"].count("not run") == 5
    assert "one step 4.04, head over the history 4.49 [1]" in lines["history_1"]
    assert lines["without_proprioception"].endswith("| not studied |") and "[1] arXiv 2412.14058" in note


def test_easy_demo_counts_both_instructions_in_one_column(easy_plan, easy_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "REFERENCE_EPISODES", 5)
    (tmp_path / "demonstrations").symlink_to(easy_folder)
    assert ablations.work(["without_ground_truth"], easy_plan, tmp_path, 2, range(1)) == {
        "without_ground_truth": Work(0, 2, 2)}
    ablations.run("without_ground_truth", easy_plan, tmp_path, 2, range(1), 0.3)
    lines = {line.split(" | ")[1]: line for line in ablations.report(tmp_path, easy_plan).splitlines()[2:-2]}
    assert "| 0/2 (0% to 66%) | 0/2 |" in lines["without_ground_truth"]
    assert "| not run | not run |" in lines["reference"] and "hindsight" in lines


def test_findings_are_of_variants_that_exist():
    assert set(ablations.FINDINGS) <= set(ablations.VARIANTS)
