"""How chunks become motion: the settings, and what configure checks about them."""

import math
from dataclasses import dataclass
from typing import Literal

from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.core.schema import require
from robovlms_ros.core.types import RoboVLMsError

Strategy = Literal["first", "receding", "ensemble", "fade", "blend"]

class ScheduleRefused(RoboVLMsError):
    """A plan cannot be scheduled: every step is past, or a value is not finite."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How chunks become motion. Times are seconds.

    strategy: `first`: execute one step, replan (RoboVLMs' own evaluation). `receding`: execute `execute_steps`,
        replan. `ensemble`: ACT's temporal ensembling. `fade`: the newest chunk, joined by an offset that fades out.
        `blend`: the mean of the recent chunks that agree with the newest one, joined likewise.
    lead: how far ahead of now the running plan is left; longer than a message takes to arrive.
    fade_time: how long joining takes (fade, blend); blend takes up to four times as long within acceleration limits.
    memory: age after which a chunk counts 1/e (blend).
    ensemble_decay: ACT's m (ensemble).
    stop_time: shortest time in which a plan that runs out comes to rest.
    """

    strategy: Strategy = "blend"
    execute_steps: int = 8
    lead: float = 0.02
    fade_time: float = 0.25
    memory: float = 0.4
    ensemble_decay: float = 0.01
    stop_time: float = 0.1

    def __post_init__(self) -> None:
        require(self.execute_steps >= 1, "schedule.execute_steps", self.execute_steps, "1 or more")
        for name, low, high in (
            ("lead", 0.001, 1.0),
            ("fade_time", 0.02, 5.0),
            ("memory", 0.01, 100.0),
            ("ensemble_decay", 0.0, 10.0),
            ("stop_time", 0.02, 5.0),
        ):
            value = getattr(self, name)
            require(low <= value <= high, f"schedule.{name}", value, f"from {low:g} to {high:g}")


def horizon_shortfall(
    horizon: int, step_duration: float, latency_p99: float, replan_period: float, lead: float
) -> str | None:
    """Why a chunk of `horizon` steps is too short to move without a pause, or None: times in seconds.

    A chunk must last until its successor takes over: horizon * step >= latency p99 + replan period + lead.
    """
    has, needs = horizon * step_duration, latency_p99 + replan_period + lead
    if has >= needs:
        return None
    return (
        f"a chunk of {horizon} steps of {step_duration:.3f} s lasts {has:.3f} s, but its successor takes over after "
        f"{needs:.3f} s (latency p99 {latency_p99:.3f} + replan period {replan_period:.3f} + lead {lead:.3f}): the arm "
        f"would stop between chunks. Needed: a horizon of {math.ceil(needs / step_duration)} steps, or a faster policy."
    )


def latency_excess(robot: RobotSpec, latency_p99: float) -> str | None:
    """Why answers would be refused as too old, or None. latency_p99: s from an image's stamp to its command."""
    if latency_p99 <= robot.max_latency:
        return None
    return (
        f"{latency_p99:.3f} s pass from an image to the command that answers it (p99), {robot.name} allows max_latency "
        f"= {robot.max_latency} s: the gate would refuse such chunks. Needed: a faster policy, or a larger max_latency "
        "in the robot's YAML, if its surroundings may change unseen for so long."
    )
