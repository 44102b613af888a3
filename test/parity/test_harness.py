"""The harness itself: what it cannot check fails, and a checkpoint's own JSON is no case.

- a difference is judged relative to max(1, largest |value|), and a tolerance of 0 permits none;
- recorded latents of the first camera alone are compared with that camera's.
"""

from pathlib import Path

import parity_heads
import parity_utils
import parity_vla
import parity_wrapper
import pytest
import torch
from parity_case import close, is_case


@pytest.mark.parametrize(
    "check",
    [
        lambda: parity_heads.check({"novel": 1}),
        lambda: parity_utils.check({"novel": 1}),
        lambda: parity_vla.check({"config": {}, "novel": 1}, Path("x.json")),
        lambda: parity_wrapper.check({"novel": {"x": 1}}, Path("x.json")),
        lambda: parity_wrapper.check({"novel": 1}, Path("x.json")),
    ],
)
def test_unknown_kinds_fail(check):
    with pytest.raises(AssertionError, match="unknown kind"):
        check()


def test_differences_fail():
    with pytest.raises(AssertionError, match="off by"):
        close(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.1]), 1e-5)
    with pytest.raises(AssertionError, match="off by"):
        close(torch.tensor([0.0]), torch.tensor([2e-5]), 1e-5)
    with pytest.raises(AssertionError, match="shape"):
        close(torch.zeros(2), torch.zeros(3))
    with pytest.raises(AssertionError):
        close(torch.tensor([float("nan")]), torch.zeros(1))


def test_tolerances_grow_with_the_value():
    close(torch.tensor([300.0]), torch.tensor([300.002]), 1e-5)
    with pytest.raises(AssertionError, match="off by"):
        close(torch.tensor([300.0]), torch.tensor([300.004]), 1e-5)
    with pytest.raises(AssertionError, match="off by"):
        close(torch.tensor([300, 0]), torch.tensor([301, 0]), 0.0)
    close(torch.tensor([6.0, 0.0]), torch.tensor([6.0, 5e-5]), 1e-5)
    with pytest.raises(AssertionError, match="off by"):
        close(torch.tensor([6.0, 0.0]), torch.tensor([6.0, 7e-5]), 1e-5)


def test_latents_of_the_first_camera_alone_are_compared_there():
    first = torch.randn(6, 4, 8)
    second = torch.randn(6, 4, 8)
    parity_vla.check_latents([first, second], first.unflatten(0, (2, 3)), 0.0)
    both = torch.cat((first, second), dim=1)
    parity_vla.check_latents([first, second], both.unflatten(0, (2, 3)), 0.0)
    with pytest.raises(AssertionError, match="visual latents"):
        parity_vla.check_latents([first, second], second.unflatten(0, (2, 3)), 0.0)


def test_the_configuration_of_a_checkpoint_is_not_a_case(tmp_path):
    for name in ("tiny.json", "tiny_ckpt_fp16.pt", "tiny_run.json"):
        (tmp_path / name).touch()
    assert [path.name for path in sorted(tmp_path.glob("*.json")) if is_case(path)] == ["tiny_run.json"]
