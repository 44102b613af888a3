"""`robovlms calibrate`: scales for fp8 from recordings.

- every linear layer of the text model gets a scale, stored beside the weights and loaded with them;
- fp8 with these scales answers near the plain path, by emulation on a processor;
- scales of other weights are not used, a damaged file and a bag without images are refused.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from robovlms_ros.bench.policy.cases import SyntheticFrames
from robovlms_ros.checkpoints.checkpoint import load_policy
from robovlms_ros.checkpoints.fp8_scales import SCALES, read_scales
from robovlms_ros.checkpoints.weights import WEIGHTS, CheckpointError
from robovlms_ros.cli.main import main
from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.types import RobotState
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.optimized.quantization import Fp8Linear, quantizable, quantized_tower
from robovlms_ros.inference.optimized.verification import verify_fast_path


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(find_checkpoint("demo"), tmp_path / "checkpoint")


def test_calibrate(tools, checkpoint, tmp_path, capsys, caplog):
    bag = tools.write_bag(tmp_path / "bag", 2.0)
    arguments = [
        "calibrate",
        str(checkpoint),
        "--data",
        str(bag),
        "--robot",
        "panda",
        "--rate",
        "5",
    ]
    assert main(arguments) == 0
    assert "layers on" in capsys.readouterr().out
    policy = load_policy(checkpoint)
    tower = policy.vlm.text_tower
    layers = {name for name, module in tower.named_modules() if quantizable(module)}
    assert set(policy.fp8_scales) == layers and min(policy.fp8_scales.values()) > 0
    small = [
        m for m in quantized_tower(tower, policy.fp8_scales).modules() if isinstance(m, Fp8Linear)
    ]
    assert len(small) == len(layers) and all(layer.input_scale is not None for layer in small)

    frames = SyntheticFrames(policy.config.cameras, seed=3)
    home = RobotState(0, np.array([0, 0, 0, -1.6, 0, 1.9, 0.8]), np.zeros(7), np.eye(4), 1.0)
    observations = [
        replace(frames[i], instruction="lift the red cube", state=home) for i in range(3)
    ]
    judged = verify_fast_path(policy, observations, FastPathOptions(quantize="fp8"))
    assert judged.accepted and judged.max_difference > 0, judged.reason

    with (checkpoint / WEIGHTS).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert read_scales(checkpoint / WEIGHTS) == {}
    assert "was calibrated for other weights" in caplog.text


def test_a_damaged_file_is_refused(checkpoint):
    (checkpoint / SCALES).write_text(json.dumps({"format": 1, "largest_inputs": {"layer": -1}}))
    with pytest.raises(CheckpointError, match="Write it anew with `robovlms calibrate`"):
        read_scales(checkpoint / WEIGHTS)


def test_a_bag_without_images_is_refused(tools, checkpoint, tmp_path, capsys):
    with tools.BagWriter(tmp_path / "bag") as bag:
        bag.joints(tools.BEGIN_NS)
    assert (
        main(["calibrate", str(checkpoint), "--data", str(tmp_path / "bag"), "--robot", "panda"])
        == 1
    )
    assert "bag" in capsys.readouterr().err
    assert not (checkpoint / SCALES).exists()
