"""Plan of a run that records its own demonstrations in the simulator, and the recipe of its
stages."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from robovlms_ros.config.policy import PolicyConfig, config_from_mapping
from robovlms_ros.config.training import AugmentConfig, TrainingConfig
from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.schema import ConfigError, build, read_mapping, require
from robovlms_ros.sim.tasks.base import CUBES, TRAINING_SEEDS
from robovlms_ros.sim.tasks.language import LABELLED, TASKS
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


FREE = ("workers", "threads", "save_every", "compile")
"""Fields of a plan that may differ when its run goes on."""


@dataclass(frozen=True)
class TrainingPlan:
    """One training run, as its YAML has it.

    policy: a policy's configuration (PolicyConfig); left out, that of `start`. start: the
    checkpoint whose weights the run begins with (a folder, or a name in config/checkpoints); its
    policy may drive from the first stage on. first_scene: of the training scenes, for a run that is
    to see others than `start` did. robot: name or path of the robot's YAML. episodes:
    demonstrations of the expert that the first stage has. shard: episodes per shard. workers:
    processes that record, 0 for one a processor but one. threads: that train on a CPU, each with a
    part of a step's windows. stages: see `TrainingStage`. save_every: steps between saved states.
    compile: elsewhere than on a CPU the towers go through torch.compile.

    task: `cubes`, a tabletop task or `all` of them. Of a tabletop task goals: of those recorded,
    how many a window is learned under in a step. ground_truth: false trains on a real robot's
    recordings' content alone; then hindsight: true adds, for the cubes, the place where the hand
    closed. paired: demonstrations of the cubes come in twos that show one scene, for one
    instruction and for the other; all counts are even then.
    """

    policy: dict[str, Any] | None = None
    stages: tuple[TrainingStage, ...] = ()
    start: str | None = None
    first_scene: int = 0
    recipe: Recipe = field(default_factory=Recipe)
    robot: str = "panda"
    episodes: int = 300
    shard: int = 10
    workers: int = 2
    threads: int = 1
    save_every: int = 200
    compile: bool = False
    task: str = CUBES
    goals: int = 3
    ground_truth: bool = True
    hindsight: bool = False
    paired: bool = False

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "stages", list(self.stages), "at least one")
        require(self.policy is not None or self.start is not None, "policy", None, "given, or `start` is")
        first = self.stages[0].episodes
        driven_from = 2 if self.start is None else 1
        require(first == 0 or self.start is not None, "stages[0].episodes", first,
                "0 without a `start`: an untrained policy drives nowhere")
        require(1 <= self.shard <= self.episodes, "shard", self.shard, f"1 to episodes = {self.episodes}")
        windows = self.recipe.windows
        require(1 <= self.threads <= windows, "threads", self.threads, f"1 to recipe.windows = {windows}")
        require(self.save_every >= 1, "save_every", self.save_every, "1 or more")
        allowed = (CUBES, "all", *TASKS)
        require(self.task in allowed, "task", self.task, f"one of {', '.join(allowed)}")
        for number, stage in enumerate(self.stages):
            fits = self.task != CUBES and self.ground_truth
            require(fits or not stage.seeing, f"stages[{number}].seeing", stage.seeing,
                    "false without a tabletop task and ground_truth: only the simulator knows where things are")
            drives = not stage.ahead or number >= driven_from
            require(drives or not stage.episodes, f"stages[{number}].ahead", stage.ahead,
                    "false: before the stage before it there is no trained policy")
            fits = self.task != CUBES
            require(fits or not stage.frozen_vision, f"stages[{number}].frozen_vision", True, "false without a `task`")
            require(fits or not stage.focus, f"stages[{number}].focus", stage.focus, "0 without a `task`")
            require(fits or not stage.glimpses, f"stages[{number}].glimpses", stage.glimpses, "0 without a `task`")
        require(
            not self.hindsight or (self.task == CUBES and not self.ground_truth),
            "hindsight",
            self.hindsight,
            "false with a `task` or with ground_truth, which tells more",
        )
        counts = {"shard": self.shard, "first_scene": self.first_scene, "episodes": self.episodes} | {
            f"stages[{number}].{name}": getattr(stage, name)
            for number, stage in enumerate(self.stages) for name in ("demonstrations", "episodes")
        }
        odd = [f"{name} = {count}" for name, count in counts.items() if count % 2]
        require(
            not (self.paired and self.task != CUBES), "paired", self.paired, "false with a `task`"
        )
        require(not (self.paired and odd), "paired", self.paired,
                f"false where a count is odd, which parts pairs ({', '.join(odd)})")
        require(1 <= self.goals <= LABELLED, "goals", self.goals, f"1 to {LABELLED}")
        total = self.demonstrations + sum(stage.episodes + stage.glimpses for stage in self.stages)
        require(total <= len(TRAINING_SEEDS), "scenes in all", total, f"at most {len(TRAINING_SEEDS)}")
        most = len(TRAINING_SEEDS) - total
        require(0 <= self.first_scene <= most, "first_scene", self.first_scene,
                f"0 to {most}, with {total} scenes in all")

    @property
    def demonstrations(self) -> int:
        """Episodes of the expert, those of all stages."""
        return self.episodes + sum(stage.demonstrations for stage in self.stages)

    @property
    def policy_config(self) -> PolicyConfig:
        from robovlms_ros.checkpoints.checkpoint import locate

        if self.policy is not None:
            return config_from_mapping(self.policy, "policy")
        return locate(find_checkpoint(str(self.start)), None).config


def load_plan(path: str | Path) -> TrainingPlan:
    """The plan in a YAML file. Raises ConfigError."""
    plan = build(TrainingPlan, read_mapping(path), Path(path).name)
    plan.policy_config.require_runnable()
    return plan


def without_ground_truth(plan: TrainingPlan) -> TrainingPlan:
    """The same plan for what a real robot records alone: whole episodes, and nothing that only
    the simulator knows."""
    stages = tuple(replace(stage, glimpses=0) for stage in plan.stages if not stage.seeing)
    return replace(plan, ground_truth=False, stages=stages)


def require_same(plan: TrainingPlan, folder: Path) -> None:
    """Keep the plan in `folder`, or compare it with the one that is kept. Raises ConfigError
    when they differ."""
    path = folder / "plan.json"
    told = json.loads(json.dumps(asdict(plan), default=str))
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        return
    kept = json.loads(path.read_text(encoding="utf-8"))
    shared = min(len(kept["stages"]), len(told["stages"]))
    kept["stages"], told["stages"] = kept["stages"][:shared], told["stages"][:shared]
    # Runs that were begun before there were such fields, or with no name for the cubes.
    kept = {"hindsight": False, "paired": False, **kept, "task": kept["task"] or CUBES}
    differing = [key for key in told if key not in FREE and kept.get(key) != told[key]]
    if differing:
        values = "; ".join(f"{key}: {kept.get(key)} then, {told[key]} now" for key in differing)
        raise ConfigError(
            f"{folder}: holds a run of another plan ({values[:400]}). Give another --output, or the plan that it was "
            "begun with."
        )
