"""Settings of chunk scheduling, and their checks at configure."""

import math
from dataclasses import dataclass
from typing import Literal

from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.schema import check_ranges, parameter
from robovlms_ros.core.types import RoboVLMsError

Strategy = Literal["first", "receding", "ensemble", "fade", "blend"]


class ScheduleRefused(RoboVLMsError):
    """A plan cannot be scheduled: every step is past, or a value is not finite."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Settings by which chunks become motion; part of the node's parameters."""

    strategy: Strategy = parameter(
        "blend",
        "Execution of chunks. blend: the mean of the recent chunks that agree with the newest one, "
        "joined smoothly; fade: the newest chunk, joined smoothly; ensemble: ACT's temporal "
        "ensembling; receding: execute_steps steps, then replan; first: one step, then replan "
        "(RoboVLMs' own evaluation).",
    )
    execute_steps: int = parameter(
        8, "Steps executed of each chunk (receding).", low=1, high=1000
    )
    lead: float = parameter(
        0.02,
        "Part of the running plan, from now on, that is left as it is; longer than a message takes "
        "to arrive.",
        unit="s", low=0.001, high=1.0,
    )
    fade_time: float = parameter(
        0.25,
        "Duration of joining the running plan (fade, blend); blend takes up to four times as long "
        "to stay within acceleration limits.",
        unit="s", low=0.02, high=5.0,
    )
    memory: float = parameter(
        0.4, "Age at which a chunk counts 1/e (blend).", unit="s", low=0.01, high=100.0
    )
    ensemble_decay: float = parameter(
        0.01, "Decay of the weights by age, ACT's m (ensemble).", low=0.0, high=10.0
    )
    stop_time: float = parameter(
        0.1, "Shortest duration of a smooth stop.", unit="s", low=0.02, high=5.0
    )

    def __post_init__(self) -> None:
        check_ranges(self, "schedule")


def horizon_shortfall(
    horizon: int, step_duration: float, latency_p99: float, replan_period: float, lead: float
) -> str | None:
    """Reason for a chunk of `horizon` steps to be too short to move without a pause, or None: times
    in seconds.

    A chunk must last until its successor takes over: horizon * step >= latency p99 + replan period
    + lead.
    """
    has = horizon * step_duration
    needs = latency_p99 + replan_period + lead
    if has >= needs:
        return None
    return (
        f"a chunk of {horizon} steps of {step_duration:.3f} s lasts {has:.3f} s, but its successor takes over after "
        f"{needs:.3f} s (latency p99 {latency_p99:.3f} + replan period {replan_period:.3f} + lead {lead:.3f}): the arm "
        f"would stop between chunks. Needed: a horizon of {math.ceil(needs / step_duration)} steps, or a faster policy."
    )


def latency_excess(robot: RobotSpec, latency_p99: float) -> str | None:
    """Reason for answers to be refused as too old, or None. latency_p99: s from an image's stamp to
    its command."""
    if latency_p99 <= robot.max_latency:
        return None
    return (
        f"{latency_p99:.3f} s pass from an image to the command that answers it (p99), {robot.name} allows max_latency "
        f"= {robot.max_latency} s: the gate would refuse such chunks. Needed: a faster policy, or a larger max_latency "
        "in the robot's YAML, if its surroundings may change unseen for so long."
    )
