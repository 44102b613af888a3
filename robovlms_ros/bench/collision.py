"""The gate's collision check against MuJoCo's contacts, the tabletop's expert, and by the clock.

Driven chunks lead from near home to a random configuration. One is kept where the simulator's
kinematics meets the table, a post or the arm itself on the way. The chunk is then executed through
planner, scheduler, gate and controller, and repeated every REPLAN seconds from where the arm is, as
by a policy that insists. The simulator's contact list is the judge.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robovlms_ros.control.collision import CollisionChecker
from robovlms_ros.control.collision_model import load_collision_model
from robovlms_ros.control.collision_solids import CollisionModel
from robovlms_ros.control.executor import ChunkExecutor, Decision, build_executor
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import CommandRejected
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.safety_gate import SafetyGate
from robovlms_ros.control.schedule import ScheduleConfig
from robovlms_ros.control.scheduler import ChunkScheduler
from robovlms_ros.control.trajectory import Array, central_differences, curve_of
from robovlms_ros.core.rotations import matrix_from_vector
from robovlms_ros.core.schema import require
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, JointPlan, RobotState
from robovlms_ros.sim.contacts import PostWorld, count_expert

STEPS = 30
STEP = 1 / 20
"""Seconds a step: 1.5 s a chunk."""
REPLAN = 0.3
REPETITIONS = 3
SPEED = 0.3
"""Part of the joints' speed limits: the simulated motors follow it."""
FALSE_ALARMS = 0.01
"""Part of the expert's chunks that the check may stop."""
TIME_HEADER = ("chunks", "n", "gate without", "sweep", "gate with", "ratio")
KINDS = ("table", "post", "itself")
DRIVEN_HEADER = ("kind", "chunks", "contacts_without", "contacts", "pass", "clamp", "refuse")


def joint_spec(robot: RobotSpec) -> ActionSpec:
    """Joint positions, without a gripper."""
    return ActionSpec(
        "joint_position", "base", "rotation_vector", "from_observation", STEP, robot.joints
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables; 1 for a contact or more than FALSE_ALARMS of the expert's chunks."""
    for name in ("chunks", "timed"):
        value = getattr(args, name)
        require(value >= len(KINDS), f"--{name}", value, f"{len(KINDS)} or more")
    print(f"time of the gate on chunks of {STEPS} steps (ms, median / 99th percentile)")
    times = measure_time(args.timed, args.seed)
    print(aligned(TIME_HEADER, [row.cells() for row in times]), flush=True)
    print("\nchunks driven into a body")
    driven = list(drive_all(PostWorld(), args.chunks // len(KINDS), args.seed))
    lines = [[str(row[name]) for name in DRIVEN_HEADER] for row in driven]
    print(aligned(DRIVEN_HEADER, lines, numbers=True), flush=True)
    counts, succeeded, episodes = count_expert(args.expert)
    chunks = sum(counts[kind] for kind in ("pass", "clamp", "refuse"))
    alarms = counts["collision"]
    print(f"\nexpert: {succeeded} of {episodes} episodes, {alarms} of {chunks} chunks stopped")
    expert = {**counts, "succeeded": succeeded, "episodes": episodes}
    content = {"time": [vars(row) for row in times], "driven": driven, "expert": expert}
    write_json(args.json, content)
    missed = alarms > FALSE_ALARMS * chunks or any(row["contacts"] for row in driven)
    return int(missed)


@dataclass(frozen=True)
class DrivenChunk:
    """start, goal (7,) rad; kind: the body that the straight way meets first."""

    start: Array
    goal: Array
    kind: str


def driven_chunks(
    world: PostWorld, robot: RobotSpec, count: int, seed: int
) -> Iterator[DrivenChunk]:
    """`count` chunks a kind, from a free start through the table, the post or the arm itself."""
    rng = np.random.default_rng(seed)
    missing = {kind: count for kind in KINDS}
    low = robot.lower() + 0.05
    high = robot.upper() - 0.05
    while any(missing.values()):
        start = np.clip(np.array(robot.home) + rng.normal(0.0, 0.15, 7), low, high)
        goal = np.clip(np.array(robot.home) + rng.normal(0.0, 0.9, 7), low, high)
        if missing["itself"] and not (missing["table"] or missing["post"]):
            goal = rng.uniform(low, high)
        if world.contacts_at(start):
            continue
        for share in np.linspace(0.0, 1.0, 60):
            found = world.contacts_at(start + share * (goal - start))
            if found:
                kind = world.kind_of(found)
                if missing.get(kind):
                    missing[kind] -= 1
                    yield DrivenChunk(start, goal, kind)
                break


@dataclass
class DriveResult:
    """The end of one driven chunk. contacts: pairs of bodies that met in the simulator."""

    chunk: DrivenChunk
    verdicts: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    contacts: set[tuple[str, str]] = field(default_factory=set)


def drive(
    world: PostWorld, robot: RobotSpec, collision: CollisionModel | None, chunk: DrivenChunk
) -> DriveResult:
    """Execute one driven chunk in the simulator's physics, repeated from where the arm is."""
    world.reset(0)
    world.set_arm(chunk.start)
    executor = build_executor(robot, None, collision=collision)
    result = DriveResult(chunk)
    begin_ns = world.time_ns
    end_ns = begin_ns + round((_duration(robot, chunk.goal - chunk.start) + 1.0) * NANOSECONDS)
    next_ns = begin_ns
    while world.time_ns < end_ns:
        now = world.time_ns
        if now >= next_ns:
            next_ns += round(REPLAN * NANOSECONDS)
            decision = _send(world, executor, robot, chunk, now)
            result.verdicts.append(decision.verdict.kind)
            result.reasons.append(decision.verdict.reason)
        world.step()
        result.contacts |= world.contacts()
        if result.contacts:
            break
    return result


def _duration(robot: RobotSpec, way: Array) -> float:
    """Seconds of a way (7,) at SPEED."""
    return float(np.max(np.abs(way) / (SPEED * np.array(robot.limits.velocity))))


def _send(
    world: PostWorld, executor: ChunkExecutor, robot: RobotSpec, chunk: DrivenChunk, now: int
) -> Decision:
    state = world.joint_state()
    commanded = executor.commanded(now)
    here = state.positions if commanded is None else commanded[0]
    way = chunk.goal - here
    shares = np.minimum(1.0, STEP * np.arange(1, STEPS + 1) / max(_duration(robot, way), STEP))
    values = here + shares[:, None] * way
    action = ActionChunk(now, values.astype(np.float32), joint_spec(robot), "drive", "bench", 0)
    decision = executor.on_chunk(action, state, state, now)
    command: Any = decision.command
    if command is None and executor.commanded(now) is not None:
        # As in the node: where no stop is sent, the last command ends at rest by itself.
        with suppress(CommandRejected):
            command = executor.smooth_stop(now)
    if command is not None:
        world.arm_controller.accept(command, now)
    return decision


def drive_all(world: PostWorld, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """One row per kind: chunks, verdicts, and chunks with a contact, with and without the check."""
    robot = world.robot(fingers_may_touch=False)
    collision = load_collision_model(robot)
    chunks = list(driven_chunks(world, robot, count, seed))
    for kind in KINDS:
        chosen = [chunk for chunk in chunks if chunk.kind == kind]
        checked = [drive(world, robot, collision, chunk) for chunk in chosen]
        unchecked = [drive(world, robot, None, chunk) for chunk in chosen]
        verdicts = Counter(verdict for result in checked for verdict in result.verdicts)
        yield {
            "kind": kind,
            "chunks": len(chosen),
            **{verdict: verdicts[verdict] for verdict in ("pass", "clamp", "refuse")},
            "contacts": sum(bool(result.contacts) for result in checked),
            "contacts_without": sum(bool(result.contacts) for result in unchecked),
            "pairs": sorted({pair for result in checked for pair in result.contacts}),
        }


@dataclass(frozen=True)
class TimeRow:
    """Times of the gate for a chunk, ms of processor time: (median, 99th percentile)."""

    scene: str
    chunks: int
    without: tuple[float, float]
    sweep: tuple[float, float]
    whole: tuple[float, float]

    def cells(self) -> list[str]:
        """The row of TIME_HEADER."""
        times = [f"{p50:.2f} / {p99:.2f}" for p50, p99 in (self.without, self.sweep, self.whole)]
        return [self.scene, str(self.chunks), *times, f"{self.whole[0] / self.without[0]:.1f}"]


def measure_time(chunks: int, seed: int = 0) -> list[TimeRow]:
    """The gate with and without the check on chunks of STEPS steps: lines, and driven ones."""
    world = PostWorld()
    robot = world.robot(fingers_may_touch=True)
    collision = load_collision_model(robot)
    kinematics = Kinematics.for_robot(robot)
    rng = np.random.default_rng(seed)
    tabletop = [_tabletop_plan(kinematics, robot, rng) for _ in range(chunks)]
    driven = [_driven_plan(robot, c) for c in driven_chunks(world, robot, chunks // 6, seed)]
    rows = []
    for name, plans in (("lines of 0.2 m above the table", tabletop), ("into a body", driven)):
        times = np.array([_gate_times(robot, kinematics, collision, *plan) for plan in plans])
        p50, p99 = np.percentile(1e3 * times, [50, 99], axis=0)
        pairs = [(float(p50[i]), float(p99[i])) for i in range(3)]
        rows.append(TimeRow(name, len(plans), *pairs))
    return rows


def _tabletop_plan(
    kinematics: Kinematics, robot: RobotSpec, rng: np.random.Generator
) -> tuple[JointPlan, Array]:
    """A straight line with a turn, 0.15 m/s and 0.3 rad/s on average, from rest to rest."""
    start = np.array(robot.home) + rng.normal(0.0, 0.1, len(robot.joints))
    pose = kinematics.forward(start)
    shift, turn = (rng.normal(size=3) for _ in range(2))
    shift *= 0.15 * STEP / np.linalg.norm(shift)
    turn *= 0.3 * STEP / np.linalg.norm(turn)
    share = np.linspace(0.0, 1.0, STEPS + 1)[1:, None]
    count = STEPS * share**2 * (3.0 - 2.0 * share)
    targets = np.tile(pose, (STEPS, 1, 1))
    targets[:, :3, 3] += count * shift
    targets[:, :3, :3] = matrix_from_vector(count * turn) @ pose[:3, :3]
    return _plan(np.vstack([start, kinematics.inverse(targets, start).positions]))


def _driven_plan(robot: RobotSpec, chunk: DrivenChunk) -> tuple[JointPlan, Array]:
    way = chunk.goal - chunk.start
    shares = np.minimum(1.0, STEP * np.arange(STEPS + 1) / _duration(robot, way))
    return _plan(chunk.start + shares[:, None] * way)


def _plan(positions: Array) -> tuple[JointPlan, Array]:
    """A plan and the pose at rest from which it begins, the first row."""
    times_ns = NANOSECONDS + np.arange(len(positions)) * round(STEP * NANOSECONDS)
    velocities = central_differences(times_ns, positions)
    return JointPlan(times_ns[1:], positions[1:], velocities[1:]), positions[0]


def _gate_times(
    robot: RobotSpec,
    kinematics: Kinematics,
    collision: CollisionModel | None,
    plan: JointPlan,
    start: Array,
) -> tuple[float, float, float]:
    """Seconds of the gate without the check, of one sweep of the command, and of the gate with it.

    Each is the least of REPETITIONS: other processes share the machine's caches.
    """
    now = NANOSECONDS
    measured = RobotState(now, start)
    scheduler = ChunkScheduler(robot.joints, ScheduleConfig(), robot.limits)
    command = scheduler.propose(plan, now, measured)
    assert collision is not None
    checker = CollisionChecker(collision)
    curve = curve_of(command)
    gates = [SafetyGate(robot, kinematics, model) for model in (None, collision)]
    spent = np.empty((REPETITIONS, 3))
    for row in spent:
        for gate in gates:
            gate.reset()
        begin = time.thread_time()
        gates[0].check(command, measured, now, now)
        row[0] = time.thread_time() - begin
        begin = time.thread_time()
        checker.sweep(curve, now)
        row[1] = time.thread_time() - begin
        begin = time.thread_time()
        gates[1].check(command, measured, now, now)
        row[2] = time.thread_time() - begin
    without, sweep, whole = spent.min(axis=0).tolist()
    return without, sweep, whole
