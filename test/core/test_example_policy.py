"""A backbone without a checkpoint means the shipped policy, in dry run only.

- Every preset of the README's table names it; one line says so and how to give another policy.
- Out of dry_run, with a configuration of one's own, or with a checkpoint nothing is replaced.
- An unknown backbone is refused with the nearest name.
"""

import re
from pathlib import Path

import pytest

from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.loading import check_weights, with_example_policy
from robovlms_ros.ros.parameters import defaults, from_values

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
        assert (given.checkpoint, given.backbone) == ("demo", "")
        assert find_checkpoint(given.checkpoint).is_dir()
        (line,) = lines
        assert f"backbone '{backbone}' without a checkpoint" in line
        assert "checkpoint:=FOLDER" in line


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
