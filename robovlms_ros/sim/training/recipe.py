"""The `recipe` block and the stages of a plan: settings of the training engine."""

from dataclasses import dataclass
from typing import Any

from robovlms_ros.config.training import AugmentConfig, TrainingConfig
from robovlms_ros.core.schema import require
from robovlms_ros.training.engine.schedule import StageSchedule
from robovlms_ros.training.engine.stages import Stage

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Recipe:
    """Optimisation. windows: of a step's batch, each learned under every instruction.

    warmup: steps at the start of a stage. constant_part: part of a stage before the cosine;
    final_rate: the remaining part of the learning rate at its end. average: decay per step of the
    averaged weights, which are saved. huber: half-width of the Huber loss' quadratic part, on the
    head's scale. arm, gripper, auxiliary: loss weights. shift: pixels; gain, channel_gain, offset:
    half-widths of the factors and (of 255) of the shift of brightness. state_noise: standard
    deviation on the proprioception's normalised scale. precision: of the computation, by autocast;
    weights, heads and losses are float32.
    """

    windows: int = 12
    weight_decay: float = 0.05
    warmup: int = 100
    constant_part: float = 0.4
    final_rate: float = 0.05
    gradient_clip: float = 1.0
    average: float = 0.995
    huber: float = 0.1
    arm: float = 2.0
    gripper: float = 0.05
    auxiliary: float = 0.5
    shift: int = 2
    gain: float = 0.15
    channel_gain: float = 0.05
    offset: float = 10.0
    state_noise: float = 0.02
    seed: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        require(self.precision in PRECISIONS, "recipe.precision", self.precision, " or ".join(PRECISIONS))

    def training(self, save_every: int) -> TrainingConfig:
        """The engine's configuration. save_every: steps between saved states."""
        precision: Any = self.precision
        return TrainingConfig(
            batch_size=self.windows,
            weight_decay=self.weight_decay,
            decay_vectors=False,
            gradient_clip=self.gradient_clip,
            average=self.average,
            seed=self.seed,
            precision=precision,
            save_every=save_every,
        )

    def augmentation(self, size: int) -> AugmentConfig:
        """The engine's augmentation of images of `size` pixels a side."""
        return AugmentConfig(
            shift=self.shift / size, brightness=self.gain, contrast=0.0, saturation=0.0, hue=0.0,
            channels=self.channel_gain, offset=self.offset / 255,
        )

    @property
    def schedule(self) -> StageSchedule:
        """The course of the learning rate in every stage."""
        return StageSchedule(self.warmup, self.constant_part, self.final_rate)


@dataclass(frozen=True)
class TrainingStage(Stage):
    """A stage with its data: `steps` steps, `learning_rate` at its highest.

    demonstrations: further episodes of the expert that join the data when the stage begins; they
    are recorded while the stage before it runs. episodes: of the policy, as it is when the stage
    begins; with `ahead` as it is when the stage before it begins, and recorded while that runs.
    history: frames of a window in this stage, windows: of a step's batch; 0 for the policy's
    history_length, for the recipe's windows. seeing: only the vision tower is trained, on the
    places of all objects; frozen_vision: the vision tower stays as it is; with `seeing` only the
    heads that read its tokens are trained, as they must be after a `start`. focus: as in `Stage`,
    not with `seeing`. glimpses: scenes of which one frame joins the data, for stages with a
    `history` of 1, at any moment of a goal (`state_sampling`). These four are of the tabletop
    tasks.
    """

    demonstrations: int = 0
    episodes: int = 0
    ahead: bool = False
    history: int = 0
    seeing: bool = False
    frozen_vision: bool = False
    glimpses: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not (self.seeing and self.focus), "stages.focus", self.focus, "0 where `seeing` is true")
        for name in ("demonstrations", "glimpses", "episodes", "history"):
            require(getattr(self, name) >= 0, f"stages.{name}", getattr(self, name), "0 or more")

    @property
    def options(self) -> dict[str, Any]:
        chosen = {"seeing": self.seeing, "frozen_vision": self.frozen_vision}
        return {name: True for name, value in chosen.items() if value}
