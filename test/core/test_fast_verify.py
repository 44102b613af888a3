"""The gate at configure.

- a fast path that agrees is accepted with its numbers; one that is off by more, fails, or answers
  NaN is refused;
- a session is opened on the path that was verified; a quantised model that was accepted is the only
  one left;
- what compiled code or graphs spoil is tried without them;
- answers that do not follow the images are refused; half precision is judged against float32;
- the tolerance follows precision and quantisation; no observation is an error of the caller.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from robovlms_ros.config.policy import PolicyConfig
from robovlms_ros.inference.optimized import shared_stages
from robovlms_ros.inference.optimized.options import FastPathOptions
from robovlms_ros.inference.optimized.verification import (
    EXACT,
    FP8,
    Tolerance,
    frames_to_verify,
    open_session,
    tolerance_of,
    verify_fast_path,
)
from robovlms_ros.inference.session import PolicySession

_spec = importlib.util.spec_from_file_location(
    "fast_paths", Path(__file__).parent / "fast_paths.py"
)
assert _spec is not None and _spec.loader is not None
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

MakeConfig = Callable[..., PolicyConfig]
FRAMES = [helpers.frame(i) for i in range(4)]


def test_accepted(make_config: MakeConfig, caplog: pytest.LogCaptureFixture) -> None:
    policy = helpers.lively(make_config())
    with caplog.at_level("INFO"):
        judged = verify_fast_path(policy, FRAMES, FastPathOptions())
    assert judged.accepted and judged.cosine > 0.99999 and judged.max_difference < 1e-5
    assert "fast path agrees with the plain one: cosine" in caplog.text


@pytest.mark.parametrize("family", ["paligemma", "flamingo-mpt"])
def test_an_open_session_is_verified_and_keeps_one_set_of_weights(make_config: MakeConfig, family: str) -> None:
    backbone, vlm = helpers.FAMILIES[family]
    policy = helpers.lively(make_config(backbone, vlm=vlm))
    assert open_session(policy, "off", FRAMES).path == "plain"
    assert "cosine 1.0" in open_session(policy, "auto", FRAMES).path_reason
    tower, before = (
        policy.vlm.text_tower,
        PolicySession(policy, fast=FastPathOptions(quantize="fp8")),
    )
    count = sum(p.numel() for p in tower.parameters())
    session = open_session(policy, "fp8", FRAMES)
    assert session.path == "fast" and sum(p.numel() for p in tower.parameters()) < 0.7 * count
    plain = PolicySession(policy)
    for observation in FRAMES:
        for one in (before, session, plain):
            one.predict_action_chunk(observation)
        np.testing.assert_allclose(session.normalised, before.normalised, atol=1e-6)
        np.testing.assert_allclose(session.normalised, plain.normalised, atol=1e-5)


def break_with(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    run = shared_stages.Shared.read
    monkeypatch.setattr(shared_stages.Shared, "read", lambda self, *args: change(run(self, *args)))


@pytest.mark.parametrize("change", ["scaled", "nan", "fails"])
def test_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog, change: str
) -> None:
    def fail(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    changes = {"scaled": lambda x: x * -1.2, "nan": lambda x: x * float("nan"), "fails": fail}
    break_with(monkeypatch, changes[change])
    judged = verify_fast_path(helpers.lively(make_config()), FRAMES, FastPathOptions())
    assert not judged.accepted and "the plain path runs" in caplog.text
    assert "allowed" in judged.reason if change == "scaled" else "failed" in judged.reason, judged.reason


def test_one_step_down_at_a_time(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: object, **kwargs: object) -> None:
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(torch, "compile", no_compiler)
    session = open_session(helpers.lively(make_config()), "max", FRAMES)
    assert session.path == "fast" and session.fast == FastPathOptions()
    assert (
        "refused with compile: the fast path failed: RuntimeError: no C++ compiler here"
        in session.path_reason
    )


def test_tolerances(make_config: MakeConfig) -> None:
    policy = helpers.lively(make_config())
    assert tolerance_of(policy, FastPathOptions()) == EXACT["float32"]
    assert tolerance_of(policy, FastPathOptions(quantize="fp8")) == FP8
    assert tolerance_of(policy.to(torch.bfloat16), FastPathOptions()) == EXACT["bfloat16"]
    with pytest.raises(ValueError, match="at least one observation"):
        verify_fast_path(policy, [], FastPathOptions())


def test_answers_that_do_not_follow_the_images_are_refused(make_config, monkeypatch) -> None:
    """An empty graph returns its first answer forever: within every tolerance where answers vary
    little."""
    first: list[torch.Tensor] = []

    def stale(x: torch.Tensor) -> torch.Tensor:
        first.append(x)
        return first[0] if first[0].shape == x.shape else x

    break_with(monkeypatch, stale)
    policy = helpers.lively(make_config(action_head={"type": "fc"}, model={"history_length": 1}))
    judged = verify_fast_path(policy, FRAMES, FastPathOptions(), Tolerance(-1.0, 10.0))
    assert not judged.accepted
    assert "do not follow the images" in judged.reason


def test_half_precision_is_judged_by_its_error_against_float32(make_config, monkeypatch) -> None:
    policy = helpers.lively(make_config()).to(torch.bfloat16)
    judged = verify_fast_path(policy, FRAMES, FastPathOptions())
    assert judged.accepted, judged.reason
    assert "error against float32" in judged.reason
    break_with(monkeypatch, lambda x: x * 1.2)
    judged = verify_fast_path(policy, FRAMES, FastPathOptions())
    assert not judged.accepted, judged.reason


@pytest.mark.parametrize(
    ("window", "device", "count"), [(16, "cuda", 19), (1, "cuda", 4), (16, "cpu", 5)]
)
def test_a_window_fills_and_slides_on_a_gpu(window: int, device: str, count: int) -> None:
    assert frames_to_verify(window, device) == count
