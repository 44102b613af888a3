"""The command line, the strict loader and the shipped files.

- `robovlms --help` lists the commands without importing torch, ROS or the simulator.
- An unknown command is answered with the nearest one and exit code 2; a refusal is one line and exit code 1.
- The strict loader refuses unknown keys, missing keys, wrong types and values out of a set, each with place and remedy.
- A shipped name wins over a file of that name; an unknown name lists the shipped ones.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from robovlms_ros.cli.main import COMMANDS, main
from robovlms_ros.core.resources import find, share_directory
from robovlms_ros.core.schema import ConfigError, build, read_mapping
from robovlms_ros.core.types import RoboVLMsError


def test_help_lists_commands_and_imports_nothing_heavy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    code = ("import sys; from robovlms_ros.cli.main import main; main(['--help']);"
            "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'rclpy', 'mujoco', 'pinocchio')))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Block())
from robovlms_ros.cli.main import main
sys.exit(main({arguments!r}))
"""


@pytest.mark.parametrize(("blocked", "command", "extra"), [
    ("mcap", ["eval", "a_bag", "--checkpoint", "demo"], "eval"), ("rosbags", ["eval", "a_bag"], "eval"),
    ("rosbags", ["play", "a_bag"], "eval"),
])
def test_a_missing_module_is_a_sentence_with_its_extra(blocked: str, command: list[str], extra: str) -> None:
    code = BLOCKED.format(blocked=blocked, arguments=command)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"robovlms {command[0]}: the Python module '{blocked}' is not installed" in result.stderr
    assert f"pip install 'robovlms_ros[{extra}]'" in result.stderr and "Traceback" not in result.stderr


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dmeo"]) == 2
    assert "Did you mean 'demo'?" in capsys.readouterr().err


def test_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seeds", "0"]) == 1
    assert capsys.readouterr().err == "robovlms demo: --seeds = 0: must be at least 1.\n"


@dataclass(frozen=True)
class Inner:
    rate: float


@dataclass(frozen=True)
class Outer:
    kind: Literal["post", "pre"]
    inner: Inner
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"kind": "post", "inner": {"rate": 1}, "nmaes": []}, "unknown key 'nmaes'. Did you mean 'names'?"),
        ({"kind": "post"}, "x: 'inner' is missing (a mapping); it has no default."),
        ({"kind": "post", "inner": {"rate": "fast"}}, "x.inner.rate = 'fast': must be a number."),
        ({"kind": "past", "inner": {"rate": 1}}, "x.kind = 'past': not allowed. Did you mean 'post'?"),
        ({"kind": "post", "inner": {"rate": True}}, "x.inner.rate = True: must be a number."),
        ({"kind": "post", "inner": {"rate": 1}, "names": ["a", 2]}, "x.names[1] = 2: must be a text."),
    ],
)
def test_strict_loader_names_place_and_remedy(data: dict, text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(Outer, data, "x")
    assert text in str(refused.value)


def test_strict_loader_fills_nested_values() -> None:
    assert build(Outer, {"kind": "pre", "inner": {"rate": 2}, "names": ["a"]}, "x") == Outer("pre", Inner(2.0), ("a",))


def test_unreadable_yaml_names_the_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2")
    for path in (broken, tmp_path / "absent.yaml"):
        with pytest.raises(ConfigError, match=path.name):
            read_mapping(path)


def test_shipped_names_win_and_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "panda").mkdir()
    assert find("panda", "config/robots") == share_directory() / "config" / "robots" / "panda.yaml"
    with pytest.raises(RoboVLMsError, match="panda"):
        find("pandaa", "config/robots")
