"""A run that is killed goes on to the same losses.

- SIGKILL in the middle of an epoch, with a worker, dropout and augmentation: the losses of the rest, and the weights,
  equal those of a run that was not killed; the curve holds every step once.
- With adapters, and stopped at an epoch's end; more epochs go on from where it stopped.
- Another configuration, other data, or a file of another kind are refused by name; nothing in a state can run code.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.training.engine import state
from robovlms_ros.training.engine.batches import TrainingError
from robovlms_ros.training.engine.curves import read_rows
from robovlms_ros.training.engine.fit import fit

CHILD = """
import importlib.util, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("helpers", {helpers!r})
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
from robovlms_ros.config.policy import load_config
from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.training.engine.fit import fit

config = load_config({config!r})

def on_step(step, values):
    if step == 8:
        os.kill(os.getpid(), signal.SIGKILL)

fit(build_policy(config, seed=1), helpers.SyntheticWindows(config), None, config, Path({folder!r}), on_step)
"""


def run(config, windows, folder, seed=1):
    seen = []
    policy = build_policy(config, seed=seed)
    fit(policy, windows, None, config, folder, lambda step, values: seen.append(values["loss"]))
    return policy, seen


def killed_run(config, folder, tmp_path):
    import yaml

    from robovlms_ros.config.policy import config_to_mapping

    place = tmp_path / "train.yaml"
    place.write_text(yaml.safe_dump(config_to_mapping(config)))
    helpers = str(Path(__file__).parents[1] / "conftest.py")
    code = textwrap.dedent(CHILD).format(helpers=helpers, config=str(place), folder=str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == -9, child.stderr[-2000:]


def test_killed_run_goes_on_to_the_same_losses(make_training_config, make_windows, tmp_path):
    # Kosmos has dropout; 24 windows are 6 batches an epoch, so that step 8 lies in the second epoch.
    training = {"epochs": 2, "save_every": 3, "workers": 1, "augmentation": {"shift": 0.1, "brightness": 0.3},
                "schedule": "cosine", "warmup_ratio": 0.5}
    config = make_training_config("kosmos", training=training)
    windows = make_windows(config)
    whole, straight = run(config, windows, tmp_path / "whole")
    assert len(straight) == 12
    killed_run(config, tmp_path / "killed", tmp_path)
    assert state.load_state(tmp_path / "killed")[1].step == 6
    assert len(read_rows(tmp_path / "killed" / "curve.csv")) == 8
    resumed, rest = run(config, windows, tmp_path / "killed")
    assert rest == straight[6:]
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    curves = [read_rows(tmp_path / name / "curve.csv") for name in ("whole", "killed")]
    assert curves[0] == curves[1]


def test_stops_in_the_middle_of_an_epoch(make_training_config, make_windows, tmp_path):
    def config(steps):
        lora = {"rank": 2, "dropout": 0.2}
        return make_training_config(
            training={"epochs": 2, "lora": lora, "max_steps": steps, "accumulation": 2, "save_every": 2}
        )

    windows = make_windows(config(None))
    whole, straight = run(config(None), windows, tmp_path / "whole")
    seen = []
    for steps in (2, 3, None):
        policy, part = run(config(steps), windows, tmp_path / "parts")
        seen += part
    assert seen == straight and len(seen) == 6
    for a, b in zip(whole.parameters(), policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(read_rows(tmp_path / "parts" / "curve.csv")) == 6


def test_another_run_is_refused(make_training_config, make_windows, tmp_path):
    config = make_training_config(training={"max_steps": 1})
    run(config, make_windows(config), tmp_path)
    other = make_training_config(training={"max_steps": 2, "learning_rate": 5e-4})
    with pytest.raises(TrainingError, match=r"another set-up \(training.learning_rate: 0.001 then, 0.0005 now\)"):
        run(other, make_windows(other), tmp_path)
    more = make_training_config(training={"max_steps": 2})
    with pytest.raises(TrainingError, match="windows: 24 then, 30 now"):
        run(more, make_windows(more, episodes=5), tmp_path)
    assert len(run(more, make_windows(more), tmp_path)[1]) == 1


def test_states_hold_no_python_objects(make_training_config, make_windows, tmp_path):
    config = make_training_config(training={"max_steps": 1})
    run(config, make_windows(config), tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size:
            assert not path.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"PK")), path
    (tmp_path / state.STATE).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(TrainingError, match="not the state of a training run"):
        run(config, make_windows(config), tmp_path)
