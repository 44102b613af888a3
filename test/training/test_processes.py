"""Two processes train what one would: of batch 2 each they step like one of batch 4, as copies and sharded (FSDP 2);
one does not go on where two stopped."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from robovlms_ros.config import config_to_mapping
from robovlms_ros.policy.checkpoint import build_policy
from robovlms_ros.training.batches import TrainingError
from robovlms_ros.training.curves import read_rows
from robovlms_ros.training.engine import fit

CHILD = """
import importlib.util
from pathlib import Path
import torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("helpers", {helpers!r})
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)
from robovlms_ros.config import load_config
from robovlms_ros.policy.checkpoint import build_policy
from robovlms_ros.training.engine import fit

config = load_config({config!r})
windows = helpers.SyntheticWindows(config, length=4)
for item in windows.items:
    item["mask"][:] = True
fit(build_policy(config, seed=3), windows, windows, config, Path({folder!r}))
"""
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP",
           "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "false"}


def two_processes(config, folder, tmp_path, environment):
    path, code = tmp_path / "train.yaml", tmp_path / "child.py"
    path.write_text(yaml.safe_dump(config_to_mapping(config)))
    helpers = str(Path(__file__).with_name("conftest.py"))
    code.write_text(textwrap.dedent(CHILD).format(helpers=helpers, config=str(path), folder=str(folder)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", str(code)]
    inherited = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ACCELERATE_USE_CPU": "true", **environment}
    child = subprocess.run(command, capture_output=True, text=True, env=inherited, check=False)
    assert child.returncode == 0, child.stderr[-6000:]


@pytest.mark.parametrize("environment", [{}, SHARDED], ids=["copies", "sharded"])
def test_two_processes_step_like_one(make_training_config, make_windows, tmp_path, environment):
    one, two = (make_training_config(training={"batch_size": size, "epochs": 2}) for size in (4, 2))
    windows = make_windows(one, length=4)
    for item in windows.items:
        item["mask"][:] = True
    fit(build_policy(one, seed=3), windows, windows, one, tmp_path / "one")
    two_processes(two, tmp_path / "two", tmp_path, environment)
    for name in ("curve.csv", "validation.csv"):
        alone, together = (read_rows(tmp_path / folder / name) for folder in ("one", "two"))
        assert len(alone) == len(together) > 0
        for a, b in zip(alone, together, strict=True):
            assert float(b["loss"]) == pytest.approx(float(a["loss"]), abs=1e-4)
            assert a["step"] == b["step"]
    a, b = (load_file(tmp_path / folder / "last" / "model.safetensors") for folder in ("one", "two"))
    assert a.keys() == b.keys() and all(a[k].shape == b[k].shape for k in a)
    with pytest.raises(TrainingError, match="processes: 2 then, 1 now"):
        fit(build_policy(two, seed=3), windows, windows, two, tmp_path / "two")
