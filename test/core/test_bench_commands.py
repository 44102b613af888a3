"""The command lines of the benchmarks that no other test runs, and the options of all.

- Every benchmark has options and a description; its help imports no heavy library.
- `bench ik` and `bench eval` run through, print a table and write their numbers.
"""

import json
import subprocess
import sys

import pytest

from robovlms_ros.cli import bench
from robovlms_ros.cli.main import main

HELP = """
import sys
from robovlms_ros.cli.main import main
try:
    main(["bench", {name!r}, "--help"])
except SystemExit as end:
    assert end.code == 0
loaded = {{"torch", "transformers", "rclpy", "mujoco", "pinocchio"}} & set(sys.modules)
assert not loaded, loaded
"""


def test_every_benchmark_has_options():
    assert set(bench.OPTIONS) == set(bench.COMMANDS) and bench.DEFAULT in bench.COMMANDS


@pytest.mark.parametrize("name", bench.COMMANDS)
def test_help_is_light(name):
    done = subprocess.run(
        [sys.executable, "-c", HELP.format(name=name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: robovlms bench {name}" in done.stdout


def test_inverse_kinematics(tmp_path, capsys):
    file = tmp_path / "ik.json"
    arguments = ["--steps", "4", "8", "--chunks", "3", "--json", str(file)]
    assert main(["bench", "ik", *arguments]) == 0
    content = json.loads(file.read_text())
    assert (content["robot"], content["joints"]) == ("panda", 7)
    assert [row["steps"] for row in content["rows"]] == [4, 8]
    for row in content["rows"]:
        assert 0 < row["ms"]["p50"] <= row["ms"]["p99"]
        assert row["reached"] > 0.5 and row["worst_mm"] <= 1.0 and row["worst_mrad"] <= 5.0
    assert "worst mrad" in capsys.readouterr().out


@pytest.mark.sim
def test_evaluation_of_a_bag_in_blocks(tmp_path, capsys):
    file = tmp_path / "eval.json"
    arguments = ["--repeats", "1", "--episode-time", "1", "--block", "4", "--at-least", "0"]
    assert main(["bench", "eval", *arguments, "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["frames"] > 4 and content["largest_difference"] < 1e-4
    assert set(content["frames_per_second"]) == {"frame by frame", "in blocks"}
    assert "times as fast" in capsys.readouterr().out
