"""Run the demo: start both nodes, examine them, write the table's rows, the pictures and the
bag."""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.ros.processes import Child, isolated_environment
from robovlms_ros.ros.recorder import BagRecorder
from robovlms_ros.sim.closed_loop import Condition, EpisodeResult
from robovlms_ros.sim.demo_report import EpisodeRecording
from robovlms_ros.sim.nodes.demo_client import CAMERAS, POLICY, SIM, DemoClient
from robovlms_ros.sim.tasks.base import CUBES
from robovlms_ros.sim.tasks.base import judge as judge_of
from robovlms_ros.sim.tasks.objects import TableTruth

NAMESPACE = "/demo"
SETTLE_TIME = 0.5
RECORDED = (
    "instruction", "joint_states", "robot_description",
    "panda_arm_controller/joint_trajectory", "gripper_controller/joint_trajectory",
    f"{SIM}/ground_truth", f"{POLICY}/action_chunk", f"{POLICY}/status",
    *(f"{camera}/image_raw" for camera in CAMERAS),
)


@dataclass(frozen=True)
class Trial:
    """One episode to run: the instruction, the scene, the condition; keep: its pictures. task:
    whose scene it is; of a tabletop scene the instruction is the seed's own."""

    instruction: str
    seed: int
    condition: Condition
    keep: bool = False
    task: str = CUBES


@dataclass(frozen=True)
class DemoOptions:
    """Options of a demo run and its output folder. time_limit: simulated s per episode;
    real_time_factor: simulated s per wall s; added_latency: s by which every chunk is withheld;
        bag: whether all
    of it is recorded; controller_blends: the parameter of the simulated arm."""

    trials: tuple[Trial, ...]
    output: Path
    sim_parameters: Path
    policy_parameters: Path
    checkpoint: str = ""
    time_limit: float = 10.0
    real_time_factor: float = 1.0
    added_latency: float = 0.0
    bag: bool = True
    controller_blends: bool = False


@dataclass
class DemoOutcome:
    """Outcome of a demo run. reaction_s: p50 and p99 as the policy node measured them;
    real_time_factor: as achieved; worst_step: rad, largest change of a measured joint in 10 ms."""

    episodes: list[EpisodeResult] = field(default_factory=list)
    recordings: list[EpisodeRecording] = field(default_factory=list)
    reaction_s: tuple[float, float] = (float("nan"), float("nan"))
    real_time_factor: float = float("nan")
    worst_step: float = float("nan")
    bag: Path | None = None
    bag_messages: int = 0


def run_demo(
    options: DemoOptions, log: Callable[[str], None], keep: Callable[[Trial, EpisodeResult], None]
) -> DemoOutcome:
    """Run every trial of `options` against fresh processes; `log` is called with each step in one
    line, `keep` is given each result as it is there.

    Raises ChildDied when a node ends, DemoClientError when one refuses or stays silent.
    """
    # A domain of its own, on this machine only: the demo's commands must never reach a real arm on
    # the network.
    os.environ.update(isolated_environment())
    outcome = DemoOutcome()
    with ExitStack() as stack:
        logs = Path(tempfile.mkdtemp(prefix="robovlms_demo_"))
        sim = stack.enter_context(_child(SIM, "robovlms_ros.sim.nodes.sim_arm", _sim_arguments(options), logs))
        policy = stack.enter_context(_child(POLICY, "robovlms_ros.ros.vla_node", _policy_arguments(options), logs))
        examiner = stack.enter_context(_spinning((sim, policy)))
        log("loading the policy")
        examiner.configure(patience=240.0)
        recorder = None
        if options.bag:
            outcome.bag = options.output / "bag"
            recorder = BagRecorder(examiner, outcome.bag, tuple(f"{NAMESPACE}/{topic}" for topic in RECORDED))
            stack.callback(recorder.close)
        wall = time.monotonic()
        simulated = examiner.now_ns()
        for index, trial in enumerate(options.trials):
            if recorder:
                recorder.discover()
            episode, recording = _examine(examiner, trial, options.time_limit)
            outcome.episodes.append(episode)
            keep(trial, episode)
            if recording:
                outcome.recordings.append(recording)
            log(_line(index + 1, len(options.trials), trial, episode))
        outcome.real_time_factor = (examiner.now_ns() - simulated) / NANOSECONDS / (time.monotonic() - wall)
        outcome.reaction_s = (examiner.status.latency_p50, examiner.status.latency_p99)
        outcome.worst_step = examiner.worst_step
        if recorder:
            recorder.close()
            outcome.bag_messages = sum(recorder.counts.values())
    return outcome


def _line(number: int, total: int, trial: Trial, episode: EpisodeResult) -> str:
    done = "lifted" if trial.task == CUBES else "done"
    result = (
        done
        if episode.success
        else "WRONG OBJECT"
        if episode.wrong
        else f"not {done} ({episode.why})"
    )
    return f"[{number}/{total}] scene {episode.seed}, {episode.condition}: {episode.instruction}: {result}"


def _sim_arguments(options: DemoOptions) -> list[str]:
    chosen = ["-p", "controller_blends:=true"] if options.controller_blends else []
    return ["--ros-args", "-r", f"__ns:={NAMESPACE}", "-r", f"__node:={SIM}",
            "--params-file", str(options.sim_parameters), "-p", f"real_time_factor:={options.real_time_factor}",
            "-p", f"task:={options.trials[0].task}", *chosen]


def _policy_arguments(options: DemoOptions) -> list[str]:
    checkpoint = ["-p", f"checkpoint:={options.checkpoint}"] if options.checkpoint else []
    return ["--ros-args", "-r", f"__ns:={NAMESPACE}", "-r", f"__node:={POLICY}",
            "--params-file", str(options.policy_parameters), "-p", f"added_latency:={options.added_latency}",
            *checkpoint]


@contextmanager
def _child(name: str, module: str, arguments: Sequence[str], logs: Path) -> Iterator[Child]:
    child = Child(name, module, arguments, logs / f"{name}.log", {})
    try:
        yield child
    finally:
        child.stop()


@contextmanager
def _spinning(children: tuple[Child, ...]) -> Iterator[DemoClient]:
    # Python's own handlers: an interrupted run must unwind through the `with` blocks, which end the
    # children.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    examiner = DemoClient(children, NAMESPACE)
    executor = SingleThreadedExecutor()
    executor.add_node(examiner)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, name="examiner", daemon=True)
    thread.start()
    try:
        yield examiner
    finally:
        executor.shutdown()
        thread.join(timeout=5.0)
        examiner.destroy_node()
        rclpy.try_shutdown()


def _examine(examiner: DemoClient, trial: Trial, limit: float) -> tuple[EpisodeResult, EpisodeRecording | None]:
    """One episode: a fresh scene, then success, the wrong object, a policy that gives up, or the
    time limit."""
    # Also after an episode whose policy went astray, was refused again and again, and deactivated
    # itself.
    examiner.activate()
    examiner.pause(True)
    examiner.new_scene(trial.seed, trial.condition == "blanked", trial.task)
    words = trial.instruction or examiner.truth()["instruction"]
    examiner.instruct(words)
    examiner.reset()
    chunks = examiner.chunks
    refusals = examiner.status.refusals
    recording = EpisodeRecording(f"{words} ({trial.condition}, scene {trial.seed})",
                                 tuple(examiner.truth()["joints"])) if trial.keep else None
    examiner.record(recording)
    examiner.watch_steps(True)
    start = examiner.now_ns()
    examiner.pause(False)
    watch = _PublishedTruth(words)

    def over() -> bool:
        late = examiner.now_ns() - start > limit * NANOSECONDS
        return watch.decided(examiner.truth()) or late or examiner.given_up

    examiner.wait_until(over, 60.0 + 10.0 * limit, f"the end of '{words}'")
    end = examiner.now_ns()
    examiner.watch_steps(False)
    if recording:
        examiner.wait_until(lambda: examiner.now_ns() - end > SETTLE_TIME * NANOSECONDS, 60.0, "the last pictures")
    examiner.record(None)
    seconds = (end - start) / NANOSECONDS
    result = EpisodeResult(words, trial.condition, trial.seed, watch.success, watch.wrong,
                           seconds if watch.success else None, examiner.chunks - chunks,
                           int(examiner.status.refusals - refusals), "" if watch.success else watch.judge.why(),
                           watch.judge.taken)
    return result, recording


class _PublishedTruth:
    """The task's judge on the published ground truth, once for every frame."""

    def __init__(self, instruction: str) -> None:
        self.judge = judge_of(instruction)
        self._time = -1.0
        self.success = False
        self.wrong = False

    def decided(self, truth: dict) -> bool:
        if truth["time"] > self._time:
            self._time = truth["time"]
            done, wrong = self.judge.look(TableTruth.from_json(truth))
            self.success = self.success or done
            self.wrong = self.wrong or wrong
        return self.success or self.wrong
