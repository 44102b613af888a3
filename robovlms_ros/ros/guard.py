"""What stands in a policy's way now: unusable messages, the watchdog's faults, the controller's own complaints."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.control.executor import ChunkExecutor
from robovlms_ros.control.standstill import JointSample
from robovlms_ros.control.watchdog import ARM_NOT_FOLLOWING, Action
from robovlms_ros.core.types import Observation, RobotState
from robovlms_ros.ros.controllers.base import Arm
from robovlms_ros.ros.watch import Watch

Array = NDArray[np.float64]

UNTRUSTED = {
    "joint_states_stale",
    "joint_states_implausible",
    "controller_shared",
    "controller_absent",
    "clock_jumped",
}
"""Faults during which a set point does not return to the measured arm."""


class ObservationSource(Protocol):
    """What the pilot asks of the node's inputs."""

    @property
    def instruction(self) -> str:
        """The task in force, empty while there is none."""

    def state_at(self, stamp_ns: int) -> RobotState:
        """The arm at an image's stamp; raises ObservationError."""

    def measured(self) -> RobotState | None:
        """The arm's newest state."""

    def speed(self) -> Array:
        """(J,) the arm's measured speed, rad/s; infinite where the joint states do not cover enough time."""

    def problem(self, now_ns: int) -> str | None:
        """What is wrong with what came in, None when all is well."""

    def where(self, fault: str) -> str:
        """The topic behind a watchdog's fault, empty where there is none."""

    def clear_joint_states(self) -> None:
        """Forget the joint states: the next ones need not be reachable from the last."""

    def clear(self) -> None:
        """Forget images and joint states, as after a clock jump. The instruction stays."""


class Worker(Protocol):
    """What the pilot asks of the inference worker."""

    @property
    def inferring_since_ns(self) -> int | None:
        """When the inference in progress began."""

    def submit(self, observation: Observation) -> None:
        """Take a frame; never blocks."""

    def reset(self) -> None:
        """Forget the history and drop what is in flight."""


class Guard:
    """Feeds the watchdog what the inputs cannot know, and asks it. Not thread-safe; the watch is.

    executor, arm: None where nothing is commanded. log: called with a line when a fault appears or is gone.
    """

    def __init__(self, senses: ObservationSource, watch: Watch, executor: ChunkExecutor | None, arm: Arm | None,
                 log: Callable[[str], None]) -> None:
        self._senses, self._watch, self._executor, self._arm, self._log = senses, watch, executor, arm, log
        self._standstill_ended = False

    def tell(self, worker: Worker | None, now_ns: int) -> None:
        """How inference and arm are doing. Call at every tick."""
        since = None if worker is None else worker.inferring_since_ns
        sample = self._sample()
        joint, error = self._following(sample) or ("", 0.0)
        joints = () if self._executor is None else self._executor.robot.joints
        with self._watch as dog:
            if since is not None:
                dog.inference_started(since)
            dog.following(joint, error, now_ns)
            dog.moving(sample, joints, now_ns)
            if self._executor is not None and not dog.suspects_standstill:
                self._executor.gate.probing = False

    def _sample(self) -> JointSample | None:
        """The arm, commanded and measured, at its newest stamp; None while nothing is commanded."""
        if self._arm is None or self._executor is None:
            return None
        measured = self._senses.measured()
        commanded = None if measured is None else self._executor.commanded(measured.stamp_ns)
        if measured is None or commanded is None:
            return None
        return JointSample(measured.stamp_ns, commanded[0], measured.positions)

    def _following(self, sample: JointSample | None) -> tuple[str, float] | None:
        """The joint furthest from its command, and its distance (rad); None without a command."""
        if self._arm is None or self._executor is None:
            return None
        reported = self._arm.following()
        if reported is not None or sample is None:
            return reported
        errors = np.abs(sample.commanded - sample.measured)
        worst = int(np.argmax(errors))
        return self._executor.robot.joints[worst], float(errors[worst])

    @property
    def set_point_may_return(self) -> bool:
        """True during a standstill of the arm, unless its measured pose is in doubt."""
        with self._watch as dog:
            present = {fault.name for fault in dog.present}
        return ARM_NOT_FOLLOWING in present and not present & UNTRUSTED

    def take_standstill_end(self) -> bool:
        """True once after `faults` saw the end of a standstill."""
        ended = self._standstill_ended
        self._standstill_ended = False
        return ended

    def faults(self, now_ns: int) -> tuple[Action, str]:
        """What the arm must do now, and why: unusable messages first, then the watchdog's, then the controller's."""
        with self._watch as dog:
            if self._arm is not None:  # counted at every question: a chunk may come before the first tick
                dog.controller(self._arm.name, self._arm.listeners())
                dog.commanders(self._arm.name, self._arm.other_commanders())
            report = dog.check(now_ns)
            suspect = dog.suspects_standstill
        for fault in report.raised:
            self._log(f"fault: {fault.text}")
        for fault in report.recovered:
            self._log(f"recovered: {fault.name}")
            if fault.name == ARM_NOT_FOLLOWING and self._executor is not None:
                self._executor.gate.probing = suspect
                self._standstill_ended = True
        worst = report.faults[:1]
        if report.action == "stop":
            return "stop", worst[0].text
        problem = self._senses.problem(now_ns)
        if problem is not None:
            return "hold", problem
        told = None if self._arm is None else self._arm.problem()
        if told is not None and report.action != "hold":
            return "hold", told
        if not worst:
            return "none", ""
        topic = self._senses.where(worst[0].name)
        return report.action, f"{worst[0].text} ({topic})" if topic else worst[0].text
