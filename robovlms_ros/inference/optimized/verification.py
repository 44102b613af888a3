"""The gate: the fast path answers warm-up frames beside the plain one, and runs only where it
agrees."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from robovlms_ros.core.types import Observation
from robovlms_ros.inference.optimized.options import (
    FastPathOptions,
    options_for,
    steps_down,
)
from robovlms_ros.inference.optimized.shared_stages import release_stages
from robovlms_ros.inference.session import PolicySession
from robovlms_ros.models.vla_policy import VLAPolicy

log = logging.getLogger(__name__)


LARGEST_CPU_COPY = 2_000_000_000
"""Bytes of a float32 copy that is made on a CPU."""

NOISE = 1.5
"""Allowed error of a half-precision fast path against float32, in units of the plain path's own
error."""

FLOOR = {"float32": 0.0, "bfloat16": 2e-3, "float16": 5e-4}
"""Error against float32 that is accepted in any case, on the head's scale."""

VARIATION = 0.5
"""Smallest variation of the fast path's answers over different frames, as a part of the plain
path's."""

RECORDED_PROMPT = 64
"""Tokens of the longest prompt for which graphs are recorded at configure."""

SMALL_VECTOR = 0.1
"""Root mean square of answers below which their direction is rounding: the cosine is not judged."""


@dataclass(frozen=True)
class Tolerance:
    """cosine: at least, between the two paths' normalised answers. difference: at most, between any
    two of them, on the head's scale (arm in -1..1, the gripper's probability)."""

    cosine: float
    difference: float


EXACT = {
    "float32": Tolerance(0.99999, 1e-4),
    "bfloat16": Tolerance(0.999, 0.03),
    "float16": Tolerance(0.999, 0.01),
}
FP8 = Tolerance(0.995, 0.1)


@dataclass(frozen=True)
class Verification:
    """cosine, max_difference: see Tolerance, over all answers. accepted: True if the fast path may
    run. reason: the numbers and what was allowed."""

    cosine: float
    max_difference: float
    accepted: bool
    reason: str


def tolerance_of(policy: VLAPolicy, options: FastPathOptions) -> Tolerance:
    """Tolerance for a policy's precision and the options' quantisation."""
    if options.quantize != "none":
        return FP8
    return EXACT[str(policy.dtype).removeprefix("torch.")]


class Verifier:
    """The plain path's answers to `observations`, with which each fast path is compared.

    In half precision they are computed in float32 as well, where the copy fits into memory: a fast
    path is then judged by its error against float32, relative to the plain path's own. Without the
    copy, and for quantised weights, by its difference from the plain path (`Tolerance`).
    Raises ValueError without observations, ObservationError where the plain path does.
    """

    def __init__(self, policy: VLAPolicy, observations: Sequence[Observation]) -> None:
        if not observations:
            raise ValueError("verify_fast_path: give at least one observation.")
        self._policy = policy
        self._observations = observations
        self._plain = _answers(policy, observations, None)
        self._reference: NDArray[np.float64] | None = None
        if policy.dtype != torch.float32 and _fits_twice(policy):
            self._reference = _answers(copy.deepcopy(policy).float(), observations, None)

    def verify(self, options: FastPathOptions, tolerance: Tolerance | None = None) -> Verification:
        """The judgement of `options`. Never raises for a fault of the fast path: that is a
        refusal."""
        try:
            fast = _answers(self._policy, self._observations, options)
        # Whatever a compiler, a driver or another library's new version comes up with.
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else ""
            reason = f"the fast path failed: {type(error).__name__}: {text}"
            log.warning("%s; the plain path runs.", reason)
            return Verification(float("nan"), float("inf"), False, reason)
        judged = self._judge(fast, options, tolerance)
        if judged.accepted:
            log.info("fast path agrees with the plain one: %s", judged.reason)
        else:
            log.warning("fast path refused: %s; the plain path runs.", judged.reason)
        return judged

    def _judge(
        self, fast: NDArray[np.float64], options: FastPathOptions, tolerance: Tolerance | None
    ) -> Verification:
        plain = self._plain
        difference = float(np.abs(plain - fast).max())
        norms = float(np.linalg.norm(plain) * np.linalg.norm(fast))
        cosine = float((plain * fast).sum() / norms) if norms > 0 else 1.0
        numbers = f"cosine {cosine:.6f}, largest difference {difference:.2g}"
        spread = float(np.ptp(plain, axis=0).max())
        fast_spread = float(np.ptp(fast, axis=0).max())
        # Conditions are written so that a value that is not a number refuses.
        if spread > 0 and not fast_spread >= VARIATION * spread:
            reason = (
                f"{numbers}; the answers do not follow the images: they vary by {fast_spread:.2g} "
                f"over the frames, the plain path's by {spread:.2g}"
            )
            return Verification(cosine, difference, False, reason)
        if self._reference is not None and tolerance is None and options.quantize == "none":
            own = float(np.abs(plain - self._reference).max())
            error = float(np.abs(fast - self._reference).max())
            allowed = max(NOISE * own, own + FLOOR[str(self._policy.dtype).removeprefix("torch.")])
            reason = (
                f"{numbers}; error against float32 {error:.2g} (allowed: {allowed:.2g}, "
                f"the plain path's own is {own:.2g})"
            )
            return Verification(cosine, difference, bool(error <= allowed), reason)
        limits = tolerance or tolerance_of(self._policy, options)
        small = float(np.sqrt(np.mean(plain**2))) < SMALL_VECTOR
        accepted = difference <= limits.difference and (small or cosine >= limits.cosine)
        bounds = f"cosine {limits.cosine:g}, difference {limits.difference:g}"
        return Verification(cosine, difference, bool(accepted), f"{numbers} (allowed: {bounds})")


def verify_fast_path(
    policy: VLAPolicy,
    observations: Sequence[Observation],
    options: FastPathOptions,
    tolerance: Tolerance | None = None,
) -> Verification:
    """Both paths over `observations`, one session each, in order. Never raises for what the fast
    path does wrong: that is a refusal. Raises ObservationError where the plain path does,
    ValueError without observations."""
    return Verifier(policy, observations).verify(options, tolerance)


def open_session(
    policy: VLAPolicy,
    mode: str,
    observations: Sequence[Observation],
    now: Callable[[], int] | None = None,
) -> PolicySession:
    """A session on the fast path that `mode` means (`options_for`), if it agrees on `observations`;
    without compiled code, then without CUDA graphs, then on the plain path where it does not.

    Graphs are recorded for prompts of up to RECORDED_PROMPT tokens; a longer one runs without. Its
    `path_reason` names refusals and the reason. An accepted quantised model takes the place of the
    policy's own. Raises FastPathError for an unknown mode."""
    wanted = options_for(mode, policy.device.type)
    if wanted is None:
        return PolicySession(policy, now)
    refusals = []
    verifier = Verifier(policy, observations)
    for options in steps_down(wanted):
        judged = verifier.verify(options)
        if judged.accepted:
            session = PolicySession(policy, now, options)
            session.release_reference_weights()
            break
        refusals.append(f"refused with {machine_parts(options)}: {judged.reason}")
        # Quantised weights stay for the next step down, which has the same.
        release_stages(policy, weights=options.quantize == "none")
    else:
        release_stages(policy)
        session = PolicySession(policy, now)
    lengths = session.record_prompts(observations[-1], RECORDED_PROMPT)
    if lengths:
        log.info("recorded for prompts of %d to %d tokens", lengths[0], lengths[-1])
    session.path_note = "; ".join([*([judged.reason] if judged.accepted else []), *refusals])
    log.info("session on the %s path: %s", session.path, session.path_reason)
    return session


def frames_to_verify(window: int, device_type: str) -> int:
    """Number of warm-up frames: a window of `window` frames fills and slides on a GPU, where graphs
    are recorded for both; on a CPU, where a frame takes long, five."""
    return window + 3 if device_type == "cuda" else 5


def machine_parts(options: FastPathOptions) -> str:
    """Description of the machine-dependent options."""
    names = [name for name in ("compile", "cuda_graphs") if getattr(options, name)]
    return " and ".join(names) or "neither compiled code nor graphs"


def _fits_twice(policy: VLAPolicy) -> bool:
    """True if a float32 copy fits into the device's free memory with a third of it to spare."""
    needed = 4 * sum(parameter.numel() for parameter in policy.parameters())
    if policy.device.type != "cuda":
        return needed < LARGEST_CPU_COPY
    free, _ = torch.cuda.mem_get_info(policy.device)
    return 1.5 * needed < free


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
