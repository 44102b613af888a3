"""From results to the report.

- the report opens with three sentences and the verdict; thresholds decide the exit code; an unmeasured bound is a miss;
- report.html is one file that loads nothing, escapes names and is reproducible;
- report.json and chunks.csv hold the same run;
- a finished bag is not computed again, a killed run goes on with the rest, and other weights or settings start anew;
- two policies are compared on the same images, with intervals that contain what they should;
- the node's params file is read as the node reads it.
"""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from robovlms_ros.cli import eval as command
from robovlms_ros.cli import eval_setup
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.evaluation.metrics.paired import mean_interval, paired_interval
from robovlms_ros.evaluation.replay.evaluate import EvaluationConfig, evaluate_bag
from robovlms_ros.evaluation.replay.loop import Subject
from robovlms_ros.evaluation.report.build import EvaluationThresholds, build_report, misses, with_overrides
from robovlms_ros.evaluation.report.html import render


@pytest.fixture(scope="module")
def bag(tmp_path_factory, request):
    from importlib import util
    from pathlib import Path

    spec = util.spec_from_file_location("bag_tools", Path(__file__).with_name("conftest.py"))
    tools = util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    return tools, tools.write_bag(tmp_path_factory.mktemp("bags") / "bag", 1.5)


@pytest.fixture
def part(bag, setting):
    tools, path = bag
    subjects = [Subject("exact", lambda: tools.FakeSession(tools.follow())),
                Subject("late", lambda: tools.FakeSession(tools.follow(1)))]
    return evaluate_bag(path, subjects, setting(sensitivity=True))


def test_the_report_answers_first(part):
    report = build_report([part], EvaluationThresholds(max_distance=0.001))
    assert len(report["answer"]) == 3 and report["answer"][0].startswith("exact is on average 0.0 mrad")
    assert report["answer"][2].startswith("NOT PASSED: late: distance = ")
    assert set(report["missed"]) == {"late"} and report["pass"] is False
    assert build_report([part], EvaluationThresholds(max_distance=1.0))["pass"] is True
    (pair,) = report["comparisons"]
    assert pair["difference"]["low"] > 0, "late is clearly further"
    json.dumps(report, allow_nan=False)


def test_the_page_loads_nothing(part):
    report = build_report([part], EvaluationThresholds())
    page = render(report)
    assert page == render(report), "equal reports give equal bytes"
    assert "<b>&amp;" not in page and "&lt;b&gt;&amp;" in render(report, "<b>&")
    assert "<script" not in page and not re.search(r"(src|href)=\"(?!data:)", page) and "@import" not in page
    text = page[page.index("<main>"):]
    assert text.index('class="answer') < text.index("<table") and page.count("data:image/jpeg;base64,") >= 1
    for heading in ("How near", "Error by horizon", "Side by side", "Does it listen", "How to read this"):
        assert heading in page


def test_nothing_evaluated_is_not_a_pass(bag, setting):
    _, path = bag
    report = build_report([evaluate_bag(path, [Subject("recorded", None)], setting())], EvaluationThresholds())
    assert report["pass"] is False and report["policies"] == {}
    assert "Nothing was evaluated" in render(report)


def test_discarded_episodes_are_named(part, tmp_path, capsys):
    names = ["a cup", "<b>"]
    common = {"reason": "it was discarded", "images": 15, "begin_ns": 1, "end_ns": 2}
    left_out = [{"name": name, **common} for name in names]
    command.finish([{**part, "left_out": left_out}], [SimpleNamespace(
        config=EvaluationConfig(), part=tmp_path / "part.json", bag=tmp_path)], tmp_path)
    lines = ["2 of its episodes left out:", "'a cup' (15 images): it was discarded"]
    printed = capsys.readouterr().out
    assert all(f"  {line}\n" in printed for line in lines)
    assert json.loads((tmp_path / "report.json").read_text())["bags"][0]["left_out"] == left_out
    page = (tmp_path / "report.html").read_text()
    assert "2 of its episodes left out" in page and "a cup" in page and "&lt;b&gt;" in page


def test_thresholds():
    bounds = with_overrides(EvaluationThresholds(min_cosine=0.5), ["max-distance=0.02", "max_refused=0"])
    assert misses({"distance": 0.03, "cosine": 0.6, "refused": None}, bounds) == [
        "distance = 0.03, must be at most 0.02", "refused could not be measured (max_refused = 0)"]
    with pytest.raises(ConfigError, match=r"unknown name 'max_distanc'. Did you mean 'max_distance'"):
        with_overrides(EvaluationThresholds(), ["max_distanc=1"])
    with pytest.raises(ConfigError, match="'much' must be a number"):
        with_overrides(EvaluationThresholds(), ["max_distance=much"])


def test_paired_intervals():
    rng = np.random.default_rng(0)
    a = {f"e{i}": [[t, abs(rng.normal(1, 0.1))] for t in range(40)] for i in range(8)}
    b = {name: [[t, error + 0.05] for t, error in rows] for name, rows in a.items()}
    total, each = paired_interval(a, b, 10)
    assert abs(total.low - 0.05) < 1e-9 and abs(total.high - 0.05) < 1e-9 and total.unit == "episodes"
    assert len(each) == 8
    interval = mean_interval(a, 10)
    assert interval.low < 1.0 < interval.high
    few, _ = paired_interval({"e0": a["e0"]}, {"e0": [*b["e0"], [99, 5.0]]}, 10)
    assert few.unit == "blocks of chunks" and few.count == 4, "chunks that only one answered are left out"


def test_a_run_resumes_and_new_settings_start_anew(bag, tmp_path, monkeypatch):
    tools, path = bag
    runs = []

    def fake_prepare(job):
        runs.append(job.bag)
        from robovlms_ros.ros.loading import load_body

        body = load_body(job.parameters, lambda _: "")
        from robovlms_ros.evaluation.replay.evaluate import Setting

        setting = Setting(body.robot, body.make_kinematics(), job.parameters.schedule, ("static", "wrist"), job.config)
        return setting, [Subject("a", lambda: tools.FakeSession(tools.follow()))]

    monkeypatch.setattr(eval_setup, "prepare", fake_prepare)
    parameters = eval_setup.read_parameters(None, {})
    config = EvaluationConfig(sensitivity=False, latencies=(0.05,))
    job = eval_setup.EvaluationJob(path, (("a", "nowhere"),), parameters, config, tmp_path)
    first = eval_setup.run_job(job)
    assert eval_setup.run_job(job) == first and len(runs) == 1
    first.unlink()
    assert eval_setup.run_job(job) == first and len(runs) == 2, "a part that was not finished is made again"
    other = eval_setup.EvaluationJob(path, (("a", "nowhere"),), parameters, EvaluationConfig(rate=5.0), tmp_path)
    assert other.part != first
    code = command.finish([json.loads(first.read_text())], [job], tmp_path)
    assert code == 0
    assert {"report.html", "report.json", "chunks.csv", "annotated.mcap"} <= {p.name for p in tmp_path.iterdir()}
    assert len((tmp_path / "chunks.csv").read_text().splitlines()) == 31


def test_the_nodes_params_file(tmp_path):
    file = tmp_path / "vla.yaml"
    file.write_text("/**:\n  ros__parameters:\n    cameras: [front]\n    camera:\n      front: {topic: cam/image}\n"
                    "    dry_run: false\n    schedule.strategy: fade\n")
    parameters = eval_setup.read_parameters(file, {"robot": "panda"})
    assert parameters.cameras[0].topic == "cam/image" and parameters.dry_run and parameters.schedule.strategy == "fade"
    file.write_text("/**:\n  ros__parameters: {camera_toleranse: 0.1}\n")
    with pytest.raises(ConfigError, match="Did you mean 'camera_tolerance'"):
        eval_setup.read_parameters(file, {})


def test_evaluation_yaml_and_command_line(tmp_path):
    file = tmp_path / "evaluation.yaml"
    file.write_text("topics: {cameras: {static: /a}}\nlatencies: [0.1]\nthresholds: {max_distance: 0.5}\n")
    args = SimpleNamespace(evaluation=file, camera=["wrist=/b"], commands="motion", instruction=None, drop=None,
                           other_instruction=None, latency=[0.2], rate=None, quick=True, threshold=["min_cosine=0.1"],
                           image_stamps="bag", annotate=True)
    config = command.evaluation_config(args)
    assert config.topics.cameras == {"static": "/a", "wrist": "/b"} and config.topics.commands == "motion"
    assert config.latencies == (0.2,) and not config.sensitivity
    assert config.stamps == "bag" and config.annotate
    assert config.thresholds == EvaluationThresholds(max_distance=0.5, min_cosine=0.1)
    file.write_text("latencys: [0.1]\n")
    with pytest.raises(ConfigError, match=r"unknown key 'latencys'. Did you mean 'latencies'"):
        command.evaluation_config(args)


def test_progress_tells_the_time_left():
    now = [0.0]
    bar = command.ProgressLine(4, lambda: now[0])
    now[0] = 30.0
    assert bar.left(0.25) == "1:30 min left" and bar.left(0.0) == "starting"
    now[0] = 59.0
    assert bar.left(1.0) == "done in 59 s"
