"""Samples with a high loss are drawn more often: in the configured share, from known samples,
alike after a stop."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.sim.training.pipeline import build_trainer
from robovlms_ros.sim.training.plans import Recipe, TrainingStage, load_plan
from robovlms_ros.training.engine.stages import PrioritizedSampling


def counts(focus, draws=20_000):
    return np.bincount(focus.draw(np.random.default_rng(0), draws), minlength=len(focus.losses)) / draws


def test_part_of_the_windows_is_drawn_by_its_loss():
    focus = PrioritizedSampling(4)
    focus.learned(np.array([0, 1, 2]), np.array([0.1, 0.1, 0.7], np.float32))
    np.testing.assert_allclose(counts(focus), 0.25, atol=0.02)
    focus.share = 0.5  # the fourth was never drawn: it counts as the others' mean, 0.3
    by_loss = np.array([0.1, 0.1, 0.7, 0.3]) / 1.2
    np.testing.assert_allclose(counts(focus), 0.5 * 0.25 + 0.5 * by_loss, atol=0.02)
    focus.learned(np.array([2]), np.array([0.1], np.float32))
    assert counts(focus)[2] < 0.3, "what was learned since is let go again"


def test_without_a_loss_to_go_by_all_are_drawn_alike():
    focus = PrioritizedSampling(3)
    focus.share = 0.9
    np.testing.assert_allclose(counts(focus), 1 / 3, atol=0.02)
    focus.learned(np.arange(3), np.zeros(3, np.float32))
    np.testing.assert_allclose(counts(focus), 1 / 3, atol=0.02)


class Counting(torch.nn.Module):
    """Windows whose loss is their own number, and the number of times that each was drawn."""

    drawn = np.zeros(8, int)
    reported = ("loss", "arm")

    def __init__(self, policy, _):
        super().__init__()
        self.policy = policy
        self.number = torch.nn.Parameter(torch.ones(1))

    def inputs(self, windows, generator):
        np.add.at(self.drawn, windows, 1)
        return windows

    def forward(self, windows):
        one = self.number.sum()
        return {
            "loss": one,
            "arm": one.detach(),
            "windows": torch.from_numpy(windows.astype(np.float32)),
        }


@pytest.mark.parametrize("threads", [1, 2])
def test_stopped_run_goes_on_with_what_it_knew(tmp_path, threads):
    data = SimpleNamespace(starts=np.arange(8), windows=lambda starts: starts)

    def run(folder, *stops):
        Counting.drawn = np.zeros(8, int)
        for stop in stops:
            trainer = build_trainer(
                torch.nn.Identity(), Recipe(windows=4), folder, Counting, 1, threads
            )
            trainer.run(data, TrainingStage(stop, focus=0.9))
        return Counting.drawn

    whole = run(tmp_path / "whole", 60)
    np.testing.assert_array_equal(run(tmp_path / "parts", 7, 31, 60), whole)
    assert whole[0] < whole[7] / 3, "window 7 has a loss of 7, window 0 of 0"


def test_bad_plans():
    plan = load_plan(share_directory() / "config" / "train" / "tasks.yaml")
    with pytest.raises(ConfigError, match=r"stages.focus = 1\.0: must be 0 to below 1"):
        TrainingStage(1, focus=1.0)
    with pytest.raises(ConfigError, match="0 where `seeing` is true"):
        TrainingStage(1, focus=0.5, seeing=True, history=1)
    with pytest.raises(ConfigError, match=r"stages\[0\].focus = 0.5: must be 0 without a `task`"):
        replace(plan, task="cubes", stages=(TrainingStage(1, focus=0.5),))
    with pytest.raises(ConfigError, match="first_scene = 999999: must be 0 to 9[0-9]*, with [0-9]* scenes"):
        replace(plan, first_scene=999_999)
