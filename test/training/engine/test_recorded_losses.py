"""Losses of a training step, against the recorded ones (within 1e-5 x max(1, |loss|)).

- Whole tiny models with every recorded head and history: Huber plus the weighted cross entropy, masked.
- Action tokens: cross entropy.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "parity"))

from parity_case import is_case, load_case
from parity_vla import images_of, policy_of

from robovlms_ros.training.engine.objective import Objective

FOLDER = Path(os.environ.get("ROBOVLMS_PARITY_DIR", Path(__file__).resolve().parents[4] / "shared" / "parity")) / "vla"
CASES = sorted(path for path in FOLDER.glob("*.json") if is_case(path)) if FOLDER.is_dir() else []


def losses():
    """(stem, case) of the recorded cases that hold a loss."""
    for path in CASES:
        case = load_case(path)
        if "loss" in case or "train" in case:
            yield path.stem, case


@pytest.mark.parity
@pytest.mark.skipif(not CASES, reason=f"no recorded cases: {FOLDER} does not exist (set ROBOVLMS_PARITY_DIR)")
def test_losses_equal_the_recorded_ones():
    checked = []
    for name, case in losses():
        policy = policy_of(case, case.get("attn_impl", "eager"))
        objective = Objective(policy).eval()
        with torch.no_grad():
            if "train" in case:
                record = case["train"]
                batch = {"images": {policy.config.cameras[0]: record["vision_x"]}, "input_ids": record["ids"],
                         "attention_mask": record["mask"], "labels": record["labels"],
                         "mask": torch.zeros(*record["ids"].shape[:2], policy.head.horizon, dtype=torch.bool)}
                batch["mask"][..., 0] = True
                expected = record["out"]["loss_arm_act"]
            else:
                record, inputs = case["loss"], case.get("window", case)["inputs"]
                batch = {"images": images_of(policy, inputs), "input_ids": inputs["lang_x"],
                         "attention_mask": inputs["attention_mask"], "mask": record["mask"].bool(),
                         "arm": record["arm"], "gripper": record["gripper"]}
                out = record["out"]
                expected = out["loss_arm_act"] + 0.01 * out["loss_gripper_act"]
            if "arm" in batch and batch["arm"].ndim == 3:
                batch |= {k: batch[k][:, None] for k in ("arm", "gripper", "mask")}
            loss = objective(batch)["loss"]
        size = max(1.0, abs(float(expected)))
        assert float(loss) == pytest.approx(float(expected), rel=0.0, abs=1e-5 * size), name
        checked.append(name)
    if not checked:
        pytest.skip(f"no case in {FOLDER} holds a loss")
