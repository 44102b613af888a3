"""Recordings of a real robot: the followed instruction and the executed actions are learned, cube
positions are not. In hindsight the grasp position is known, and it alone is learned beside the
action.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.sim.rollout import ExpertSession, build_loop
from robovlms_ros.sim.tasks.base import TRAINING_SEEDS
from robovlms_ros.sim.training.demonstrations import CUBE_SETTINGS, Recording, record_shard
from robovlms_ros.sim.training.objectives import PLACE_SCALE, CubeObjective
from robovlms_ros.sim.training.plans import Recipe, TrainingPlan, TrainingStage
from robovlms_ros.sim.training.shards import CUBE_GOALS, DemonstrationSet, followed_cubes, grasped_places
from robovlms_ros.sim.world import SimWorld


def test_without_ground_truth_the_followed_instruction_alone_is_learned(policy, frames):
    """Of what is told of the cube that was not asked for, and where cubes are, nothing matters."""
    objective = CubeObjective(policy, Recipe(), ground_truth=False)
    data = DemonstrationSet(frames, window=2, stride=2)
    windows = data.windows(data.starts[:6])
    followed = windows.followed[:, -1]
    assert set(followed.tolist()) == {0, 1} and objective.auxiliary is None

    def loss(changed):
        with torch.no_grad():
            return objective(objective.inputs(changed, torch.Generator().manual_seed(0)))

    told = loss(windows)
    assert torch.isnan(told["target_error_m"]) and torch.isfinite(told["loss"])
    asked = torch.nn.functional.one_hot(followed, 2).bool()[:, None, :, None, None]
    other = replace(windows, arm=torch.where(asked, windows.arm, 9.0), cubes=windows.cubes + 9.0)
    assert loss(other)["loss"] == told["loss"]
    for change in ({"arm": windows.arm + 0.1}, {"followed": 1 - windows.followed}):
        assert loss(replace(windows, **change))["loss"] != told["loss"]


def shard(openings, followed, episodes, scenes=None):
    """Frames whose hand is at x = the frame's number."""
    poses = np.tile(np.eye(4), (len(openings), 1, 1))
    poses[:, 0, 3] = np.arange(len(openings))
    return {
        "poses": poses,
        "openings": np.array(openings),
        "goals": np.array(CUBE_GOALS)[np.array(followed)][:, None],
        "episodes": np.array(episodes),
        "scenes": np.array(scenes or episodes),
    }


def test_every_frame_knows_where_the_hand_takes_hold():
    nan = np.nan

    def known(*columns):
        places = grasped_places(shard(*columns))[..., 0]
        return places[:, 0].tolist(), places[:, 1].tolist()

    def alike(found, *wanted):
        return np.array_equal(found, wanted, equal_nan=True)

    slipped = known([1, 0.4, 1, 0.6, 0.5], [0] * 5, [7] * 5)
    assert alike(slipped, [3, 3, 3, 3, 4], [nan] * 5)
    changed = known([1, 0.5, 0.5, 1, 0.5], [0, 0, 1, 1, 1], [7] * 5)  # frames that followed the other know it, too
    assert alike(changed, [nan] * 5, [4] * 5)
    failed = known([1, 0.5, 1, 1, 0.5], [0] * 5, [7, 7, 7, 8, 8])
    assert alike(failed, [nan, nan, nan, 4, 4], [nan] * 5)
    assert alike(known([0.5, 0.5], [0, 0], [7, 7]), [0, 1], [nan, nan])
    paired = known([1, 0.5, 0.5, 1, 0.5], [0, 0, 0, 1, 1], [6, 6, 6, 7, 7], [6] * 5)
    assert alike(paired, [1, 1, 2, 1, 1], [4, 4, 4, 4, 4])


@pytest.mark.sim
@pytest.mark.parametrize("paired", [False, True])
def test_in_the_simulator_the_place_is_the_named_cube_s(tmp_path, paired):
    world = SimWorld(TRAINING_SEEDS[0])
    record_shard(
        tmp_path,
        TRAINING_SEEDS[:4],
        build_loop(world),
        ExpertSession(world),
        CUBE_SETTINGS,
        Recording(world, paired=paired),
    )
    world.close()
    with np.load(tmp_path / "frames.npz") as data:
        frames = {name: data[name] for name in data.files}
    places = grasped_places(frames)
    known = np.isfinite(places[..., 0])
    assert known.any(1).mean() > 0.5
    if paired:
        assert known.all() and np.array_equal(frames["scenes"], frames["episodes"] // 2 * 2)
        assert set(followed_cubes(frames)[frames["episodes"] % 2 == 1]) == {1}
        known &= (
            np.arange(2) == followed_cubes(frames)[:, None]
        )  # the other may have been shoved meanwhile
    assert np.linalg.norm(places - frames["things"][:, :2], axis=2)[known].max() < 0.03


def test_hindsight_is_learned_where_it_is_known(policy, frames):
    objective = CubeObjective(policy, Recipe(), ground_truth=False, hindsight=True)
    assert not hasattr(objective.auxiliary, "all")
    data = DemonstrationSet(frames, window=2, stride=2)
    windows = data.windows(data.starts[:3])
    nowhere = torch.full_like(windows.grasped, torch.nan)
    assert torch.equal(windows.grasped.isnan(), nowhere.isnan()), "the made-up hands never close"

    def loss(grasped):
        objective.zero_grad()
        changed = replace(windows, grasped=grasped, cubes=nowhere)
        told = objective(objective.inputs(changed, torch.Generator().manual_seed(0)))
        told["loss"].backward()
        return told

    unknown = loss(nowhere)
    assert unknown["target_error_m"] == 0 and all(
        not p.grad.any() for p in objective.auxiliary.parameters()
    )
    grasped = nowhere.clone()
    grasped[1, 1, 1 - windows.followed[1, 1]] = windows.hands[1, 1] + PLACE_SCALE
    told = loss(grasped)
    assert told["loss"] > unknown["loss"] and any(
        p.grad.any() for p in objective.auxiliary.parameters()
    )
    with torch.no_grad():
        objective.auxiliary.named[-1].weight.zero_()
        objective.auxiliary.named[-1].bias.fill_(1.0)  # the answer
    assert loss(grasped)["target_error_m"] < 1e-6
    assert float(loss(grasped)["loss"].detach()) == pytest.approx(
        float(unknown["loss"].detach()), abs=1e-6
    )


def test_hindsight_takes_the_place_of_ground_truth(policy_mapping):
    for given in ({}, {"task": "all", "ground_truth": False}):
        with pytest.raises(ConfigError, match="hindsight = True: must be false"):
            TrainingPlan(policy_mapping, (TrainingStage(10),), hindsight=True, **given)
    assert TrainingPlan(policy_mapping, (TrainingStage(10),), ground_truth=False, hindsight=True).hindsight


def test_pairs_stay_together(policy_mapping):
    with pytest.raises(ConfigError, match="paired = True: must be false with"):
        TrainingPlan(policy_mapping, (TrainingStage(10),), paired=True, task="all")
    for given in ({"shard": 5}, {"first_scene": 3}, {"episodes": 31}):
        (name, value), = given.items()
        with pytest.raises(ConfigError, match=f"paired = True: must be false where .*{name} = {value}"):
            TrainingPlan(policy_mapping, (TrainingStage(10),), paired=True, **given)
    with pytest.raises(ConfigError, match=r"stages\[1\].episodes = 3"):
        TrainingPlan(policy_mapping, (TrainingStage(10), TrainingStage(10, episodes=3)), paired=True)
    assert TrainingPlan(policy_mapping, (TrainingStage(10),), paired=True).paired
