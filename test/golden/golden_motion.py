"""Golden answers of the executor: plans, verdicts, trajectories and stops on recorded chunks.

Plans and trajectories are thinned; a digest covers the whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import api
import golden_inputs as inputs
import numpy as np
from golden_inputs import MILLISECOND, ONE, OTHER, SECOND, STEP, Answers
from golden_store import DIGEST, digest
from numpy.typing import NDArray

POSITION = ("joint_position", "base", "rotation_vector", "chained")
JOINT_DELTA = ("joint_delta", "base", "rotation_vector", "chained")
JOINT_FROM = ("joint_delta", "base", "rotation_vector", "from_observation")
DELTA = ("eef_delta", "base", "rotation_vector", "chained")
TOOL = ("eef_delta", "tool", "euler_xyz_extrinsic", "from_observation")
POSE = ("eef_pose", "base", "euler_xyz_intrinsic", "from_observation")
EVENTS = {
    2: "fast",
    4: "not finite",
    5: "late computing",
    6: "far",
    7: "stop",
    8: "after stop",
    9: "old joint state",
    10: "restart",
    11: "other instruction",
    12: "wholly past",
    13: "much too fast",
    14: "reset",
    15: "moving",
    16: "dry run",
    17: "dry run",
    18: "dry run away",
    20: "jumped",
}
"""The chunk of each number that is unlike the others."""
SCENARIOS: dict[str, tuple[str, str, Sequence[str], Mapping[int, str], int]] = {
    # robot, strategy, the chunks' meaning, events, chunks
    "position": ("panda", "blend", POSITION, EVENTS, 22),
    "joint_delta": ("panda", "blend", JOINT_DELTA, EVENTS, 12),
    "joint_from_observation": ("panda", "blend", JOINT_FROM, {}, 5),
    "eef_delta": ("panda", "blend", DELTA, EVENTS, 22),
    "eef_tool": ("panda", "blend", TOOL, {3: "fast", 5: "stop"}, 7),
    "eef_pose": ("panda", "blend", POSE, {3: "far", 5: "stop"}, 7),
    "first": ("panda", "first", POSITION, {3: "fast", 5: "stop"}, 7),
    "receding": ("panda", "receding", POSITION, {3: "fast", 5: "stop"}, 7),
    "ensemble": ("panda", "ensemble", POSITION, {3: "fast", 5: "stop"}, 7),
    "fade": ("panda", "fade", DELTA, {3: "fast", 5: "stop"}, 7),
    "ur5e": ("ur5e", "blend", DELTA, {3: "fast", 4: "stop"}, 6),
    "widowx": ("widowx", "blend", POSITION, {3: "fast", 4: "stop"}, 6),
    "refusals": ("panda", "blend", POSITION, dict.fromkeys(range(1, 34), "not finite"), 34),
    "so101": ("so101", "blend", POSITION, {3: "fast", 4: "stop"}, 6),
}


def motion() -> Answers:
    """Decisions and trajectories of a 10 Hz policy with a jittering latency, on recorded chunks."""
    return {name: scenario(*given) for name, given in SCENARIOS.items()}


def scenario(
    robot: str, strategy: str, kind: Sequence[str], events: Mapping[int, str], count: int
) -> Answers:
    """One run: the numbers of every decision, and the commanded motion between them."""
    arm = Run(api.Stage(robot, strategy, kind[0].startswith("eef")), kind)
    rng = np.random.default_rng(5)
    for index in range(count):
        arm.step(index, events.get(index, ""), int(rng.uniform(25.0, 90.0) * MILLISECOND))
    return arm.answers()


class Run:
    """The arm follows its commands; decisions are collected."""

    def __init__(self, stage: api.Stage, kind: Sequence[str]) -> None:
        self._stage = stage
        self._kind = kind
        self._at = stage.home.copy()
        self._decisions: list[Answers] = []
        self._commanded: list[NDArray[np.float64]] = []
        self._grippers: list[float | None] = []

    def step(self, index: int, event: str, latency_ns: int) -> None:
        """One chunk: its image's stamp, the event, its decision, and the motion after it."""
        stage = self._stage
        stamp_ns = SECOND + 100 * MILLISECOND * index
        if event == "restart":
            stage.restart()
        elif event == "reset":
            stage.reset()
        then = self._position(stamp_ns)
        now_ns = stamp_ns + latency_ns
        measured = self._position(now_ns)
        measured_ns = now_ns - 4 * MILLISECOND
        chunk = self._chunk(index, event, stamp_ns, then)
        given: Answers = {}
        if event == "old joint state":
            measured_ns = now_ns - 2 * SECOND
        elif event == "late computing":
            given["clock"] = api.ticking(now_ns, 30 * MILLISECOND, 4 * MILLISECOND)
        elif event == "moving":
            stage.reset()
            given["speed"] = np.full(len(stage.home), 0.2)
        elif event.startswith("dry run"):
            given["dry"] = True
        if event in ("dry run away", "jumped"):
            measured = measured + 0.3
        self._keep(
            stage.decide(chunk, (stamp_ns, then), (measured_ns, measured), now_ns, **given),
            event,
            now_ns,
        )
        if event == "stop":
            self._keep(stage.smooth_stop(now_ns + 5 * MILLISECOND), "stop", now_ns)

    def _position(self, t_ns: int) -> NDArray[np.float64]:
        """The commanded position at a time; the last one where nothing is commanded."""
        commanded = self._stage.commanded(t_ns)
        if commanded is not None:
            self._at = commanded[0]
        return self._at

    def _chunk(self, index: int, event: str, stamp_ns: int, then: NDArray[np.float64]) -> Any:
        stage = self._stage
        space = self._kind[0]
        scale = {"fast": 8.0, "much too fast": 60.0}.get(event, 1.0)
        if space.startswith("joint"):
            values = inputs.reach(stamp_ns, stage.home)
            values = stage.home + scale * (values - stage.home) if scale < 10.0 else values * scale
            if space == "joint_delta":
                steps = np.diff(values, axis=0, prepend=then[None])
                values = steps if self._kind[3] == "chained" else values - then
        elif space == "eef_delta":
            values = inputs.deltas(index, scale=scale)
            values = values if self._kind[3] == "chained" else np.cumsum(values, axis=0)
        else:
            values = inputs.poses(stamp_ns, stage.forward(stage.home))
        if event == "not finite":
            values[3, 2] = np.nan
        elif event == "far":
            values[:, :3] += 1.5
        elif event == "wholly past":
            values = values[:1]
        values = np.hstack([values, inputs.openings(index, len(values))])
        words = OTHER if event == "other instruction" else ONE
        step = 0.01 if event == "wholly past" else STEP
        return stage.chunk(stamp_ns, values, self._kind, step, words)

    def _keep(self, decision: Answers, event: str, now_ns: int) -> None:
        self._decisions.append({"event": event, **decision})
        for later in (0, 40, 80):
            commanded = self._stage.commanded(now_ns + later * MILLISECOND)
            nothing = np.full((2, len(self._stage.home)), np.nan)
            self._commanded.append(nothing if commanded is None else np.stack(commanded))
        self._grippers.append(self._stage.gripper_at(now_ns + 80 * MILLISECOND))

    def answers(self) -> Answers:
        """Everything that was decided; of trajectories and plans every fourth point."""
        decisions = self._decisions
        commands = [
            decision["command"] for decision in decisions if decision["command"] is not None
        ]
        plans = [decision["plan"] for decision in decisions if decision["plan"] is not None]
        return {
            "decisions": [
                [decision[name] for name in ("event", "kind", "reason", "deactivate", "gripper")]
                for decision in decisions
            ],
            "grippers": self._grippers,
            "commanded": np.stack(self._commanded),
            "command_stamps": np.array([command[0] for command in commands]),
            "command_lengths": np.array([len(command[1]) for command in commands]),
            "times": np.concatenate([command[1] for command in commands])[::4],
            "positions": np.concatenate([command[2] for command in commands])[::4],
            "velocities": np.concatenate([command[3] for command in commands])[::4],
            "plan_positions": np.concatenate([plan[1] for plan in plans])[::8],
            "plan_velocities": np.concatenate([plan[2] for plan in plans])[::8],
            DIGEST: digest(
                *[part for command in commands for part in command[1:]],
                *[part for plan in plans for part in plan],
            ),
        }
