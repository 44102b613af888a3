"""The preflight: `robovlms check`.

- a checkpoint that fits passes, with parameters, memory, cameras, history, chunk, statistics and range named;
- refused, each by its own line: absent camera, statistics missing from the file, another robot's statistics, a horizon
  shorter than the latency, a camera slower than the history, damaged or foreign weights, no action block;
- a tokenizer that is not at hand is a warning: exit 0, with --strict 1; loading refuses;
- the report is JSON on request; unreadable things are findings, not tracebacks.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy, save_policy
from robovlms_ros.checkpoints.preflight import PreflightReport, Situation, inspect
from robovlms_ros.checkpoints.weights import CheckpointError
from robovlms_ros.cli.main import main
from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.control.controller_types import ChunkOnly
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.resources import find
from robovlms_ros.models.tokenization import TokenizerError

MakeConfig = Callable[..., PolicyConfig]
NORM = {"method": "min_max", "low": [-0.5], "high": [0.5]}


@pytest.fixture
def folder(make_config: MakeConfig, tmp_path: Path) -> Path:
    config = make_config("kosmos", cameras=["static", "wrist"], action={"normalization": [NORM], "robot": "panda"})
    return save_policy(build_policy(config), tmp_path / "policy")


def change(folder: Path, block: str, **values: Any) -> None:
    path = folder / "config.yaml"
    data = yaml.safe_load(path.read_text())
    data[block] = {**data[block], **values} if isinstance(data[block], dict) else data[block]
    path.write_text(yaml.safe_dump(data))


def errors(report: PreflightReport) -> str:
    return " ".join(f"{f.topic}: {f.text}" for f in report.of("error"))


def test_passes(folder: Path) -> None:
    situation = Situation(load_robot("panda"), ("static", "wrist", "third"), 30.0, 0.1)
    report = inspect(folder, None, situation)
    assert report.exit_code(strict=True) == 0, errors(report)
    topics = {f.topic for f in report.findings}
    wanted = {"architecture", "memory", "weights", "cameras", "image size", "history", "chunk", "statistics", "range"}
    assert wanted <= topics
    parameters = next(f.facts["parameters"] for f in report.findings if f.topic == "architecture")
    assert parameters == sum(p.numel() for p in load_policy(folder).parameters())
    speed = next(f.facts["speed"] for f in report.findings if f.topic == "range")
    assert speed == pytest.approx(3**0.5 * 0.5 * 0.02 / 0.05)
    report.require()


def test_cameras_and_time(folder: Path) -> None:
    report = inspect(folder, None, Situation(None, ("static",), 5.0, 0.5))
    text = errors(report)
    assert "cameras: expects static, wrist; at hand static. Without wrist" in text
    assert "history:" in text and "Raise its rate to 10.0 Hz" in text
    assert "chunk: 4 steps of 0.0500 s = 0.20 s against a latency of 0.50 s" in text
    with pytest.raises(CheckpointError, match=r"is refused: \[cameras\].*\[history\].*\[chunk\]"):
        report.require()


def test_another_robots_statistics(folder: Path) -> None:
    change(folder, "action", robot="widowx")
    text = errors(inspect(folder, None, Situation(load_robot("panda"))))
    assert "statistics: are of robot 'widowx', this one is 'panda'" in text


def test_statistics_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "action", normalization=[{"method": "quantile", "statistics": "stats.json", "key": "mine"}])
    assert main(["check", str(folder)]) == 1
    assert "stats.json: cannot be read" in capsys.readouterr().out
    (folder / "stats.json").write_text(json.dumps({"theirs": {}}))
    assert main(["check", str(folder)]) == 1
    assert "'mine' is not in" in capsys.readouterr().out
    change(folder, "action", normalization=[])
    report = inspect(folder, None, Situation())
    assert [f.topic for f in report.of("warning")] == ["statistics"]


def test_joint_statistics_of_another_arm(make_config: MakeConfig, tmp_path: Path) -> None:
    names = [f"j{i}" for i in range(7)] + ["gripper"]
    action: dict[str, Any] = {"space": "joint_position", "names": names, "units": {"joint": 1.0}}
    action["normalization"] = [{"method": "min_max", "low": [-3.0] * 7 + [0.0], "high": [3.0] * 7 + [1.0]}]
    config = make_config(action=action, action_head={"action_dim": 8})
    folder = save_policy(build_policy(config), tmp_path)
    assert "the statistics are of another robot" in errors(inspect(folder, None, Situation(load_robot("panda"))))
    robot = load_robot("panda")
    narrow = dataclasses.replace(robot, name="six")
    object.__setattr__(narrow, "joints", robot.joints[:6])
    assert "7 joints in the policy, 6 in robot 'six'" in errors(inspect(folder, None, Situation(narrow)))


def test_the_description_is_loaded(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pinocchio", reason="pinocchio is not installed")
    assert main(["check", str(folder), "--robot", "panda"]) == 0
    assert "panda_link0 to panda_grip_site" in capsys.readouterr().out
    panda = load_robot("panda")
    damaged = tmp_path / "damaged.urdf"
    damaged.write_text(panda.description_path.read_text().replace('name="panda_joint4"', 'name="elbow"'))
    assert main(["check", str(folder), "--robot", "panda", "--description", str(damaged), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    found = [row["text"] for row in report["findings"] if row["topic"] == "description"]
    assert "damaged.urdf: joints panda_joint4 are not in the robot's description" in found[0] and not report["pass"]
    assert main(["check", str(folder), "--description", str(damaged)]) != 0
    assert "give --robot as well" in capsys.readouterr().err


def test_a_robot_without_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first check of a new arm needs no policy."""
    pytest.importorskip("pinocchio", reason="pinocchio is not installed")
    assert main(["check", "--robot", "ur5e"]) == 0
    shown = capsys.readouterr().out
    assert "  ok  description:" in shown and "checkpoint" not in shown
    assert main(["check"]) == 1
    assert "give a checkpoint, a robot (--robot or --params), or both" in capsys.readouterr().err
    assert main(["check", "random", "--robot", "ur5e"]) == 1
    assert "random weights have no files to check. Leave it out" in capsys.readouterr().err


def test_a_description_of_a_topic(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pinocchio", reason="pinocchio is not installed")
    path = tmp_path / "panda.yaml"
    data = yaml.safe_load(find("panda", "config/robots").read_text())
    path.write_text(yaml.safe_dump({**data, "description": {"topic": "robot_description"}}))
    main(["check", str(folder), "--robot", str(path)])
    assert "WARN  description: not checked: it comes from the topic 'robot_description'" in capsys.readouterr().out
    description = str(load_robot("panda").description_path)
    main(["check", str(folder), "--robot", str(path), "--description", description])
    assert "  ok  description:" in capsys.readouterr().out


def test_proprioception_of_another_robot(make_config: MakeConfig, tmp_path: Path) -> None:
    proprioception = {"names": ["joint_positions"], "joints": 7}
    folder = save_policy(build_policy(make_config("kosmos", proprioception=proprioception)), tmp_path / "policy")
    six = inspect(folder, None, Situation(load_robot("ur5e")))
    assert "proprioception: takes 7 joint positions; robot 'ur5e' has 6 joints" in errors(six)
    assert "proprioception" not in errors(inspect(folder, None, Situation(load_robot("panda"))))


def test_proprioception_that_the_robot_cannot_give(make_config: MakeConfig, tmp_path: Path) -> None:
    panda = load_robot("panda")
    topic = dataclasses.replace(panda.description, file=None, topic="robot_description")
    bare = dataclasses.replace(
        panda, gripper=None, controller=ChunkOnly(type="chunk_only"), description=topic)
    proprioception = {"names": ["gripper", "eef_position"]}
    config = make_config("kosmos", proprioception=proprioception)
    folder = save_policy(build_policy(config), tmp_path / "policy")
    text = errors(inspect(folder, None, Situation(bare)))
    assert "takes the gripper's opening; robot 'panda' has no gripper" in text
    assert "takes eef_position; robot 'panda' has no description file" in text
    assert "proprioception" not in errors(inspect(folder, None, Situation(panda)))


def test_the_meaning_of_the_action_is_printed(folder: Path) -> None:
    report = inspect(folder, None, Situation())
    texts = {finding.topic: finding.text for finding in report.findings}
    parts = ("eef_delta", "in the base frame", "rotation_vector", "chained", "translation 0.02 m")
    for part in (*parts, "every 0.05 s (20 Hz)"):
        assert part in texts["action"]
    assert texts["gripper"] == "class 1 opens, class 1 above 0.5; at once"
    change(folder, "action", space="eef_pose", frame="tool")
    assert "eef_pose is expressed in the base frame" in errors(inspect(folder, None, Situation()))


def test_joints_in_another_order_than_the_robots(make_config: MakeConfig, tmp_path: Path) -> None:
    joints = load_robot("panda").joints
    names = [*joints[::-1], "gripper"]
    action = {"space": "joint_position", "units": {"joint": 1.0}, "names": names}
    config = make_config("kosmos", action_head={"action_dim": 8}, action=action)
    folder = save_policy(build_policy(config), tmp_path / "policy")
    text = errors(inspect(folder, None, Situation(load_robot("panda"))))
    assert "in another order than the robot's" in text
    assert "another order" not in errors(inspect(folder, None, Situation()))


def write_parameters(path: Path, **values: Any) -> str:
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": values}}))
    return str(path)


def test_the_nodes_parameters(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(*options: str, **values: Any) -> tuple[int, str]:
        path = write_parameters(tmp_path / "vla.yaml", **values)
        code = main(["check", str(folder), "--params", path, *options])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    assert check(robot="panda")[0] == 0
    code, text = check(robot="panda", cameras=["static", "side"])
    assert code == 1
    assert "expects static, wrist; at hand static, side. Without wrist" in text
    assert check("--cameras", "static,wrist", robot="panda", cameras=["static", "side"])[0] == 0
    code, text = check(robot="ur5e")
    assert code == 1
    assert "robot 'panda', this one is 'ur5e'" in text
    assert check("--robot", "panda", robot="ur5e")[0] == 0
    code, text = check(robot="panda", backbone="paligemma")
    assert code == 1
    assert "parameter backbone = 'paligemma' but the policy's is 'kosmos'" in text
    code, text = check(robot="panda", instruction="unheard-of")
    assert code == 1
    assert "ERROR instruction" in text
    code, text = check(robot="panda", camera={"static": {"encoding": "brg8"}})
    assert code != 0
    assert "parameter camera.static.encoding = 'brg8': not allowed" in text


def test_cameras_other_than_the_nodes_defaults_are_a_warning(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_policy(build_policy(make_config("kosmos", cameras=["left"])), tmp_path / "policy")
    assert main(["check", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "WARN  cameras: expects left; the node's default static, wrist. Set the node's" in text


def test_weights_that_do_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, "action_head", hidden_size=32)
    assert main(["check", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    kinds = {row["kind"] for row in report["findings"] if row["topic"] == "weights"}
    assert not report["pass"] and kinds == {"wrong shape"}
    (folder / "model.safetensors").write_bytes(b"not this")
    assert "cannot be read as safetensors" in errors(inspect(folder, None, Situation()))
    assert "no such checkpoint" in errors(inspect(folder / "absent", None, Situation()))


def test_tokenizer_not_at_hand(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert main(["check", str(folder)]) == 0
    assert main(["check", str(folder), "--strict"]) == 1
    report = inspect(folder, None, Situation())
    assert "tokenizer.json" in report.of("warning")[0].text
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_policy(folder)
    assert load_policy(folder, require_tokenizer=False).prompt is None


def test_without_an_action_block(make_config: MakeConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(make_config("kosmos"), action=None)
    text = errors(inspect(save_policy(build_policy(config), tmp_path), None, Situation()))
    assert "action: the configuration says nothing" in text


def test_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robovlms_ros.checkpoints.preflight.available_memory", lambda device: 1000)
    assert "memory:" in errors(inspect(folder, None, Situation()))


def test_convert_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder), str(tmp_path / "half"), "--dtype", "float16"]) == 0
    assert "written:" in capsys.readouterr().out
    half, source = load_policy(tmp_path / "half"), load_policy(folder)
    for ours, theirs in zip(half.parameters(), source.parameters(), strict=True):
        assert torch.equal(ours, theirs.half().float())
