"""Training settings: the `training` block."""

from dataclasses import dataclass, field
from typing import Literal

from robovlms_ros.core.schema import require


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters in the language model (arXiv 2106.09685); the rest of the VLM is frozen.
    Defaults: RoboVLMs'.

    rank, alpha: the update is alpha / rank * B A. dropout: on the adapters' input. targets: last
        parts of the adapted modules' names (`q_proj`); empty is every linear layer of the language
        model.
    """

    rank: int = 64
    alpha: float = 16.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = "training.lora"
        require(1 <= self.rank <= 4096, f"{where}.rank", self.rank, "1 to 4096")
        require(0 < self.alpha <= 1e5, f"{where}.alpha", self.alpha, "above 0 and at most 1e5")
        require(0 <= self.dropout < 1, f"{where}.dropout", self.dropout, "0 or more and below 1")


@dataclass(frozen=True)
class AugmentConfig:
    """Image augmentation in training; one draw per window and camera, so that a window stays
    consistent.

    shift: largest shift as a share of the image's side (RoboVLMs: 10 of 224 pixels). brightness,
        contrast, saturation: half-width of the factor around 1. hue: largest turn of the colour
            circle, 0.5 is half of it. channels: as brightness, of each colour channel alone.
            offset: largest shift of the brightness, 1 is white. 0 is off.
    """

    shift: float = 0.045
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.05
    channels: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name, high in (
            ("shift", 0.5),
            ("brightness", 1),
            ("contrast", 1),
            ("saturation", 1),
            ("hue", 0.5),
            ("channels", 1),
            ("offset", 1),
        ):
            value = getattr(self, name)
            require(0 <= value <= high, f"training.augmentation.{name}", value, f"0 to {high:g}")


@dataclass(frozen=True)
class HandCameraConfig:
    """A camera that moves with the hand and looks along the tool's z axis.

    name: one of `cameras`. field_of_view: of the image's height, degrees. position: of the camera
        in the tool's frame (m). turn: of the image about that axis, degrees; at 0 the image's right
        is the tool's x and its downward direction the tool's y.
    shift: largest shift of its images as a share of their side. What is seen is then somewhere
        else beside the hand, and so are the labels: a view from a place where the hand never was.
    Where it is the policy's only camera, a place outside its image is no label: nothing shows it.
    """

    name: str
    field_of_view: float
    position: tuple[float, float, float]
    turn: float = 0.0
    shift: float = 0.1

    def __post_init__(self) -> None:
        where = "training.hindsight.hand_camera"
        view = self.field_of_view
        require(1 <= view <= 170, f"{where}.field_of_view", view, "1 to 170 degrees")
        near = all(-1 <= value <= 1 for value in self.position)
        require(near, f"{where}.position", list(self.position), "three numbers from -1 to 1 m")
        require(-360 <= self.turn <= 360, f"{where}.turn", self.turn, "-360 to 360 degrees")
        require(0 < self.shift <= 0.5, f"{where}.shift", self.shift, "above 0 and at most 0.5")


@dataclass(frozen=True)
class HindsightConfig:
    """Labels that a recording gives once it is over (`training.data.hindsight`).

    weight: of the place where the gripper took hold, as an auxiliary target of the action feature.
    episodes_per_scene: recorded episodes in a row that show one scene, each for another
        instruction; they share their places. 1: every episode has its own scene.
    skip_idle: frames after which nothing moves are not learned: a policy that learns a pause never
        ends it.
    relabel: chunks are what the recorded habit does from the hand's pose beside the place, under
        every instruction whose place is known; false learns the commands as they were sent.
        relabel_steps: of that habit's training.
    hand_camera: shift its images together with the labels.
    """

    weight: float = 0.5
    episodes_per_scene: int = 1
    skip_idle: bool = True
    relabel: bool = False
    relabel_steps: int = 3000
    hand_camera: HandCameraConfig | None = None

    def __post_init__(self) -> None:
        where = "training.hindsight"
        require(self.relabel or self.hand_camera is None, f"{where}.relabel", self.relabel,
                "true with hand_camera: only the habit knows what to do from another place")
        require(0 <= self.weight <= 1e3, f"{where}.weight", self.weight, "0 to 1000")
        count = self.episodes_per_scene
        require(1 <= count <= 1000, f"{where}.episodes_per_scene", count, "1 to 1000")
        steps = self.relabel_steps
        require(1 <= steps <= 1_000_000, f"{where}.relabel_steps", steps, "1 to 1000000")


@dataclass(frozen=True)
class CorrectionsConfig:
    """Weights of the frames of episodes in which a person took over; every other frame has 1.

    person: of frames from the person's first command to the hand-over to the policy. before: of
        frames in the `seconds` before that command: what led there is not to be repeated. 0 leaves
        frames out.
    """

    person: float = 3.0
    before: float = 0.0
    seconds: float = 2.0

    def __post_init__(self) -> None:
        for name, high in (("person", 100), ("before", 100), ("seconds", 3600)):
            value = getattr(self, name)
            require(0 <= value <= high, f"training.corrections.{name}", value, f"0 to {high}")


@dataclass(frozen=True)
class TrainingConfig:
    """Optimisation of a training run: AdamW on Huber (arm) and binary cross entropy (gripper), or
    on action tokens.

    batch_size: windows per step of one process. accumulation: such batches per step of the
        optimiser.
    learning_rate: at its highest. warmup_ratio: epochs of linear warm-up. schedule: after it;
        `cosine` falls to minimum_rate (a share of learning_rate) at the end of the run.
    epochs: passes over the data. max_steps: of the optimiser, ends the run earlier; None is no
        limit.
    gradient_clip: largest norm of the gradient, 0 is off. weight_decay: on every trained parameter,
        as RoboVLMs; decay_vectors: false leaves out biases and norms.
    average: decay per step of the averaged weights, which validation and checkpoints then have; 0
        is off.
    huber: half-width of the quadratic part of the arm's loss, on the head's scale; smaller gives
        small errors more weight.
    arm_gripper_loss_ratio: weight of the gripper's loss beside the arm's.
    state_noise: standard deviation of noise on the proprioception's normalised scale.
    precision: of the computation (mixed precision). What trains and the optimiser stay float32;
        matrices that do not train are held in it. gradient_checkpointing: keep only the layers'
        inputs and compute the rest again: less memory, about a third more time.
    freeze: parts that stay as they are: `vision` (tower), `text` (language model),
        `word_embedding`, `backbone` (the whole VLM). The head, the action token and what embeds
        proprioception always train. train_last_layers: with the language model frozen, its last N
        layers train all the same. lora: adapters instead of the weights.
    validation_fraction: share of the episodes that is held out. seed: of new weights, data order
        and augmentation.
    corrections: weights of episodes in which a person took over.
    hindsight: None learns the recorded commands alone. initial_weights: of new policies; `small`
        makes places as loud as pixels and the action token not zero, for towers of a few layers.
    threads: parts of a batch that are computed side by side on a CPU, each on a core.
    workers: processes that decode images. save_every: steps of the optimiser between saved states.
    trackers: where the run's numbers go beside its folder.
    """

    batch_size: int = 128
    learning_rate: float = 1e-4
    epochs: int = 5
    warmup_ratio: float = 0.25
    weight_decay: float = 0.0
    gradient_clip: float = 1.0
    decay_vectors: bool = True
    average: float = 0.0
    huber: float = 1.0
    arm_gripper_loss_ratio: float = 0.01
    state_noise: float = 0.0
    seed: int = 123
    accumulation: int = 1
    max_steps: int | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    minimum_rate: float = 0.01
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    freeze: tuple[Literal["vision", "text", "word_embedding", "backbone"], ...] = ()
    train_last_layers: int | None = None
    lora: LoraConfig | None = None
    corrections: CorrectionsConfig = field(default_factory=CorrectionsConfig)
    hindsight: HindsightConfig | None = None
    initial_weights: Literal["usual", "small"] = "usual"
    threads: int = 1
    augmentation: AugmentConfig = field(default_factory=AugmentConfig)
    validation_fraction: float = 0.1
    workers: int = 2
    save_every: int = 500
    trackers: tuple[Literal["wandb", "trackio"], ...] = ()

    def __post_init__(self) -> None:
        where = "training"
        whole = {"batch_size": 1_000_000, "epochs": 100_000, "accumulation": 100_000, "save_every": 1_000_000}
        for name, most in whole.items():
            require(1 <= getattr(self, name) <= most, f"{where}.{name}", getattr(self, name), f"1 to {most}")
        require(0 < self.learning_rate <= 1, f"{where}.learning_rate", self.learning_rate, "above 0 and at most 1")
        for name, high in (("warmup_ratio", 1000), ("weight_decay", 10), ("gradient_clip", 1e6), ("minimum_rate", 1)):
            value = getattr(self, name)
            require(0 <= value <= high, f"{where}.{name}", value, f"0 to {high:g}")
        ratio = self.arm_gripper_loss_ratio
        require(0 <= ratio <= 1e3, f"{where}.arm_gripper_loss_ratio", ratio, "0 to 1000")
        require(
            0 <= self.average < 1, f"{where}.average", self.average, "0 (off) or more, and below 1"
        )
        require(0 < self.huber <= 1e3, f"{where}.huber", self.huber, "above 0 and at most 1000")
        require(0 <= self.state_noise <= 1, f"{where}.state_noise", self.state_noise, "0 to 1")
        require(self.max_steps is None or self.max_steps >= 1, f"{where}.max_steps", self.max_steps, "1 or more")
        share = self.validation_fraction
        require(0 <= share < 1, f"{where}.validation_fraction", share, "0 (none held out) or more, and below 1")
        require(0 <= self.workers <= 256, f"{where}.workers", self.workers, "0 (the training process itself) to 256")
        require(1 <= self.threads <= 256, f"{where}.threads", self.threads, "1 to 256")
        layers = self.train_last_layers
        require(layers is None or layers >= 1, f"{where}.train_last_layers", layers, "1 or more")
        frozen = {"text", "backbone"} & set(self.freeze)
        require(layers is None or bool(frozen), f"{where}.freeze", list(self.freeze),
                "with train_last_layers, a list with 'text' or 'backbone': it names what trains of a frozen part")
        require(self.lora is None or layers is None, f"{where}.train_last_layers", layers, "absent with lora")
