"""A backbone without a checkpoint means its shipped policy, in dry run only.

- Every preset of the README's table names one; one line says so and how to give another policy.
- A policy of a preset's own name is of that backbone, at most 8 MB, and predicts a chunk.
- Out of dry_run, with a configuration of one's own, or with a checkpoint nothing is replaced.
- An unknown backbone is refused with the nearest name.
"""

import re
from pathlib import Path

import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import load_policy
from robovlms_ros.core.registry import BACKBONES
from robovlms_ros.core.resources import find_checkpoint, shipped_policy
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.loading import check_weights, with_example_policy
from robovlms_ros.ros.parameters import defaults, from_values
from robovlms_ros.sim.tasks.language import INSTRUCTIONS

README = Path(__file__).parents[2] / "README.md"


def parameters(**values):
    return from_values({**defaults(), **values})


def presets():
    table = README.read_text(encoding="utf-8").partition("## Backbones")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", table, re.M)


def test_every_preset_runs_the_shipped_policy():
    assert len(presets()) == 6
    for backbone in presets():
        lines = []
        given = with_example_policy(parameters(backbone=backbone), lines.append)
        check_weights(given)
        assert (given.checkpoint, given.backbone) == (shipped_policy(backbone), "")
        assert find_checkpoint(given.checkpoint).is_dir()
        (line,) = lines
        assert f"backbone '{backbone}' without a checkpoint" in line
        assert "checkpoint:=FOLDER" in line


OWN = [name for name in sorted(BACKBONES) if shipped_policy(name) == name]


@pytest.mark.parametrize("backbone", OWN)
def test_a_shipped_policy_is_small_and_of_its_backbone(backbone):
    folder = find_checkpoint(backbone)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6
    policy = load_policy(folder)
    assert policy.config.model.backbone == backbone
    policy.config.require_runnable()
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    policy.tokenize(INSTRUCTIONS)


@pytest.mark.parametrize("values", [
    {"backbone": "llava", "dry_run": False},
    {"backbone": "llava", "config": "llava"},
    {},
])
def test_otherwise_there_are_no_weights(values):
    given = parameters(**values)
    assert with_example_policy(given, pytest.fail) is given
    with pytest.raises(ConfigError, match="checkpoint is empty"):
        check_weights(given)


def test_a_checkpoint_is_kept():
    given = parameters(backbone="paligemma", checkpoint="tasks")
    assert with_example_policy(given, pytest.fail) is given


def test_unknown_backbone():
    with pytest.raises(ConfigError, match="llava"):
        with_example_policy(parameters(backbone="lava"))
