"""Detection of faults around a running policy, and the arm's reaction to each.

Camera, joint state and inference callbacks report events; `poll` and `react` run at every tick and
before every chunk. No clock is read: every time is an argument, so simulated time, pauses and
looping bags behave alike. Faults are reported with those that appeared or disappeared since the
last check: logs and status carry edges, not levels.
"""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from robovlms_ros.control.camera_check import CameraCheck
from robovlms_ros.control.controller_check import (
    CONTROLLER_REFERENCE,
    ControllerCheck,
    window_stamps,
)
from robovlms_ros.control.executor import ChunkExecutor
from robovlms_ros.control.faults import (
    SEVERITY,
    Action,
    Fault,
    PermissionConfig,
    SafetyMonitorConfig,
)
from robovlms_ros.control.interfaces import CommandedArm, ObservationSource
from robovlms_ros.control.standstill import JointSample, StandstillDetector
from robovlms_ros.core.types import NANOSECONDS, Array

DISTRUST_NS = NANOSECONDS
"""No joint state is accepted for so long after an implausible one: wrong ones may come between
right ones."""

STANDSTILL_HOLD_NS = 3 * NANOSECONDS
"""Shortest hold of an arm that did not move: its set point is brought back meanwhile."""

ARM_NOT_FOLLOWING = "arm_not_following"
INSTRUCTION_REFUSED = "instruction_refused"
ROBOT_MAY_NOT_MOVE = "robot_may_not_move"

UNTRUSTED = {
    "joint_states_stale",
    "joint_states_implausible",
    "controller_shared",
    "controller_absent",
    CONTROLLER_REFERENCE,
    "clock_jumped",
}
"""Faults during which a set point does not return to the measured arm."""


@dataclass(frozen=True)
class MonitorReport:
    """faults: all present, by severity, then by appearance. raised, recovered: since the last
    check."""

    faults: tuple[Fault, ...]
    raised: tuple[Fault, ...]
    recovered: tuple[Fault, ...]

    @property
    def action(self) -> Action:
        """The strongest action of the present faults."""
        return self.faults[0].action if self.faults else "none"


@dataclass
class _Joints:
    """The newest joint state: the earlier of its stamp and its arrival; positions (J,), rad, None
    before the first."""

    fresh_ns: int
    positions: Array | None = None


@dataclass
class _Standstill:
    """An arm that does not follow: since when it is held, the fault's text, its distance from the
    command (rad)."""

    since_ns: int | None = None
    text: str = ""
    distance: float = 0.0


@dataclass
class _Distrust:
    """The last reason to reject joint states, and its time."""

    reason: str = ""
    since_ns: int | None = None

    def lasts(self, now_ns: int) -> bool:
        """True while no joint state is accepted."""
        return self.since_ns is not None and 0 <= now_ns - self.since_ns <= DISTRUST_NS


class SafetyMonitor:
    """Faults of one arm's policy. Thread-safe. `reset` begins at activation; call `react` at 10 Hz
    or more.

    cameras: names of the policy's cameras. now_ns: the caller's clock. permission: None where the
    arm needs no permission to move. controller: changed by `poll`, `react` and `reset` alone, under
    the monitor's lock.
    """

    def __init__(
        self,
        config: SafetyMonitorConfig,
        cameras: tuple[str, ...],
        now_ns: int,
        permission: PermissionConfig | None = None,
    ) -> None:
        self.config = config
        self.person_drives = False
        """True while a person commands the arm: the policy and its inputs have no faults then."""
        self.controller = ControllerCheck(config)
        self._lock = threading.RLock()
        self._permission_config = permission
        self._permission: bool | None = None
        self._permission_ns = 0
        self._camera_names = cameras
        self._present: dict[str, Fault] = {}
        self._instruction = ""
        self._inferring_since_ns: int | None = None
        self._inference_failure: Fault | None = None
        motion = config.standstill_motion or math.inf
        self._detector = StandstillDetector(config.standstill_time, motion)
        self._standstill_ended = False
        self._observations: ObservationSource | None = None
        self._executor: ChunkExecutor | None = None
        self._arm: CommandedArm | None = None
        self._log: Callable[[str], None] = lambda line: None
        self.reset(now_ns)

    def connect(
        self,
        observations: ObservationSource,
        executor: ChunkExecutor | None,
        arm: CommandedArm | None,
        log: Callable[[str], None],
    ) -> None:
        """Set the objects that `poll` and `react` read.

        executor, arm: None where nothing is commanded. log: called with a line when a fault appears
            or is gone.
        """
        self._observations = observations
        self._executor = executor
        self._arm = arm
        self._log = log

    def poll(self, inferring_since_ns: int | None, now_ns: int) -> None:
        """Read the inference in progress and the arm's distance from its command. Call at every
        tick."""
        sample = self._sample()
        joint, error = self._following(sample) or ("", 0.0)
        joints = () if self._executor is None else self._executor.robot.joints
        reference = None if self._arm is None else self._arm.reference()
        path = None
        if reference is not None and self._executor is not None:
            path = self._executor.commanded_path(window_stamps(reference.stamp_ns))
        with self._lock:
            self.controller.reference(reference, path, joints, now_ns)
            self.controller.following(joint, error, now_ns)
            if inferring_since_ns is not None:
                self.inference_started(inferring_since_ns)
            self.moving(sample, joints, now_ns)
            if self._executor is not None and not self.suspects_standstill:
                self._executor.gate.probing = False

    def react(self, now_ns: int) -> tuple[Action, str]:
        """The arm's reaction now and its reason: unusable messages first, then faults, then the
        controller's."""
        assert self._observations is not None
        if self._arm is not None:  # read at every call: a chunk may come before the first tick
            absence = self._arm.absence()
            others = self._arm.other_commanders()
            with self._lock:
                self.controller.absence = absence
                self.controller.commanders(self._arm.name, others, now_ns)
        report = self.check(now_ns)
        for fault in report.raised:
            self._log(f"fault: {fault.text}")
        for fault in report.recovered:
            self._log(f"recovered: {fault.name}")
            if fault.name == ARM_NOT_FOLLOWING and self._executor is not None:
                self._executor.gate.probing = self.suspects_standstill
                self._standstill_ended = True
        if report.action == "cease_commands":
            return "cease_commands", report.faults[0].text
        problem = None if self.person_drives else self._observations.problem(now_ns)
        if problem is not None:
            return "smooth_stop", problem
        complaint = None if self._arm is None else self._arm.problem()
        if complaint is not None and report.action != "smooth_stop":
            return "smooth_stop", complaint
        if not report.faults:
            return "none", ""
        worst = report.faults[0]
        topic = self._observations.topic_of(worst.name)
        return report.action, f"{worst.text} ({topic})" if topic else worst.text

    @property
    def set_point_may_return(self) -> bool:
        """True while the arm is at rest where it is measured, and no fault makes the measurement
        doubtful."""
        with self._lock:
            present = set(self._present)
        return ARM_NOT_FOLLOWING in present and not present & UNTRUSTED

    @property
    def permission_withdrawn(self) -> bool:
        """True while the permission to move is withdrawn and its return must not start the arm."""
        config = self._permission_config
        if config is None or config.resume:
            return False
        with self._lock:
            return self._permission is not None and ROBOT_MAY_NOT_MOVE in self._present

    def take_standstill_end(self) -> bool:
        """True once after `react` found the end of a standstill."""
        ended = self._standstill_ended
        self._standstill_ended = False
        return ended

    def _sample(self) -> JointSample | None:
        """The arm as commanded and as measured at its newest stamp; None while nothing is
        commanded."""
        if self._arm is None or self._executor is None or self._observations is None:
            return None
        measured = self._observations.measured()
        commanded = None if measured is None else self._executor.commanded(measured.stamp_ns)
        if measured is None or commanded is None:
            return None
        return JointSample(measured.stamp_ns, commanded[0], measured.positions)

    def _following(self, sample: JointSample | None) -> tuple[str, float] | None:
        """The joint furthest from its command, and the distance (rad); None while nothing is
        commanded."""
        if self._arm is None or self._executor is None:
            return None
        reported = self._arm.following()
        if reported is not None or sample is None:
            return reported
        errors = np.abs(sample.commanded - sample.measured)
        worst = int(np.argmax(errors))
        return self._executor.robot.joints[worst], float(errors[worst])

    def reset(self, now_ns: int) -> None:
        """Activation: every input has `max_age` from now to arrive. The instruction and the
        controller stay."""
        with self._lock:
            self._now_ns = now_ns
            self._jumped = ""
            self._restart(now_ns)
            self.inference_finished()
            self._detector.suspect = False

    def _restart(self, now_ns: int) -> None:
        self._cameras = {
            name: CameraCheck(name, self.config, now_ns) for name in self._camera_names
        }
        self._joints = _Joints(now_ns)
        self._distrust = _Distrust()
        self.controller.restart()
        self._detector.forget()
        self._standstill = _Standstill()

    @property
    def suspects_standstill(self) -> bool:
        """True from a standstill until the arm is measured to move: the next plan must begin
        slowly."""
        return self._detector.suspect

    @property
    def present(self) -> tuple[Fault, ...]:
        """The faults of the last check."""
        with self._lock:
            return tuple(self._present.values())

    def image(self, camera: str, stamp_ns: int, digest: int, now_ns: int) -> None:
        """An image arrived. digest: `image_digest` of its bytes."""
        with self._lock:
            self._cameras[camera].add(stamp_ns, digest, self._joints.positions, now_ns)

    def joint_state(self, stamp_ns: int, positions: Array, now_ns: int) -> None:
        """Joint positions (J,) arrived, rad."""
        with self._lock:
            positions = np.asarray(positions, dtype=np.float64)
            self._joints = _Joints(min(stamp_ns, now_ns), positions)

    def implausible_joint_state(self, reason: str, now_ns: int) -> None:
        """A joint state was rejected. The reason of the first one stays until the
        fault is gone."""
        with self._lock:
            if self._distrust.lasts(now_ns):
                reason = self._distrust.reason
            self._distrust = _Distrust(reason, now_ns)

    def robot_may_move(self, allowed: bool, now_ns: int) -> None:
        """The permission to move arrived, or was withdrawn."""
        with self._lock:
            self._permission = allowed
            self._permission_ns = now_ns

    def instruction(self, text: str) -> None:
        """The instruction in force; empty for none."""
        with self._lock:
            failure = self._inference_failure
            refused = failure is not None and failure.name == INSTRUCTION_REFUSED
            if refused and text.strip() != self._instruction:
                self._inference_failure = None
            self._instruction = text.strip()

    def inference_started(self, now_ns: int) -> None:
        """An inference begins."""
        with self._lock:
            self._inferring_since_ns = now_ns

    def inference_finished(self) -> None:
        """It gave a chunk."""
        self._inference_ended(None)

    def inference_failed(self, reason: str) -> None:
        """It raised; gone with the next that finishes."""
        self._inference_ended(Fault("inference_died", f"inference failed: {reason}"))

    def instruction_refused(self, reason: str) -> None:
        """The policy cannot take the instruction; gone with another instruction."""
        self._inference_ended(Fault(INSTRUCTION_REFUSED, f"instruction refused: {reason}"))

    def _inference_ended(self, failure: Fault | None) -> None:
        with self._lock:
            self._inferring_since_ns = None
            self._inference_failure = failure

    def moving(self, sample: JointSample | None, joints: tuple[str, ...], now_ns: int) -> None:
        """The arm as commanded and as measured at one stamp; None while nothing is commanded."""
        with self._lock:
            if sample is None:
                self._detector.forget()
                self._standstill = _Standstill()
                return
            found = self._detector.add(sample)
            held = self._standstill
            held.distance = float(np.abs(sample.commanded - sample.measured).max())
            if found is None or held.since_ns is not None:
                return
            joint, displacement = found
            held.since_ns = now_ns
            held.text = (
                f"the arm does not move: {joints[joint]} was commanded to move "
                f"{displacement:.3f} rad in {self.config.standstill_time} s or more, and no joint "
                "moved. Is there a protective stop, a speed scaling of 0, an inactive controller, "
                "an obstacle?"
            )

    def check(self, now_ns: int) -> MonitorReport:
        """The state of everything at a time; call it at every tick, for the clock's sake."""
        with self._lock:
            self._notice_jump(now_ns)
            found = {fault.name: fault for fault in self._faults(now_ns)}
            # A fault keeps its place and its first text while it is present: status and logs change
            # on edges only.
            now = {name: fault for name, fault in self._present.items() if name in found}
            now |= {name: fault for name, fault in found.items() if name not in now}
            raised = tuple(fault for name, fault in now.items() if name not in self._present)
            recovered = tuple(fault for name, fault in self._present.items() if name not in now)
            self._present = now
            ordered = sorted(now.values(), key=lambda fault: -SEVERITY.index(fault.action))
            return MonitorReport(tuple(ordered), raised, recovered)

    def _notice_jump(self, now_ns: int) -> None:
        step = (now_ns - self._now_ns) / NANOSECONDS
        if step < 0 or step > self.config.clock_jump:
            direction = "back" if step < 0 else "forward"
            self._jumped = (
                f"the clock jumped {direction} by {abs(step):.3f} s: waiting for new images and "
                "joint states"
            )
            self._restart(now_ns)
            self._inferring_since_ns = None
        self._now_ns = now_ns

    def _faults(self, now_ns: int) -> Iterator[Fault]:
        """The faults at a time, in the order in which new ones are listed."""
        positions = self._joints.positions
        if positions is not None and all(camera.arrived for camera in self._cameras.values()):
            self._jumped = ""
        if self._jumped:
            yield Fault("clock_jumped", self._jumped, "cease_commands")
        yield from self._permission_faults(now_ns)
        if not self.person_drives:
            for camera in self._cameras.values():
                yield from camera.faults(positions, now_ns)
        yield from self._joint_state_faults(now_ns)
        if not self.person_drives:
            yield from self._policy_faults(now_ns)
        yield from self.controller.faults(now_ns)
        yield from self._standstill_faults(now_ns)

    def _permission_faults(self, now_ns: int) -> Iterator[Fault]:
        config = self._permission_config
        if config is None:
            return
        age = (now_ns - self._permission_ns) / NANOSECONDS
        if self._permission is None:
            text = f"the permission to move has not come on {config.topic}"
        elif not self._permission:
            text = f"the robot may not move: false on {config.topic}"
        elif config.timeout > 0.0 and not 0.0 <= age <= config.timeout:
            text = (
                f"the robot may not move: nothing on {config.topic} for more than "
                f"{config.timeout:g} s (robot_may_move_timeout)"
            )
        else:
            return
        yield Fault(ROBOT_MAY_NOT_MOVE, text)

    def _joint_state_faults(self, now_ns: int) -> Iterator[Fault]:
        max_age = self.config.max_age
        if (now_ns - self._joints.fresh_ns) / NANOSECONDS > max_age:
            state = "have not come" if self._joints.positions is None else "are stale"
            text = (
                f"joint states {state}: none for more than {max_age} s (max_age). Check "
                "joint_state_broadcaster."
            )
            yield Fault("joint_states_stale", text)
        elif self._distrust.lasts(now_ns):
            text = f"joint states are not believed: {self._distrust.reason}"
            yield Fault("joint_states_implausible", text)

    def _policy_faults(self, now_ns: int) -> Iterator[Fault]:
        if not self._instruction:
            text = "no instruction: publish one on the instruction topic"
            yield Fault("no_instruction", text)
        if self._inference_failure is not None:
            yield self._inference_failure
        elif self._inferring_since_ns is not None:
            limit = self.config.inference_timeout
            if (now_ns - self._inferring_since_ns) / NANOSECONDS > limit:
                text = f"inference takes too long, allowed {limit} s"
                yield Fault("inference_late", text, "wait")

    def _standstill_faults(self, now_ns: int) -> Iterator[Fault]:
        held = self._standstill
        if held.since_ns is None:
            return
        moved = not self._detector.suspect
        near = held.distance <= self.config.standstill_motion
        if now_ns - held.since_ns >= STANDSTILL_HOLD_NS and (moved or near):
            self._detector.forget()
            self._standstill = _Standstill()
        else:
            yield Fault(ARM_NOT_FOLLOWING, held.text)
