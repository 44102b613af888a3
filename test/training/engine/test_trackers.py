"""Trackers beside TensorBoard: real ones are optional, so these runs have modules in their place.

- A run starts one of each tracker with its settings, sends every tenth step and each epoch, and
  ends it.
- A run that goes on keeps its identity. A tracker that is not installed or does not start is named
  with the remedy.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from accelerate import PartialState  # imported before the modules in the place of others

from robovlms_ros.training.engine.batches import TrainingError
from robovlms_ros.training.engine.curves import Curves


class Tracker(ModuleType):
    """As much of wandb and trackio as accelerate calls."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.settings: dict[str, Any] = {}
        self.config = SimpleNamespace(update=lambda values, **_: self.settings.update(values))

    def init(self, **options: Any) -> "Tracker":
        self.begun.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def trackers(monkeypatch):
    PartialState()  # a run has begun
    modules = {name: Tracker(name) for name in ("wandb", "trackio")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


def curves(folder: Any, *names: str) -> Curves:
    return Curves(folder, 0, 20, True, bar=False, trackers=names, settings={"windows": 7})


def test_numbers_reach_the_trackers(tmp_path, trackers):
    for _ in range(2):
        run = curves(tmp_path, "wandb", "trackio")
        for step in range(1, 21):
            run.step(step, {"loss": 1.0 / step, "arm": 0.0})
        run.validation(20, 0, {"loss": 0.5})
        run.close()
    for module in trackers.values():
        assert len(module.begun) == 2 and module.begun[0] == module.begun[1]
        assert module.begun[0]["project"] == "robovlms_ros" and module.begun[0]["resume"] == "allow"
        assert module.begun[0]["name"].startswith(tmp_path.name)
        assert module.settings == {"windows": 7} and module.finished == 2
        assert [step for step, _ in module.logged[:3]] == [10, 20, 20]
        assert module.logged[1][1] == {"train/loss": 0.05, "train/arm": 0.0}
        assert module.logged[2][1] == {"validation/loss": 0.5}
    assert trackers["wandb"].begun[0]["id"] == (tmp_path / "tracker_id.txt").read_text()


def test_a_tracker_that_is_absent_or_fails_is_named(tmp_path, monkeypatch, trackers):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(TrainingError, match="trackio is not installed .*`pip install trackio`"):
        curves(tmp_path, "trackio")

    def refuse(**_: Any) -> None:
        raise OSError("no account")

    monkeypatch.setattr(trackers["wandb"], "init", refuse)
    with pytest.raises(TrainingError, match=r"training\.trackers: wandb does not start: no account"):
        curves(tmp_path, "wandb")
    curves(tmp_path)
