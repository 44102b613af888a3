"""`robovlms train --config FILE --data PATHS`: from a YAML file and recordings to a checkpoint.

The file is a policy's configuration (`model`, `vlm`, `action`, `training`, ...) with an optional
`data` block. Weights come from a checkpoint, from the pretrained VLM that `vlm.model_name` names,
or are new.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robovlms_ros.config.policy import PolicyConfig, config_from_mapping
from robovlms_ros.config.robovlms_import import expand
from robovlms_ros.control.robot import RobotSpec, load_robot
from robovlms_ros.core.schema import ConfigError, read_mapping, require
from robovlms_ros.models.vla_policy import VLAPolicy
from robovlms_ros.training.data.mixture import read_mixture, window_shares
from robovlms_ros.training.data.selection import by_recording, read_selections

RANDOM = "random"
KEY = "train"
"""The name of a run's own statistics in its statistics.json."""
PLACES = {"topics": "data.bag", "bag": "data", "lerobot": "data", "calvin": "data"}
"""Keys that readers of an evaluation YAML write at the top of a file -> their block."""


@dataclass(frozen=True)
class Run:
    """Content of a training file. folder: where files that it names are looked up. start:
    `--from`. keep_images: of the `data` block; the folder of the files, or True for in memory.
    mixture: of the `data` block."""

    config: PolicyConfig
    data: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    start: str | None = None
    keep_images: bool | Path = False
    mixture: Mapping[str, float] = field(default_factory=dict)


def is_plan(path: Path) -> bool:
    """Test whether the file is a plan that records its demonstrations in the simulated arm."""
    return "stages" in read_mapping(path)


def read_run(path: Path, start: str | None = None) -> Run:
    """The run in a YAML or JSON file. start: a checkpoint, `random`, or None.

    A file without a `model` block takes everything that it leaves out from the checkpoint
    `start`. Raises ConfigError, CheckpointError.
    """
    mapping = read_mapping(path)
    for key, place in PLACES.items():
        require(key not in mapping, f"{path.name}: {key}", mapping.get(key), f"in the block `{place}`")
    if "base" in mapping:
        mapping = expand(mapping, path.name, path.parent)
    data = mapping.pop("data", None)
    data = {} if data is None else data
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path.name}: data = {data!r}: must be a mapping (docs/training_data.md).")
    if "model" not in mapping and start not in (None, RANDOM):
        mapping = {"base": str(_config_of(Path(str(start))).resolve()), **mapping}
    data = dict(data)
    keep = data.pop("keep_images", False)
    config = config_from_mapping(mapping, path.name, path.parent)
    config, data = _with_robots_name(config, data)
    if isinstance(keep, str) and keep:
        if config.vlm.image_size is None:
            raise ConfigError(
                f"{path.name}: data.keep_images = {keep!r} needs vlm.image_size, the pixels a side "
                "of the images in the files. `robovlms check` prints a model's own size."
            )
        keep = path.parent / keep
    elif not isinstance(keep, bool):
        raise ConfigError(f"{path.name}: data.keep_images = {keep!r}: must be true, false or a "
                          "folder's path.")
    where = f"{path.name}: data.mixture"
    mixture = read_mixture(data.pop("mixture", None), where)
    require(not mixture or config.training.hindsight is None, where, mixture,
            "left out with training.hindsight, which learns frames under several instructions")
    return Run(config, data, path.parent, start, keep, mixture)


def _with_robots_name(
    config: PolicyConfig, data: dict[str, Any]
) -> tuple[PolicyConfig, dict[str, Any]]:
    """A path as `action.robot` becomes the bags' robot, and its name the policy's: the preflight
    compares names."""
    robot = None if config.action is None else config.action.robot
    if robot is None or Path(robot).suffix not in (".yaml", ".yml"):
        return config, data
    bag = data.get("bag") or {}
    if not isinstance(bag, Mapping):
        return config, data  # `open_data` refuses it
    assert config.action is not None
    action = dataclasses.replace(config.action, robot=load_robot(robot).name)
    named = {**data, "bag": {"robot": robot, **bag}}
    return dataclasses.replace(config, action=action), named


def _config_of(checkpoint: Path) -> Path:
    from robovlms_ros.checkpoints.checkpoint import locate_config

    return locate_config(checkpoint)


def starting_policy(run: Run, log: Callable[[str], None]) -> VLAPolicy:
    """The policy that training begins with, in float32. Raises CheckpointError, ConfigError,
    BackboneError."""
    from robovlms_ros.checkpoints.checkpoint import build_policy, load_policy
    from robovlms_ros.checkpoints.pretrained import policy_from_vlm
    from robovlms_ros.training.engine.trainable import initialise

    config = run.config
    seed = run.config.training.seed
    if run.start not in (None, RANDOM):
        policy = load_policy(str(run.start), config, dtype=torch.float32)
        log(f"weights: {run.start}")
    elif run.start is None and config.vlm.size == "full" and config.vlm.model_name is not None:
        policy = policy_from_vlm(config, seed, torch.float32, run.folder)
        log(f"weights: the VLM's from {config.vlm.model_name}; head and action token are new")
    else:
        # a new model is made in the precision it runs in
        vlm = dataclasses.replace(config.vlm, precision="float32")
        policy = build_policy(dataclasses.replace(config, vlm=vlm), seed, run.folder)
        if config.training.initial_weights == "small":
            initialise(policy, seed)
        log(f"weights: new, seed {seed}")
    policy.config = config
    return policy


def train_on(
    paths: Sequence[Path], run: Run, output: Path, log: Callable[[str], None],
    moments: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Train on recordings, or go on with the run in `output`; returns the checkpoint's folder.
    moments: see `training.data.windows.Moments`.

    Raises DataError (what of the data would train badly), TrainingError, and what `starting_policy`
    raises.
    """
    from robovlms_ros.checkpoints.passport import difference, identity, with_controller
    from robovlms_ros.training.data.checks import check_data, require_trainable
    from robovlms_ros.training.data.episodes import split
    from robovlms_ros.training.data.hindsight import HindsightSource, LookWindows
    from robovlms_ros.training.data.kept_images import KeptImages
    from robovlms_ros.training.data.statistics import compute_statistics, with_statistics
    from robovlms_ros.training.data.windows import WindowDataset
    from robovlms_ros.training.engine.fit import fit
    from robovlms_ros.training.engine.hindsight_objective import HindsightObjective

    source, accept = open_data(paths, run, log)
    robot = robot_of(run)
    flaws, _ = check_data(source, run.config, accept=accept, robot=robot)
    for flaw in flaws:
        if not flaw.refuse:
            log(f"note: {flaw.where}: {flaw.text}")
    require_trainable(flaws)
    recorded = source.policies
    training = run.config.training
    if run.keep_images:
        folder = run.keep_images if isinstance(run.keep_images, Path) else None
        source = KeptImages(source, run.config.vlm.image_size, folder)
        if folder is not None:
            source.write(run.data.get("jobs", 1), log)
    habit = None
    if training.hindsight is not None:
        source = HindsightSource(source, training.hindsight, training.seed)
        habit = source.habit
        log(source.summary())
    learned, held = split(source, training.validation_fraction, training.seed)
    statistics = compute_statistics(source, learned, run.config)
    config = with_statistics(run.config, statistics)
    log(f"{len(learned)} episodes to train on, {len(held)} held out; actions in {statistics.unit}")
    policy = starting_policy(dataclasses.replace(run, config=config), log)
    present = policy.identity
    if run.start in (None, RANDOM):
        present = identity(present, config)
    if robot is not None:
        present = with_controller(present, robot)
    for text in filter(None, (difference(old, present) for old in recorded)):
        log(f"note: {text}")
    train: Any = WindowDataset(source, learned, config, moments=moments)
    weights = Counter(float(w) for i in learned for w in train.weights(source.arrays(i)))
    if len(weights) > 1:
        log("weight: frames; " + "; ".join(f"{w:g}: {n}" for w, n in sorted(weights.items())))
    if isinstance(source, HindsightSource):
        train = LookWindows(source, train)
    shares = None
    if run.mixture:
        recordings = by_recording(read_selections(paths), source)
        shares = window_shares(train, source, recordings, run.mixture)
    validation = WindowDataset(source, held, config) if held else None
    files = {"statistics.json": json.dumps(statistics.as_table(KEY), indent=1)}
    objective = None if training.hindsight is None else HindsightObjective(policy, habit)
    return fit(policy, train, validation, config, output, files=files, objective=objective,
               shares=shares)


def robot_of(run: Run) -> RobotSpec | None:
    """The robot of the recordings, as the `data` block or the action names it. Raises
    ConfigError."""
    blocks = (run.data.get(kind) or {} for kind in ("bag", "lerobot"))
    name = next(filter(None, (block.get("robot") for block in blocks)), None)
    if name is None and run.config.action is not None:
        name = run.config.action.robot
    return None if name is None else load_robot(name)


def open_data(paths: Sequence[Path], run: Run, log: Callable[[str], None]) -> tuple[Any, tuple[str, ...]]:
    """The episodes at `paths` as the file's `data` block maps them, and the kinds of flaws that it
    lets through."""
    from robovlms_ros.training.data.open_sources import open_sources

    mapping = dict(run.data)
    accept = tuple(mapping.pop("accept", ()))
    return open_sources(paths, run.config, mapping, log), accept
