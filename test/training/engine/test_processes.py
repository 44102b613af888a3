"""Two processes.

- Of batch 2 each they step like one of batch 4; one does not go on where two stopped.
- Weights and moments that are sharded over them (torch's FSDP 2) are saved whole, and put back: the next step of a
  restored copy equals that of the original and of one process.
"""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from robovlms_ros.checkpoints.checkpoint import build_policy
from robovlms_ros.config.policy import config_to_mapping
from robovlms_ros.training.engine.batches import TrainingError
from robovlms_ros.training.engine.curves import read_rows
from robovlms_ros.training.engine.fit import fit

COPIES = """
import importlib.util
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
windows = helpers.SyntheticWindows(config, length=4)
for item in windows.items:
    item["mask"][:] = True
fit(build_policy(config, seed=3), windows, windows, config, Path({folder!r}))
"""

SHARDED = """
from pathlib import Path
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from robovlms_ros.training.engine import state

torch.set_num_threads(1)
mesh = init_device_mesh("cpu", (2,))  # on the processes' own group

def make(shard):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    model[0].bias.requires_grad_(False)
    if shard:
        fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

def step(model, adam, k):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(k))
    adam.zero_grad()
    model(x).square().mean().backward()
    adam.step()

alone, sharded, restored = make(False), make(True), make(True)
assert all(isinstance(p, DTensor) for p in sharded[0].parameters())
for k in range(3):
    step(*alone, k)
    step(*sharded, k)
kept = state.collect(*sharded)
assert "weight.0.bias" not in kept and "exp_avg.0.weight" in kept
state.restore(*restored, kept, "here")
for pair in (alone, sharded, restored):
    step(*pair, 3)
for pair in (sharded, restored):
    for name, tensor in state.full_state(pair[0]).items():
        torch.testing.assert_close(tensor, alone[0].state_dict()[name], atol=1e-6, rtol=0)
torch.distributed.destroy_process_group()
"""


def launch(code, tmp_path):
    """Run `code` in two processes that know each other."""
    script = tmp_path / "child.py"
    script.write_text(code)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ACCELERATE_USE_CPU": "true"}
    child = subprocess.run([*command, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert child.returncode == 0, child.stderr[-6000:]


def test_two_processes(make_training_config, make_windows, tmp_path):
    one, two = (make_training_config(training={"batch_size": size, "epochs": 2}) for size in (4, 2))
    windows = make_windows(one, length=4)
    for item in windows.items:
        item["mask"][:] = True
    fit(build_policy(one, seed=3), windows, windows, one, tmp_path / "one")
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(config_to_mapping(two)))
    helpers = str(Path(__file__).parents[1] / "conftest.py")
    copies = textwrap.dedent(COPIES).format(helpers=helpers, config=str(path), folder=str(tmp_path / "two"))
    launch(copies + SHARDED, tmp_path)  # one after the other: beginning two processes costs more than what they do
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
