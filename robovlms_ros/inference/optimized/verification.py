"""The gate: the fast path answers warm-up frames beside the plain one, and runs only where it
agrees."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.types import Observation
from robovlms_ros.inference.optimized.options import (
    FastPathOptions,
    Quantization,
    options_for,
    steps_down,
)
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.vla_policy import VLAPolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tolerance:
    """cosine: at least, between the two paths' normalised answers. difference: at most, between any
    two of them, on the head's scale (arm in -1..1, the gripper's probability)."""

    cosine: float
    difference: float


EXACT = {"float32": Tolerance(0.99999, 1e-4), "bfloat16": Tolerance(0.999, 0.03), "float16": Tolerance(0.999, 0.01)}
QUANTIZED: dict[Quantization, Tolerance] = {
    "int8": Tolerance(0.999, 0.05),
    "fp8": Tolerance(0.995, 0.1),
    "int4": Tolerance(0.98, 0.25),
}


@dataclass(frozen=True)
class Verification:
    """cosine, max_difference: see Tolerance, over all answers. accepted: whether the fast path may
    run. reason: why."""

    cosine: float
    max_difference: float
    accepted: bool
    reason: str


def tolerance_of(policy: VLAPolicy, options: FastPathOptions) -> Tolerance:
    """Tolerance for a policy's precision and the options' quantisation."""
    if options.quantize != "none":
        return QUANTIZED[options.quantize]
    return EXACT[str(policy.dtype).removeprefix("torch.")]


def verify_fast_path(
    policy: VLAPolicy,
    observations: Sequence[Observation],
    options: FastPathOptions,
    tolerance: Tolerance | None = None,
) -> Verification:
    """Both paths over `observations`, one session each, in order. Never raises for what the fast
    path does wrong: that is a refusal. Raises ObservationError where the plain path does,
        ValueError without observations."""
    if not observations:
        raise ValueError("verify_fast_path: give at least one observation.")
    allowed = tolerance or tolerance_of(policy, options)
    plain = _answers(policy, observations, None)
    try:
        fast = _answers(policy, observations, options)
    # whatever a compiler, a driver or another library's new version comes up with
    except Exception as error:
        reason = f"the fast path failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        log.warning("%s; the plain path runs.", reason)
        return Verification(float("nan"), float("inf"), False, reason)
    return _judge(plain, fast, allowed)


def open_session(
    policy: VLAPolicy, mode: str, observations: Sequence[Observation], now: Callable[[], int] | None = None
) -> PolicySession:
    """A session on the fast path that `mode` means (`options_for`), if it agrees on `observations`;
    without compiled code, then without CUDA graphs, then on the plain path where it does not.

    Its `path_reason` names them and the reason. An accepted quantised model takes the place of the
    policy's own. Raises FastPathError for an unknown mode."""
    wanted = options_for(mode, policy.device.type)
    if wanted is None:
        return PolicySession(policy, now)
    refusals = []
    for options in steps_down(wanted):
        judged = verify_fast_path(policy, observations, options)
        if judged.accepted:
            session = PolicySession(policy, now, options)
            session.release_reference_weights()
            break
        refusals.append(f"refused with {machine_parts(options)}: {judged.reason}")
    else:
        session = PolicySession(policy, now)
    session.path_note = "; ".join([*([judged.reason] if judged.accepted else []), *refusals])
    log.info("session on the %s path: %s", session.path, session.path_reason)
    return session


def machine_parts(options: FastPathOptions) -> str:
    """Description of the machine-dependent options."""
    names = [name for name in ("compile", "cuda_graphs") if getattr(options, name)]
    return " and ".join(names) or "neither compiled code nor graphs"


def _judge(plain: NDArray[np.float64], fast: NDArray[np.float64], allowed: Tolerance) -> Verification:
    difference = float(np.abs(plain - fast).max())
    norms = float(np.linalg.norm(plain) * np.linalg.norm(fast))
    cosine = float((plain * fast).sum() / norms) if norms > 0 else 1.0
    numbers = f"cosine {cosine:.6f}, largest difference {difference:.2g}"
    # Written so that a value that is not a number refuses.
    accepted = cosine >= allowed.cosine and difference <= allowed.difference
    bounds = f"cosine {allowed.cosine:g}, difference {allowed.difference:g}"
    reason = f"{numbers} (allowed: {bounds})"
    if accepted:
        log.info("fast path agrees with the plain one: %s", reason)
    else:
        log.warning("fast path refused: %s; the plain path runs.", reason)
    return Verification(cosine, difference, bool(accepted), reason)


def _answers(
    policy: VLAPolicy, observations: Sequence[Observation], options: FastPathOptions | None
) -> NDArray[np.float64]:
    """(frames, n, A + 1) normalised answers: the arm, and the gripper's probability."""
    session = PolicySession(policy, fast=options)
    rows = []
    for observation in observations:
        session.predict_action_chunk(observation)
        rows.append(session.normalised)
    return np.stack(rows)
