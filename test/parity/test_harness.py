"""The harness itself: what it cannot check fails, and a checkpoint's own JSON is no case."""

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
    with pytest.raises(AssertionError, match="shape"):
        close(torch.zeros(2), torch.zeros(3))
    with pytest.raises(AssertionError):
        close(torch.tensor([float("nan")]), torch.zeros(1))


def test_the_configuration_of_a_checkpoint_is_not_a_case(tmp_path):
    for name in ("tiny.json", "tiny_ckpt_fp16.pt", "tiny_run.json"):
        (tmp_path / name).touch()
    assert [path.name for path in sorted(tmp_path.glob("*.json")) if is_case(path)] == ["tiny_run.json"]
