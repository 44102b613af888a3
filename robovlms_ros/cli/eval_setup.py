"""From the command line of `robovlms eval` to jobs: one bag each, everything a worker process needs
to run it; and their engines: this process, processes of this machine, or a Ray cluster."""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from robovlms_ros.core.resources import find_checkpoint
from robovlms_ros.core.schema import ConfigError, read_mapping
from robovlms_ros.evaluation.bags.mapping import bag_description
from robovlms_ros.evaluation.replay.evaluate import (
    EvaluationConfig,
    Setting,
    evaluate_bag,
    part_key,
    recorded_stamps,
)
from robovlms_ros.evaluation.replay.loop import RECORDED, Subject
from robovlms_ros.ros import parameters as node_parameters
from robovlms_ros.ros.parameters import NodeParameters

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationJob:
    """One bag to evaluate. checkpoints: (name, folder) pairs; the folder `recorded` means the
    bag's own chunks.

    stamps: `all`, `recorded`, or a JSON file with a list of ns. threads: torch threads of the
        worker, 0 leaves them.
    """

    bag: Path
    checkpoints: tuple[tuple[str, str], ...]
    parameters: NodeParameters
    config: EvaluationConfig
    output: Path
    stamps: str = "all"
    threads: int = 0

    @property
    def part(self) -> Path:
        """File of the result: another one when the bag, the weights or the settings are
        others."""
        facts = {"parameters": dataclasses.asdict(self.parameters), "stamps": self.stamps}
        folders = [str(find_checkpoint(folder)) for _, folder in self.checkpoints]
        key = part_key(self.bag, folders, self.config, {**facts, "names": self.checkpoints})
        return self.output / "parts" / f"{self.bag.stem}-{key}.json"


def run_job(job: EvaluationJob, progress: Callable[[float], None] | None = None) -> Path:
    """Evaluate one bag and file the result; returns the file. What is filed already is not computed
    again."""
    target = job.part
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    if job.threads:
        import torch

        torch.set_num_threads(job.threads)
    setting, subjects = prepare(job)
    folder = target.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir()
    stamps = None
    if job.stamps == "recorded":
        stamps = recorded_stamps(job.bag, job.config.topics)
    elif job.stamps != "all":
        stamps = frozenset(int(stamp) for stamp in json.loads(Path(job.stamps).read_text(encoding="utf-8")))
    result = evaluate_bag(job.bag, subjects, setting, folder, stamps, progress)
    unfinished = target.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    os.replace(unfinished, target)
    return target


def prepare(job: EvaluationJob) -> tuple[Setting, list[Subject]]:
    """The robot, its kinematics and the policies of a job."""
    from robovlms_ros.ros.loading import load_body

    parameters = job.parameters
    body = load_body(parameters, lambda topic: bag_description(job.bag, topic))
    kinematics = None if body.make_kinematics is None else body.make_kinematics()
    subjects = []
    cameras = []
    for name, folder in job.checkpoints:
        if folder == RECORDED:
            subjects.append(Subject(name, None))
            continue
        policy = policy_of(dataclasses.replace(parameters, checkpoint=folder))
        cameras.append(policy.config.cameras)
        subjects.append(_subject(name, policy, job.config.block))
    setting = Setting(
        body.robot,
        kinematics,
        parameters.schedule,
        _cameras(cameras, parameters),
        job.config,
        parameters.camera_tolerance,
        parameters.joint_states_tolerance,
        parameters.max_instruction_length,
        {camera.name: camera.encoding for camera in parameters.cameras if camera.encoding},
        body.collision,
        {camera.name: camera.topic for camera in parameters.cameras},
    )
    return setting, subjects


@cache
def policy_of(parameters: NodeParameters) -> Any:
    """The policy that the parameters name, loaded once."""
    from robovlms_ros.ros.loading import check_weights, load_policy_of

    check_weights(parameters)
    policy = load_policy_of(parameters)
    policy.config.require_runnable()
    return policy


def _subject(name: str, policy: Any, block: int) -> Subject:
    from time import perf_counter_ns

    from robovlms_ros.evaluation.replay.block import BlockSession
    from robovlms_ros.inference.optimized.options import FastPathOptions

    assert policy.config.action is not None
    model = policy.config.model
    make = lambda: BlockSession(policy, perf_counter_ns, block, FastPathOptions())  # noqa: E731
    return Subject(name, make, policy.config.action.spec, model.action_chunk_size,
                   model.history_length * (model.history_step or 0.0))


def _cameras(wanted: list[tuple[str, ...]], parameters: NodeParameters) -> tuple[str, ...]:
    """Every camera that some policy sees; all must agree on the reference, whose stamps are the
    observations'."""
    if not wanted:
        return tuple(camera.name for camera in parameters.cameras)
    if len({cameras[0] for cameras in wanted}) > 1:
        raise ConfigError(
            f"the policies have different reference cameras ({', '.join(sorted({c[0] for c in wanted}))}), so they "
            "would answer at different times. Evaluate them one by one."
        )
    return tuple(dict.fromkeys(name for cameras in wanted for name in cameras))


def read_parameters(path: Path | None, overrides: Mapping[str, Any]) -> NodeParameters:
    """The node's parameters from its params file (`/**: ros__parameters:`) or a flat mapping.

    Raises ConfigError.
    """
    given = node_parameters.of_this_release(_from_file(path), log.warning)
    given.update({name: value for name, value in overrides.items() if value is not None})
    given.setdefault("dry_run", True)
    given["dry_run"] = True  # nothing moves here, so random weights may be evaluated
    cameras = node_parameters.check_cameras(given.get("cameras") or node_parameters.CAMERAS)
    known = node_parameters.defaults(cameras)
    try:
        node_parameters.check_known(given, [*known, "use_sim_time"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    given.pop("use_sim_time", None)
    return node_parameters.from_values({**known, **given, "cameras": list(cameras)})


def uses_sim_time(path: Path | None) -> bool:
    """True if the node's parameters set use_sim_time."""
    return bool(_from_file(path).get("use_sim_time", False))


def _from_file(path: Path | None) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for section, content in ({} if path is None else read_mapping(path)).items():
        if isinstance(content, Mapping) and "ros__parameters" in content:
            given.update(_flat(content["ros__parameters"]))
        else:
            given.update(_flat({section: content}))
    return given


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def named_checkpoints(texts: list[str], default: str) -> tuple[tuple[str, str], ...]:
    """(name, folder) of `--checkpoint FOLDER` or `NAME=FOLDER`, names made unique."""
    named: dict[str, str] = {}
    for text in texts or [default]:
        name, equals, folder = text.partition("=")
        if not equals:
            name = Path(text).name
            folder = text
        while name in named:
            name += "'"
        named[name] = folder
    return tuple(named.items())


class Bar(Protocol):
    """Receiver of the jobs' progress."""

    def within(self, fraction: float) -> None: ...
    def done(self, name: str) -> None: ...


def run_jobs(jobs: Sequence[EvaluationJob], engine: str, at_a_time: int, bar: Bar) -> list[Path]:
    """Run all jobs; returns their result files in order. Raises ConfigError for an engine that is
    not installed.

    A job that finished is filed; one that was killed leaves nothing that counts, and is run again.
    """
    if engine == "ray":
        _on_ray(jobs, bar)
    elif at_a_time == 1 or len(jobs) == 1:
        for job in jobs:
            run_job(job, bar.within)
            bar.done(str(job.bag))
    else:
        _in_processes(jobs, at_a_time, bar)
    return [job.part for job in jobs]


def _in_processes(jobs: Sequence[EvaluationJob], at_a_time: int, bar: Bar) -> None:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    with ProcessPoolExecutor(at_a_time, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(run_job, job): job for job in jobs}
        for future in as_completed(futures):
            future.result()
            bar.done(str(futures[future].bag))


def _on_ray(jobs: Sequence[EvaluationJob], bar: Bar) -> None:
    """On the cluster that RAY_ADDRESS names, else on one that starts here. It shares the files and
    the installation."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--engine ray: Ray is not installed. `pip install robovlms_ros[fleet]` (or `pip install ray`), or use "
            "--jobs N on this machine."
        ) from error
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    gpus = 1 if jobs[0].parameters.device != "cpu" and ray.cluster_resources().get("GPU") else 0
    remote: Callable[..., Any] = ray.remote(num_cpus=1, num_gpus=gpus)(run_job_in).remote
    waiting = {remote(os.getcwd(), job): job for job in jobs}
    while waiting:
        ready, _ = ray.wait(list(waiting), num_returns=1)
        ray.get(ready[0])
        bar.done(str(waiting.pop(ready[0]).bag))


def run_job_in(folder: str, job: EvaluationJob) -> Path:
    """`run_job` where the paths of the command line mean what they mean there."""
    os.chdir(folder)
    return run_job(job)
