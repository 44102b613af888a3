"""Many bags: processes, Ray, and a run that is killed.

- a run with --jobs that is killed by SIGKILL in the middle goes on with the bags that were not finished: what was is
  not computed again, and the report is that of a run that nobody killed;
- on Ray the same jobs give the same report, from relative paths too, and a GPU is asked for where the cluster has one
  and the policy may use it; without Ray the error names what to install.
"""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from robovlms_ros.cli.main import main
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec
from robovlms_ros.evaluation.bags.chunks import CHUNK, message_of_chunk


def write(tools, path, seconds):
    """A bag with chunks of its own, so that it evaluates without a network."""
    spec = ActionSpec("joint_delta", "base", "rotation_vector", "chained", tools.STEP, (*tools.JOINTS, "gripper"))
    with tools.BagWriter(path) as bag:
        bag.instruction("go", tools.BEGIN_NS)
        connection = bag.writer.add_connection("/vla_node/action_chunk", CHUNK, typestore=bag.store)
        for tick in range(round(seconds * 100)):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            bag.joints(now)
            if tick % 10 == 0:
                bag.image("/static/image_raw", now)
                bag.image("/wrist/image_raw", now)
                rows = [tools.motion(now + k * NANOSECONDS // 20) for k in range(tools.HORIZON + 1)]
                values = np.column_stack([np.diff(rows, axis=0), np.ones(tools.HORIZON)])
                chunk = ActionChunk(now, values, spec, "go", "live", tick // 10)
                bag.writer.write(connection, now + 5_000_000, message_of_chunk(bag.store, chunk, "panda_link0"))
    return path


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    from importlib import util
    from pathlib import Path

    spec = util.spec_from_file_location("bag_tools", Path(__file__).with_name("conftest.py"))
    tools = util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    folder = tmp_path_factory.mktemp("bags")
    return [write(tools, folder / f"bag{i}", seconds) for i, seconds in enumerate((1.0, 6.0, 6.0, 6.0))]


def arguments(bags, output, *more):
    return ["eval", *map(str, bags), "--checkpoint", "recorded", "--commands", "motion", "--quick", "--output",
            str(output), *more]


def report(output):
    return json.loads((output / "report.json").read_text())


@pytest.fixture(scope="module")
def expected(bags, tmp_path_factory):
    output = tmp_path_factory.mktemp("local")
    assert main(arguments(bags, output)) == 0
    return report(output)


def test_a_killed_run_goes_on(bags, expected, tmp_path):
    command = [sys.executable, "-m", "robovlms_ros.cli", *arguments(bags, tmp_path, "--jobs", "2")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        end = time.monotonic() + 180
        while not list(tmp_path.glob("parts/*.json")):
            assert process.poll() is None and time.monotonic() < end, "no bag was finished"
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = {part: part.stat().st_mtime_ns for part in tmp_path.glob("parts/*.json")}
    assert 1 <= len(finished) < len(bags) and not (tmp_path / "report.json").exists(), "killed in the middle"
    assert main(arguments(bags, tmp_path)) == 0
    assert {part: part.stat().st_mtime_ns for part in finished} == finished, "what was finished is as it was"
    assert report(tmp_path) == expected and expected["policies"]["recorded"]["chunks"] == 190


def fake_ray(monkeypatch, **resources):
    """The used part of Ray, in this process; returns the received requests."""
    asked = SimpleNamespace(options={}, calls=0)

    def remote(**options):
        asked.options = options

        def call(function, *values):
            asked.calls += 1
            return asked.calls, function(*values)

        return lambda function: SimpleNamespace(remote=lambda *values: call(function, *values))

    module = SimpleNamespace(init=lambda **_: None, cluster_resources=lambda: resources, remote=remote,
                             wait=lambda waiting, num_returns: (waiting[:1], waiting[1:]), get=lambda result: result[1])
    monkeypatch.setitem(sys.modules, "ray", module)
    return asked


def test_ray_gives_the_same_report(bags, expected, tmp_path, monkeypatch):
    asked = fake_ray(monkeypatch)
    monkeypatch.chdir(bags[0].parent)
    assert main(arguments([bag.name for bag in bags], tmp_path, "--engine", "ray")) == 0
    assert asked.calls == len(bags) and asked.options == {"num_cpus": 1, "num_gpus": 0}
    result = report(tmp_path)
    assert result["policies"]["recorded"]["errors"] == expected["policies"]["recorded"]["errors"]
    fake = fake_ray(monkeypatch, GPU=2.0)
    assert main(arguments([bags[0].name], tmp_path, "--engine", "ray")) == 0
    assert fake.options["num_gpus"] == 1
    assert main(arguments([bags[0].name], tmp_path, "--engine", "ray", "--device", "cpu")) == 0
    assert fake.options["num_gpus"] == 0


def test_without_ray_the_error_says_what_to_install(bags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(arguments(bags[:1], tmp_path, "--engine", "ray")) == 1
    assert "pip install robovlms_ros[fleet]" in capsys.readouterr().err
