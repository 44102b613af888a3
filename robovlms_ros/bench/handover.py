"""Take-overs in tabletop episodes: steps and success at hand-overs, beside the policy alone.

Each scene runs twice: by the policy alone, and with a take-over at a random moment of that episode.
"""

import argparse
import datetime
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from robovlms_ros.bench.handover_stage import ROBOT, HandoverStage, TakeOver
from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.statistics import wilson_interval
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import (
    NANOSECONDS,
    RoboVLMsError,
)
from robovlms_ros.sim.tasks.base import TABLE_TASKS
from robovlms_ros.sim.tasks.evaluate import TIME_LIMIT
from robovlms_ros.sim.world import TICK_NS

WINDOW_NS = NANOSECONDS
"""The motion from a hand-over on, for so long, is compared with that of the policy alone."""

DRIVES = (0.5, 2.0)
"""s for which the person drives, drawn uniformly."""

AIM = 1.1
"""Largest step at a hand-over over that of the policy alone."""


@dataclass(frozen=True)
class HandoverRow:
    """One scene. Largest steps (mrad per 2 ms) and accelerations (rad/s^2) of the commands: of the
    policy alone over its episode, and in the second after each hand-over."""

    task: str
    seed: int
    begin_s: float
    drives_s: float
    alone_success: bool
    success: bool
    alone_step: float
    alone_acceleration: float
    take_step: float
    take_acceleration: float
    back_step: float
    back_acceleration: float
    frames: int
    lost: int
    back_s: float | None
    person_commands: int
    refusals: int


def measure(stage: HandoverStage, task: str, seed: int) -> HandoverRow:
    """Run one scene by the policy alone and with a take-over."""
    alone = stage.run(task, seed, None)
    rng = np.random.default_rng((seed, list(TABLE_TASKS).index(task), 7))
    # The first 0.3 s have no chunk yet; the last moments are no episode to hand back to.
    ends = alone.success_s or TIME_LIMIT
    begin = float(rng.uniform(0.3, max(0.4, ends - 0.5)))
    take_over = TakeOver(begin, float(rng.uniform(*DRIVES)))
    driven = stage.run(task, seed, take_over)
    assert driven.begin_tick is not None and driven.back_tick is not None
    window = WINDOW_NS // TICK_NS
    alone_step, alone_acceleration = alone.peaks()
    take = driven.peaks(driven.begin_tick, min(driven.begin_tick + window, driven.back_tick))
    back = driven.peaks(driven.back_tick, driven.back_tick + window)
    return HandoverRow(
        task, seed, take_over.begin, take_over.duration, alone.success_s is not None,
        driven.success_s is not None, alone_step, alone_acceleration, *take, *back, driven.frames,
        driven.lost, driven.back_s, driven.person_commands, driven.refusals,
    )


def summary(rows: Sequence[HandoverRow]) -> dict[str, Any]:
    """The figures of the page: worst steps, their ratios to the policy alone, frames, success."""
    count = len(rows)
    steps = {
        name: max(getattr(row, f"{name}_step") for row in rows)
        for name in ("alone", "take", "back")
    }
    accelerations = {
        name: max(getattr(row, f"{name}_acceleration") for row in rows)
        for name in ("alone", "take", "back")
    }
    success = sum(row.success for row in rows)
    alone = sum(row.alone_success for row in rows)
    delays = [row.back_s for row in rows if row.back_s is not None]
    return {
        "take_overs": count,
        "step_mrad": steps,
        "acceleration": accelerations,
        "step_ratio": max(steps["take"], steps["back"]) / steps["alone"],
        "acceleration_ratio": max(accelerations["take"], accelerations["back"])
        / accelerations["alone"],
        "frames": sum(row.frames for row in rows),
        "lost_frames": sum(row.lost for row in rows),
        "success": success,
        "success_ci95": list(wilson_interval(success, count)),
        "alone_success": alone,
        "alone_ci95": list(wilson_interval(alone, count)),
        "longest_to_policy_s": max(delays, default=None),
        "person_commands": sum(row.person_commands for row in rows),
        "refusals": sum(row.refusals for row in rows),
    }


def run(args: argparse.Namespace) -> int:
    """Measure; returns 1 where a step is beyond the aim or a frame is lost."""
    if args.take_overs < 1:
        raise RoboVLMsError(f"--take-overs {args.take_overs}: must be 1 or more.")
    tasks = list(TABLE_TASKS)
    stage = HandoverStage(args.checkpoint)
    rows = []
    try:
        for index in range(args.take_overs):
            row = measure(stage, tasks[index % len(tasks)], args.seed + index // len(tasks))
            rows.append(row)
            found = summary(rows)
            # After every scene: an interrupted run keeps its numbers.
            write_json(args.json, {**found, "rows": [asdict(row) for row in rows]})
            if args.markdown:
                args.markdown.write_text(page(found, args.checkpoint), encoding="utf-8")
            outcome = f"alone {_word(row.alone_success)}, take-over {_word(row.success)}"
            count = f"{index + 1}/{args.take_overs}"
            print(f"[{count}] {row.task}, scene {row.seed}: {outcome}", flush=True)
    finally:
        stage.close()
    print(aligned(*_table(found)))
    return int(found["step_ratio"] > AIM or found["lost_frames"] > 0)


def _word(success: bool) -> str:
    return "success" if success else "failure"


def _table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    def success(name: str, interval: str) -> str:
        low, high = found[interval]
        return f"{found[name]} of {found['take_overs']} ({low:.0%} to {high:.0%})"

    header = ["", "policy alone", "take-over", "hand-back"]
    steps = found["step_mrad"]
    accelerations = found["acceleration"]
    return header, [
        ["worst command step (mrad per 2 ms)", *(f"{steps[k]:.2f}" for k in steps)],
        ["worst acceleration (rad/s²)", *(f"{accelerations[k]:.1f}" for k in accelerations)],
        ["success", success("alone_success", "alone_ci95"), "", success("success", "success_ci95")],
    ]


def page(found: dict[str, Any], checkpoint: str) -> str:
    """The text of docs/results/handover.md."""
    header, lines = _table(found)
    table = "\n".join(
        f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines]
    )
    today = datetime.date.today().isoformat()
    count = found["take_overs"]
    policy = f"`config/checkpoints/{checkpoint}`" if checkpoint else "the scripted expert"
    limits = load_robot(ROBOT).limits.acceleration
    delay = 1e3 * (found["longest_to_policy_s"] or 0.0)
    low, high = DRIVES
    intro = (
        f"Measured {today}: {count} scenes of the [tabletop tasks](../tabletop_tasks.md), each "
        "once by the policy alone and once with a take-over at a random moment. Time is the "
        "simulator's: the figures do not depend on the machine."
    )
    points = (
        f"Ratio of the worst step at a hand-over to that of the policy alone: "
        f"{found['step_ratio']:.2f}; aim: at most {AIM}. Of the worst acceleration: "
        f"{found['acceleration_ratio']:.2f}; the joints' limits are {min(limits):g} to "
        f"{max(limits):g} rad/s².",
        f"Lost frames: {found['lost_frames']} of {found['frames']}. The policy's history receives "
        "the images while the person drives, too.",
        f"Longest time from `~/hand_back` to the policy's first command: {delay:.0f} ms. The "
        "person's last motion goes on for 300 ms: the arm does not pause.",
        f"Refused chunks: {found['refusals']}. The first one or two chunks of an episode come "
        "before the joint states give a speed.",
    )
    method = (
        f"The policy is {policy}. The person is the scripted expert: {found['person_commands']} "
        f"tool velocities on `~/human/twist`, 20 a second, and openings on `~/human/gripper`, for "
        f"{low} to {high} s. Steps are those of the simulated arm's trajectory controller, in the "
        "second after each hand-over. An episode succeeds if the task is done after the hand-back. "
        "Runner, scheduler, gate and motion guard are the node's own; messages are delivered in "
        "one process."
    )
    bullets = "\n".join(_wrapped(f"* {point}", "  ") for point in points)
    return f"""# Take-overs and hand-backs

{_wrapped(intro)}

    ./scripts/run robovlms bench handover --take-overs {count} --markdown FILE

{table}

{bullets}

{_wrapped(method)}
"""


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 98, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
