"""The command line of `robovlms bench policy` and the files that it writes.

- Without a name, `robovlms bench` is `robovlms bench policy`; other benchmarks keep their names; --help lists them.
- It runs in a process without ROS, simulator, kinematics, plots and OpenCV, and prints every path of every case.
- The JSON holds machine, limits, rows and whether it is complete, reads back equal, and a file of something else is
  refused; --resume measures only what is missing.
- What cannot be measured is listed, the rest is measured, and the exit code is 1; a path that fails takes no other with
  it, times are kept before operations are counted, and after the time limit no job is begun.
- The GPU's preset runs whole on tiny models: every path, the verification's verdict, and --resume.
- Every threshold is judged: a value on the wrong side or a missing one is a miss.
- Curves: one point per row, from rows that differ in nothing else; the pictures are well-formed.
- `--preset head` measures the LSTM head's window alone, shows answer and whole, and judges the answer.
- Peak memory comes from a process of its own.
"""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robovlms_ros.bench.policy import head_window, measure, run, variants
from robovlms_ros.bench.policy.cases import Case
from robovlms_ros.bench.policy.curves import curves_over, draw
from robovlms_ros.bench.policy.head_window import WindowCost
from robovlms_ros.bench.policy.models import STATUS, peak_memory
from robovlms_ros.bench.policy.results import PolicyRow, Results, table
from robovlms_ros.bench.policy.thresholds import Check, cpu_checks, gpu_checks
from robovlms_ros.bench.policy.timing import Ceilings
from robovlms_ros.cli.main import main
from robovlms_ros.core.schema import ConfigError

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--size", "tiny", "--history", "2", "--rounds", "1", "--threads", "1", "--device", "cpu"]
BARE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"rclpy", "mujoco", "robosuite", "pinocchio", "matplotlib", "cv2", "rosbags", "mcap"}:
            raise ModuleNotFoundError(name + " is blocked", name=name)
sys.meta_path.insert(0, Block())
from robovlms_ros.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def row(path: str = "fast", **changes: object) -> PolicyRow:
    case = Case("kosmos", "full", cameras=2, dtype="bfloat16")
    values = {"case": case, "path": path, "p50": 0.02, "p99": 0.022, "steps": 70, "images_per_second": 100.0,
              "peak_bytes": None, "shares": {"text": 0.7, "rest": 0.3}, "flops": 10**12, "bytes": 10**9,
              "roofline": 0.01, "ratio": 1.0, "difference": 0.0,
              "parameters": {"all": 1_700_000_000, "without_embedding": 1_600_000_000}}
    return PolicyRow(**{**values, **changes})  # type: ignore[arg-type]


def results(*rows: PolicyRow) -> Results:
    machine = {"device": "cpu", "name": "a processor", "threads": 1}
    return Results(machine, Ceilings({"float32": 1e11}, 1e10), list(rows), complete=True)


def test_bench_without_a_name_runs_bare_and_prints_every_path(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, "-c", BARE, "bench", "--backbone", "kosmos", *QUICK, "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for path in ("fast", "plain", "careful", "logits"):
        assert f"\n{path} " in done.stdout
    content = json.loads(file.read_text())
    assert content["complete"] and content["format"] == 1 and content["machine"]["device"] == "cpu"
    assert content["ceilings"]["bandwidth"] > 0 and content["ceilings"]["flops"]["float32"] > 0
    for entry in content["rows"]:
        assert entry["case"]["backbone"] == "kosmos" and entry["steps"] == 1
        assert 0 < entry["p50"] <= entry["p99"] and entry["flops"] > 0 < entry["roofline"]
        assert entry["difference"] < 1e-5
        assert sum(entry["shares"].values()) == pytest.approx(1.0, abs=1e-6)


def test_the_named_benchmarks_stay_and_help_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("policy", "plot", "stream", "node", "ik", "eval"))
    assert main(["bench", "strem"]) == 2


def test_resume_measures_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    arguments = ["bench", "policy", "--backbone", "llava", *QUICK, "--paths", "fast,plain", "--json", str(file)]
    assert main(arguments) == 0
    first = Results.read(file)
    assert main([*arguments, "--history", "2,3", "--resume"]) == 0
    second = Results.read(file)
    assert second.rows[:2] == first.rows and len(second.rows) == 4
    assert second.ceilings == first.ceilings
    capsys.readouterr()


def test_what_cannot_be_measured_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    paths = ["--paths", "fast,quick"]
    assert main(["bench", "--backbone", "llava", *QUICK, *paths, "--json", str(file)]) == 1
    assert "not measured: llava tiny" in capsys.readouterr().out
    written = Results.read(file)
    assert not written.complete and "quick" in written.missing[0]


def test_a_wrong_case_is_refused_with_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--backbone", "palligemma", *QUICK]) == 1
    assert "paligemma" in capsys.readouterr().err


def test_a_file_reads_back_equal_and_another_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    written = results(row(), row("logits", ratio=3.0))
    written.write(file)
    assert Results.read(file) == written
    file.write_text("{}")
    with pytest.raises(ConfigError, match="bench policy"):
        Results.read(file)


def test_the_table_shows_ratios_and_stages() -> None:
    text = table([row(), row("logits", ratio=3.25, difference=2e-3)])
    assert "kosmos full, lstm, 2 cameras, W 16, chunk 10, bfloat16 (1.60 B + words)" in text
    assert "3.25" in text and "2.0e-03" in text and "text 70%" in text


def test_thresholds_on_a_cpu() -> None:
    case = Case("paligemma")
    good = [row(case=case), row("careful", case=case, ratio=1.0), row("logits", case=case, ratio=1.9)]
    head = WindowCost(64, {}, growth=1.9, gain=8.7, whole_growth=4.5, whole_gain=2.0, difference=0.0)
    memory: dict[str, dict[str, int | None]] = {"paligemma": {"fast": 100, "careful": 100}}
    assert all(check.kept for check in cpu_checks(good, head, memory))

    def missed(rows: list[PolicyRow] = good, head: WindowCost = head, memory: dict = memory) -> list[str]:
        return [check.name for check in cpu_checks(rows, head, memory) if not check.kept]

    slower, near = replace(good[1], ratio=0.96), replace(good[2], ratio=1.2)
    assert missed([good[0], slower, good[2]]) == ["paligemma, fast against careful: times as fast"]
    assert missed([good[0], good[1], near]) == ["paligemma, fast against logits: times as fast"]
    assert len(missed([good[0], replace(good[1], difference=2e-4), good[2]])) == 1
    assert len(missed(head=replace(head, growth=2.6, gain=5.9))) == 2
    assert len(missed(memory={"paligemma": {"fast": 103, "careful": 100}})) == 1
    assert len(missed(memory={"paligemma": {"fast": None, "careful": 100}})) == 1


def test_the_head_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"one_frame": 0.012, "answer": 0.0125, "put_off": 0.05, "whole": 0.0625, "again": 0.114}
    cost = head_window.WindowCost(64, seconds, 1.04, 9.1, 5.2, 1.8, 1e-7)
    monkeypatch.setattr(head_window, "window_cost", lambda device, dtype: cost)
    file = tmp_path / "head.json"
    assert main(["bench", "--preset", "head", "--device", "cpu", "--threads", "1", "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "answer 12.5 ms, put_off 50.0 ms" in shown and "with deferred updates 5.20 and 1.80" in shown
    checks = json.loads(file.read_text())["checks"]
    assert len(checks) == 3 and all(check["kept"] for check in checks)


def gpu_rows() -> list[PolicyRow]:
    rows = []
    for backbone, cameras in (("paligemma", 2), ("kosmos", 2), ("llava", 1)):
        case = Case(backbone, "full", cameras=cameras, dtype="bfloat16")
        rows += [row(case=case, verdict="accepted: close"), row("logits", case=case, ratio=3.0)]
        rows += [row("logits_float32", case=case, ratio=6.0)]
        rows += [row(path, case=case, p50=0.015, verdict="accepted: close") for path in ("fast:max", "fast:fp8")]
    return rows


def test_thresholds_on_a_gpu() -> None:
    rows = gpu_rows()
    assert all(check.kept for check in gpu_checks(rows))
    assert not any(check.kept for check in gpu_checks([]))
    slow = [replace(r, p50=0.03) if r.path == "fast:fp8" else r for r in rows]
    assert {check.name for check in gpu_checks(slow) if not check.kept} == {
        f"{backbone}, fast:fp8: times as fast as fast" for backbone in ("paligemma", "kosmos", "llava")
    }
    refused = [replace(r, verdict="REFUSED: far") if r.path == "fast" else r for r in rows]
    assert len([check for check in gpu_checks(refused) if not check.kept]) == 3
    uncounted = [replace(r, roofline=0.0) for r in rows]
    assert len([check for check in gpu_checks(uncounted) if not check.kept]) == 2
    assert "MISSED a: not measured (<= 1)" in str(Check("a", None, 1.0, False))


def test_the_gpu_preset_on_tiny_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job and path of the run on a GPU; machine code is not made here."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: compile_(f, backend="eager", dynamic=False))
    monkeypatch.setattr(run, "GPU_CASES", (("paligemma", 2),))
    file = tmp_path / "gpu.json"
    arguments = ["bench", "policy", "--preset", "gpu", "--device", "cpu", "--threads", "1", "--json", str(file)]
    assert main(arguments) == 1, "models of other families are missing"
    shown = capsys.readouterr().out
    written = Results.read(file)
    assert not written.missing, written.missing
    paths = {r.path for r in written.rows if r.case.backbone == "paligemma"}
    assert paths == {"fast", "plain", "careful", "logits", "logits_float32", "fast:fp8", "fast:max"}
    for r in written.rows:
        assert r.flops and r.p50 > 0 and r.shares
        assert r.steps == 4 if r.path.startswith("fast") else r.steps >= 1
        assert r.verdict.startswith("accepted") if r.path.startswith("fast") else not r.verdict, r.verdict
    assert "kept   paligemma, fast:fp8: accepted by the verification" in shown
    assert main([*arguments, "--resume"]) == 1
    assert Results.read(file).rows == written.rows


def test_a_path_that_fails_takes_no_other_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    kept: list[Results] = []

    def broken(self: object, index: int, timer: object = None) -> None:
        raise RuntimeError("CUDA error: misaligned address\nmore")

    def uncountable(function: object) -> None:
        kept.append(Results.read(file))
        raise NotImplementedError("no formula")

    monkeypatch.setattr(variants.BaselineVariant, "step", broken)
    monkeypatch.setattr(measure, "count", uncountable)
    paths = ["--paths", "fast,careful,plain"]
    assert main(["bench", "--backbone", "llava", *QUICK, *paths, "--json", str(file)]) == 1
    assert "careful: RuntimeError: CUDA error: misaligned address" in capsys.readouterr().out
    written = Results.read(file)
    assert [r.path for r in written.rows] == ["fast", "plain"] and not any(r.flops for r in written.rows)
    assert [r.path for r in kept[0].rows] == ["fast", "plain"], "times are on disk before anything is counted"
    assert sum("no formula" in text for text in written.missing) == 2


def test_after_the_limit_no_job_is_begun(tmp_path: Path) -> None:
    job = run.MeasurementJob(Case("llava", "tiny"), ("fast",))
    chosen = run.Preset((job,), measure.Effort(), ("float32",), limit=0.0)
    left = run.run_preset(chosen, torch.device("cpu"), tmp_path / "rows.json", False, lambda rows: None)
    assert not left.rows and "go on with --resume" in left.missing[0]


def test_curves_have_a_point_per_row_that_differs_in_nothing_else(tmp_path: Path) -> None:
    base = Case("kosmos")
    rows = [row(case=replace(base, history=w), p50=0.01 * w) for w in (1, 4, 16)]
    rows += [row("plain", case=replace(base, history=w), p50=0.02 * w) for w in (1, 4, 16)]
    rows += [row(case=replace(base, history=2, cameras=2)), row(case=base, sessions=4, p50=0.3)]
    curves = {curve.label: curve.points for curve in curves_over("history", rows)}
    assert [x for x, _ in curves["fast"]] == [1, 4, 16]
    assert [y for _, y in curves["fast"]] == pytest.approx([10.0, 40.0, 160.0])
    assert curves["plain"][-1] == pytest.approx((16, 320.0))
    (robots,) = curves_over("robots", rows)
    assert robots.points[0] == pytest.approx((1, 160.0)) and robots.points[1] == pytest.approx((4, 300.0))
    assert curves_over("chunk", rows) == []
    written = draw(results(*rows), tmp_path)
    assert {path.name for path in written} == {"cost_over_history.svg", "cost_over_robots.svg"}
    picture = ElementTree.parse(tmp_path / "cost_over_history.svg").getroot()
    marks = picture.findall(".//{http://www.w3.org/2000/svg}use")
    assert len(marks) == 6 + 2, "one for each point, one for each entry of the legend"


def test_plot_command_draws_and_fails_without_a_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.json"
    results(row()).write(file)
    assert main(["bench", "plot", str(file), "--out", str(tmp_path)]) == 1
    results(row(), row(case=replace(row().case, chunk=30))).write(file)
    assert main(["bench", "plot", str(file), "--out", str(tmp_path)]) == 0
    assert "cost_over_chunk.svg" in capsys.readouterr().out


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux says how much memory a process took")
def test_peak_memory_is_that_of_its_own_process() -> None:
    peak = peak_memory(Case("kosmos", "tiny", history=2), "fast", 1)
    assert peak is not None and 5e7 < peak < 4e9
