"""Head outputs to metres, radians and a gripper opening, and exactly back for training.

The pipeline is built from the configuration's `action` block. Decoding: inverse mu-law,
un-normalisations (the one next to the head first; two of them where a reference run un-normalises
twice), units. Encoding runs the mirrors backwards. The gripper is decoded separately: probability,
threshold, rule (those of the CALVIN and SimplerEnv runs), polarity. Rules with a state (sticky,
late close) are functions of a state that is passed in and out. The gripper's column takes no part
in the statistics.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robovlms_ros.config.action import ActionConfig, GripperConfig, NormalizationConfig
from robovlms_ros.core.types import Array, RoboVLMsError


@dataclass(frozen=True)
class GripperState:
    """State of a rule between executed steps; a fresh one starts an episode.

    previous: the last class. held: the class that acts. pulse: sticky's change in progress, +1
        where class 1 became 0,
    -1 the other way, 0 none. repeats: steps of that pulse so far. streak: how often class 1 came in
    a row.
    """

    previous: int | None = None
    held: int | None = None
    pulse: int = 0
    repeats: int = 0
    streak: int = 0


def gripper_step(config: GripperConfig, label: int, state: GripperState) -> tuple[int, GripperState]:
    """The class that acts in this step, and the state after it. `label` is the head's decision, 0
    or 1."""
    if config.rule == "sticky":
        after = _sticky(config.sticky_steps, label, state)
    elif config.rule == "late_close":
        streak = state.streak + 1 if label else 0
        after = GripperState(label, int(streak >= config.late_close_steps), streak=streak)
    else:
        after = GripperState(label, label)
    assert after.held is not None
    return after.held, after


def _sticky(steps: int, label: int, state: GripperState) -> GripperState:
    """A change is emitted for `steps` steps, during which another change goes unseen (the Google
    robot's rule)."""
    pulse, repeats = (0, 0) if state.repeats >= steps else (state.pulse, state.repeats)
    if pulse == 0 and state.previous is not None:
        pulse = state.previous - label
    held = state.held if state.held is not None else label
    if pulse:
        held = 0 if pulse > 0 else 1
        repeats += 1
    return replace(state, previous=label, held=held, pulse=pulse, repeats=repeats)


STD_FLOOR = 1e-6


class ActionError(RoboVLMsError, ValueError):
    """Numbers that the action pipeline cannot decode or encode."""


@dataclass(frozen=True)
class MuLaw:
    """Companding: encode sign(x) log(1 + mu |x|) / log(1 + mu)."""

    mu: float

    def decode(self, values: Array) -> Array:
        return np.sign(values) * np.expm1(np.abs(values) * np.log1p(self.mu)) / self.mu

    def encode(self, values: Array) -> Array:
        return np.sign(values) * np.log1p(self.mu * np.abs(values)) / np.log1p(self.mu)


@dataclass(frozen=True)
class Scale:
    """decode x scale + offset; encode clips to [low, high] first where they are given. Each (A,) or
    a number."""

    scale: Array
    offset: Array
    low: Array | None = None
    high: Array | None = None

    def decode(self, values: Array) -> Array:
        return values * self.scale + self.offset

    def encode(self, values: Array) -> Array:
        if self.low is not None and self.high is not None:
            values = np.clip(values, self.low, self.high)
        return (values - self.offset) / self.scale


Step = MuLaw | Scale
"""One reversible step on the arm part (..., A) of actions."""


def normalization_step(config: NormalizationConfig, dims: int) -> Scale:
    """The step of one normalisation for the first `dims` numbers of an action.

    min_max and quantile: low..high to -1..1. mean_std: (a - mean) / (std + 1e-6), as RoboVLMs
        regularises.
    """

    def per_dimension(numbers: tuple[float, ...] | tuple[bool, ...]) -> Array:
        return np.broadcast_to(np.asarray(numbers, dtype=np.float64)[:dims], (dims,))

    keep = per_dimension(config.mask or (True,)) > 0
    if config.method == "mean_std":
        scale = per_dimension(config.std) + STD_FLOOR
        offset = per_dimension(config.mean)
        return Scale(np.where(keep, scale, 1.0), np.where(keep, offset, 0.0))
    low = per_dimension(config.low)
    high = per_dimension(config.high)
    scale = np.where(keep, (high - low) / 2.0, 1.0)
    offset = np.where(keep, (high + low) / 2.0, 0.0)
    if not config.clip:
        return Scale(scale, offset)
    return Scale(scale, offset, np.where(keep, low, -np.inf), np.where(keep, high, np.inf))


def build_steps(config: ActionConfig) -> tuple[Step, ...]:
    """The arm's steps in decoding order."""
    dims = len(config.names) - 1
    steps: list[Step] = [] if config.mu_law is None else [MuLaw(config.mu_law)]
    steps += [normalization_step(norm, dims) for norm in config.normalization]
    units = config.units
    if config.space.startswith("eef"):
        assert units.translation is not None and units.rotation is not None
        factors = np.repeat([units.translation, units.rotation], 3)
    else:
        assert units.joint is not None
        factors = np.full(dims, units.joint)
    return (*steps, Scale(factors, np.zeros(dims)))


@dataclass(frozen=True)
class DecodedActions:
    """values: (n, A + 1) float64, SI units, the last column the gripper's opening 0..1.

    gripper_states: the rule's state after each of the n steps; the next chunk starts from the one
    after the last step that was executed.
    """

    values: Array
    gripper_states: tuple[GripperState, ...]


class ActionPipeline:
    """Both directions between a head's normalised numbers and `ActionChunk.values`. Holds no
    state."""

    def __init__(self, config: ActionConfig):
        self.config = config
        self.dims = len(config.names) - 1
        self.steps = build_steps(config)

    def decode(self, arm: ArrayLike, gripper_logits: ArrayLike, state: GripperState | None = None) -> DecodedActions:
        """arm (n, A) and gripper_logits (n,) or (n, 1) of one chunk to SI values; `state` is None
        in a fresh episode.

        A discrete head's gripper value in -1..1 serves as a logit. Raises ActionError when a number
        is not finite, naming step and dimension, or when the shape is another.
        """
        values = np.asarray(arm, dtype=np.float64)
        logits = np.asarray(gripper_logits, dtype=np.float64).reshape(-1)
        if values.ndim != 2 or values.shape[1] != self.dims or len(logits) != len(values):
            raise ActionError(
                f"decode: arm {values.shape} and gripper {logits.shape}: must be (n, {self.dims}) and (n,) for the "
                f"action names {', '.join(self.config.names)}."
            )
        self._require_finite(np.column_stack([values, logits]), "the policy's output")
        for step in self.steps:
            values = step.decode(values)
        self._require_finite(values, "the decoded action")
        labels = self.gripper_labels(logits)
        state = state or GripperState()
        openings = []
        states = []
        for label in labels:
            acting, state = gripper_step(self.config.gripper, int(label), state)
            openings.append(float(acting == self.config.gripper.open_value))
            states.append(state)
        return DecodedActions(np.column_stack([values, openings]), tuple(states))

    def gripper_labels(self, logits: ArrayLike) -> NDArray[np.int64]:
        """1 where the probability of the logit is above the threshold, else 0."""
        threshold = self.config.gripper.threshold
        return (np.asarray(logits, dtype=np.float64) > np.log(threshold / (1.0 - threshold))).astype(np.int64)

    def encode(self, values: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
        """values (..., A + 1) as in an ActionChunk to the head's targets: arm (..., A), gripper
        labels (...,) 0 or 1.

        An opening above one half counts as open. Raises ActionError for a number that is not
        finite.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim == 0 or values.shape[-1] != self.dims + 1:
            raise ActionError(
                f"encode: actions of shape {values.shape}: the last axis must hold {self.dims + 1} numbers "
                f"({', '.join(self.config.names)})."
            )
        self._require_finite(values.reshape(-1, self.dims + 1), "the action to encode")
        arm = values[..., :-1]
        for step in reversed(self.steps):
            arm = step.encode(arm)
        opened = values[..., -1] > 0.5
        value = self.config.gripper.open_value
        return arm, np.where(opened, value, 1 - value).astype(np.int64)

    def _require_finite(self, values: Array, what: str) -> None:
        faults = np.argwhere(~np.isfinite(values))
        if len(faults):
            step, dim = faults[0]
            raise ActionError(
                f"{what} holds {len(faults)} numbers that are not finite, the first at step {step}, "
                f"dimension '{self.config.names[dim]}'. Check the checkpoint's weights and the camera's images."
            )
