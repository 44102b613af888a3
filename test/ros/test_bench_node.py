"""`robovlms bench node`: the command line runs through and writes its numbers, whatever they are."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ros

STAGES = ("in_ms", "out_ms", "command_ms", "library_ms", "library_alone_ms")


def test_a_second_of_each_transport_is_measured(ros, tmp_path):
    file = tmp_path / "node.json"
    command = [sys.executable, "-m", "robovlms_ros.cli", "bench", "node"]
    command += ["--seconds", "1", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    content = json.loads(file.read_text())
    assert content["pass"] == (done.returncode == 0)
    assert [row["transport"] for row in content["rows"]] == ["raw", "compressed"]
    for row in content["rows"]:
        assert row["sets"] > 0 and row["ratio"] > 0
        assert all(0 < row[stage]["p50"] <= row[stage]["p99"] for stage in STAGES)
    assert "added, p99:" in done.stdout
