"""Detection of faults around a running policy, and the arm's reaction to each.

Camera, joint state and inference callbacks report events; `poll` and `react` run at every tick and
before every chunk. No clock is read: every time is an argument, so simulated time, pauses and
looping bags behave alike. Faults are reported with those that appeared or disappeared since the
last check: logs and status carry edges, not levels.
"""

import math
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from robovlms_ros.control.executor import ChunkExecutor
from robovlms_ros.control.reference_check import ReferenceDetector, window_stamps
from robovlms_ros.control.standstill import JointSample, StandstillDetector
from robovlms_ros.core.schema import check_ranges, parameter, require
from robovlms_ros.core.types import NANOSECONDS, Array, RobotState

Action = Literal["none", "wait", "smooth_stop", "cease_commands"]
"""Reactions of the arm, the weaker first. `wait`: nothing new is sent, the running plan ends at
rest by itself. `smooth_stop`: a smooth stop is sent, then nothing until the fault is gone.
`cease_commands`: nothing is sent and the plan is forgotten, because no controller receives it or
its times have no meaning any more."""

DISTRUST_NS = NANOSECONDS
"""No joint state is accepted for so long after an implausible one: wrong ones may come between
right ones."""

ARM_NOT_FOLLOWING = "arm_not_following"

ROBOT_MAY_NOT_MOVE = "robot_may_not_move"

CONTROLLER_REFERENCE = "controller_reference"

REMEMBERED_NS = 10 * NANOSECONDS
"""Other commanders are named for so long after they were last seen."""

STANDSTILL_HOLD_NS = 3 * NANOSECONDS
"""Shortest hold of an arm that did not move: its set point is brought back meanwhile."""

# images in a row with a stamp far from now: one or two are a busy machine, whose clock came late
CLOCK_OFF = 3

SEVERITY: tuple[Action, ...] = ("none", "wait", "smooth_stop", "cease_commands")

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
class SafetyMonitorConfig:
    """Bounds beyond which something is a fault; part of the node's parameters, but for max_age.

    max_age: s, an image or a joint state is stale without a newer one for so long; the robot's.
    """

    max_age: float = 0.5
    clock_tolerance: float = parameter(
        0.1, "Farthest that an image's stamp may be ahead of the node's clock.",
        unit="s", low=0.001, high=60.0,
    )
    frozen_time: float = parameter(
        1.0,
        "A camera that sends the same bytes for so long, while a joint moves by frozen_motion, is "
        "frozen.",
        unit="s", low=0.01, high=3600.0,
    )
    frozen_motion: float = parameter(
        0.05, "See watchdog.frozen_time.", unit="rad", low=0.001, high=10.0
    )
    inference_timeout: float = parameter(
        1.0,
        "An inference that takes longer is reported as late; the running plan ends at rest.",
        unit="s", low=0.01, high=3600.0,
    )
    following_error: float = parameter(
        0.3,
        "A joint further than this from its command for following_time is not following; the arm "
        "is held.",
        unit="rad", low=0.001, high=10.0,
    )
    following_time: float = parameter(
        0.5, "See watchdog.following_error.", unit="s", low=0.01, high=60.0
    )
    standstill_time: float = parameter(
        0.5,
        "An arm of which no joint moves for so long, while one is commanded to move by "
        "standstill_motion, does not follow (protective stop, inactive controller); the arm is "
        "held and its set point brought back to it.",
        unit="s", low=0.1, high=60.0,
    )
    standstill_motion: float = parameter(
        0.05,
        "See watchdog.standstill_time; a fifth of it counts as standing still. 0: not checked.",
        unit="rad", low=0.0, high=10.0,
    )
    reference_error: float = parameter(
        0.05,
        "A controller whose published reference is further than this from the commanded motion for "
        "reference_time executes another one; nothing is sent until it rests. 0: not checked.",
        unit="rad", low=0.0, high=10.0,
    )
    reference_time: float = parameter(
        0.2, "See watchdog.reference_error.", unit="s", low=0.01, high=60.0
    )
    clock_jump: float = parameter(
        2.0, "A step forward of the node's clock that is a jump; a step back always is.",
        unit="s", low=0.1, high=3600.0,
    )

    def __post_init__(self) -> None:
        age = self.max_age
        require(0.0 < age < 1e6, "watchdog.max_age", age, "a number above 0")
        check_ranges(self, "watchdog")


class ObservationSource(Protocol):
    """Observations of one arm, as the policy runner and the monitor read them."""

    @property
    def instruction(self) -> str:
        """The task in force, empty while there is none."""

    def set_instruction(self, text: str) -> None:
        """Put a checked instruction in force, by whatever way it came; empty for none."""

    def state_at(self, stamp_ns: int) -> RobotState:
        """The arm at an image's stamp; raises ObservationError."""

    def measured(self) -> RobotState | None:
        """The arm's newest state."""

    def speed(self) -> Array:
        """(J,) measured speed, rad/s; infinite where the joint states do not cover enough time."""

    def problem(self, now_ns: int) -> str | None:
        """Text of an unusable message or of cameras that do not match; None without one."""

    def topic_of(self, fault: str) -> str:
        """The topic behind a fault, empty where there is none."""

    def clear_joint_states(self) -> None:
        """Forget the joint states: the next ones need not be reachable from the last."""

    def clear(self) -> None:
        """Forget images and joint states, as after a clock jump. The instruction stays."""


class CommandedArm(ABC):
    """Connection of an arm's controller adapter."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The topic or action that receives commands."""

    @abstractmethod
    def absence(self) -> str:
        """The reason why no controller receives commands; empty where one does."""

    def other_commanders(self) -> tuple[str, ...]:
        """Names of the nodes or clients beside this one that command the controller."""
        return ()

    def reference(self) -> RobotState | None:
        """The set point that the controller executes, at its stamp, where the controller reports
        it; else None."""
        return None

    def following(self) -> tuple[str, float] | None:
        """The joint furthest from its command and the distance (rad), where the controller reports
        it; else None."""
        return None

    def problem(self) -> str | None:
        """The controller's own complaint, None without one."""
        return None


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: its name (`image_stale wrist`), what it does to the arm, and the
    status text."""

    name: str
    action: Action
    text: str


@dataclass(frozen=True)
class PermissionConfig:
    """The input robot_may_move: a safety system's permission to move.

    topic: named in texts. timeout: s after which a permission that is not renewed is void; 0: the
    last one counts. resume: False where a stop by it also ends the instruction.
    """

    topic: str
    timeout: float = 0.0
    resume: bool = False


@dataclass(frozen=True)
class MonitorReport:
    """action: the strongest action of the present faults. faults: all present, by severity, then
    by appearance.

    raised, recovered: since the last check.
    """

    action: Action
    faults: tuple[Fault, ...]
    raised: tuple[Fault, ...]
    recovered: tuple[Fault, ...]


@dataclass
class _Camera:
    """State of one camera. ahead: s, its last stamp before the clock. off: images in a row
    that were ahead or behind. same_...: since when, and from which joint positions, the digest is
    the same."""

    heard_ns: int
    ever: bool = False
    ahead: float = 0.0
    off: int = 0
    digest: int | None = None
    same_since_ns: int = 0
    same_from: Array | None = None
    frozen: bool = False


@dataclass
class _Inference:
    started_ns: int | None = None
    failure: str | None = None
    refused_instruction: str | None = None


@dataclass
class _Controller:
    """absence: the reason why no controller receives commands, empty where one does. others: other
    commanders now; seen, seen_ns: the last that were there. reference: text of the fault, empty
    while the controller executes the commanded motion."""

    absence: str = ""
    name: str = ""
    error: float = 0.0
    joint: str = ""
    off_since_ns: int | None = None
    others: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    seen_ns: int = 0
    reference: str = ""


@dataclass
class _Joints:
    heard_ns: int
    ever: bool = False
    stamp_ns: int | None = None
    positions: Array | None = field(default=None)


@dataclass
class _Permission:
    """The last value of robot_may_move, None before the first, and its time of arrival."""

    given: bool | None = None
    received_ns: int = 0


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


def image_digest(data: bytes | memoryview) -> int:
    """A checksum of an image's bytes as they arrived (1 MB in about 0.5 ms): equal for identical
    frames."""
    return zlib.crc32(data)


class SafetyMonitor:
    """Faults of one arm's policy. Thread-safe. `reset` begins at activation; call `react` at 10 Hz
    or more.

    cameras: names of the policy's cameras. now_ns: the caller's clock. permission: None where the
    arm needs no permission to move.
    """

    def __init__(
        self,
        config: SafetyMonitorConfig,
        cameras: tuple[str, ...],
        now_ns: int,
        permission: PermissionConfig | None = None,
    ) -> None:
        self.config = config
        self._permission_config = permission
        self._permission = _Permission()
        self.person_drives = False
        """True while a person commands the arm: the policy and its inputs have no faults then."""
        self._lock = threading.RLock()
        self._camera_names = cameras
        self._present: dict[str, Fault] = {}
        self._instruction = ""
        self._controller = _Controller()
        motion = config.standstill_motion or math.inf
        self._detector = StandstillDetector(config.standstill_time, motion)
        self._standstill_ended = False
        self._reference = ReferenceDetector(
            config.reference_error or math.inf, config.reference_time
        )
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
        self._poll_reference(joints, now_ns)
        with self._lock:
            if inferring_since_ns is not None:
                self.inference_started(inferring_since_ns)
            self.following(joint, error, now_ns)
            self.moving(sample, joints, now_ns)
            if self._executor is not None and not self.suspects_standstill:
                self._executor.gate.probing = False

    def react(self, now_ns: int) -> tuple[Action, str]:
        """The arm's reaction now and its reason: unusable messages first, then faults, then the
        controller's."""
        assert self._observations is not None
        if self._arm is not None:  # read at every call: a chunk may come before the first tick
            self.controller(self._arm.absence())
            self.commanders(self._arm.name, self._arm.other_commanders(), now_ns)
        report = self.check(now_ns)
        for fault in report.raised:
            self._log(f"fault: {fault.text}")
        for fault in report.recovered:
            self._log(f"recovered: {fault.name}")
            if fault.name == ARM_NOT_FOLLOWING and self._executor is not None:
                self._executor.gate.probing = self.suspects_standstill
                self._standstill_ended = True
        worst = report.faults[:1]
        if report.action == "cease_commands":
            return "cease_commands", worst[0].text
        problem = None if self.person_drives else self._observations.problem(now_ns)
        if problem is not None:
            return "smooth_stop", problem
        complaint = None if self._arm is None else self._arm.problem()
        if complaint is not None and report.action != "smooth_stop":
            return "smooth_stop", complaint
        if not worst:
            return "none", ""
        topic = self._observations.topic_of(worst[0].name)
        return report.action, f"{worst[0].text} ({topic})" if topic else worst[0].text

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
        with self._lock:
            config = self._permission_config
            known = self._permission.given is not None
            return (
                config is not None
                and not config.resume
                and known
                and ROBOT_MAY_NOT_MOVE in self._present
            )

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

    def _poll_reference(self, joints: tuple[str, ...], now_ns: int) -> None:
        reference = None if self._arm is None else self._arm.reference()
        path = None
        if reference is not None and self._executor is not None:
            path = self._executor.commanded_path(window_stamps(reference.stamp_ns))
        self.reference(reference, path, joints, now_ns)

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
            self._jumped: str | None = None
            self._restart(now_ns)
            self._inference = _Inference()
            self._detector.suspect = False

    def _restart(self, now_ns: int) -> None:
        self._cameras = {name: _Camera(now_ns) for name in self._camera_names}
        self._joints = _Joints(now_ns)
        self._distrust = _Distrust()
        self._controller.off_since_ns = None
        self._controller.reference = ""
        self._reference.forget()
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
            seen = self._cameras[camera]
            seen.heard_ns = now_ns
            seen.ever = True
            seen.ahead = (stamp_ns - now_ns) / NANOSECONDS
            seen.off = 0 if -self.config.max_age <= seen.ahead <= self.config.clock_tolerance else seen.off + 1
            if digest != seen.digest or seen.same_from is None:
                seen.digest = digest
                seen.same_since_ns = now_ns
                seen.same_from = self._joints.positions
                seen.frozen = False

    def joint_state(self, stamp_ns: int, positions: Array, now_ns: int) -> None:
        """Joint positions (J,) arrived, rad."""
        with self._lock:
            self._joints = _Joints(now_ns, True, stamp_ns, np.asarray(positions, dtype=np.float64))

    def implausible_joint_state(self, reason: str, now_ns: int) -> None:
        """A joint state was rejected. The reason of the first one stays until the
        fault is gone."""
        with self._lock:
            distrust = self._distrust
            fresh = distrust.since_ns is None or not 0 <= now_ns - distrust.since_ns <= DISTRUST_NS
            self._distrust = _Distrust(reason if fresh else distrust.reason, now_ns)

    def robot_may_move(self, allowed: bool, now_ns: int) -> None:
        """The permission to move arrived, or was withdrawn."""
        with self._lock:
            self._permission = _Permission(allowed, now_ns)

    def commanders(self, name: str, others: tuple[str, ...], now_ns: int) -> None:
        """Nodes beside this one that command the controller. name: the topic or action."""
        with self._lock:
            self._controller.name = name
            self._controller.others = others
            if others:
                self._controller.seen = others
                self._controller.seen_ns = now_ns

    def instruction(self, text: str) -> None:
        """The instruction in force; empty for none."""
        with self._lock:
            if text.strip() != self._instruction:
                self._inference.refused_instruction = None
            self._instruction = text.strip()

    def inference_started(self, now_ns: int) -> None:
        """An inference begins."""
        with self._lock:
            self._inference.started_ns = now_ns

    def inference_finished(self) -> None:
        """It gave a chunk."""
        with self._lock:
            self._inference = _Inference()

    def inference_failed(self, reason: str) -> None:
        """It raised; gone with the next that finishes."""
        with self._lock:
            self._inference = _Inference(failure=reason)

    def instruction_refused(self, reason: str) -> None:
        """The policy cannot take the instruction; gone with another instruction."""
        with self._lock:
            self._inference = _Inference(refused_instruction=reason)

    def controller(self, absence: str) -> None:
        """The reason why no controller receives commands; empty where one does."""
        with self._lock:
            self._controller.absence = absence

    def reference(
        self,
        reference: RobotState | None,
        commanded: Array | None,
        joints: tuple[str, ...],
        now_ns: int,
    ) -> None:
        """The set point that the controller executes; None where it is not reported.

        commanded: (N, J) rad at its `window_stamps`; None while nothing is commanded.
        """
        with self._lock:
            if reference is None:
                self._reference.forget()
                self._controller.reference = ""
                return
            found = self._reference.add(reference, commanded)
            if found is not None:
                joint, distance = found
                text = self._foreign_reference(joints[joint], distance, now_ns)
                self._controller.reference = text
            if not self._reference.found:
                self._controller.reference = ""

    def _foreign_reference(self, joint: str, distance: float, now_ns: int) -> str:
        control = self._controller
        recent = 0 <= now_ns - control.seen_ns <= REMEMBERED_NS
        names = control.others or (control.seen if recent else ())
        if names:
            cause = f"{', '.join(names)} also commands it or did so"
        else:
            cause = "the graph shows no other sender; it may have rejected a command"
        return (
            f"the controller executes another motion than commanded: its reference of {joint} is "
            f"{distance:.3f} rad from the command ({control.name}); {cause}"
        )

    def following(self, joint: str, error: float, now_ns: int) -> None:
        """The joint furthest from its command, rad: by controller_state, or measured against the
        running plan."""
        with self._lock:
            control = self._controller
            control.joint = joint
            control.error = abs(error)
            if control.error <= self.config.following_error:
                control.off_since_ns = None
            elif control.off_since_ns is None:
                control.off_since_ns = now_ns

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
                f"the arm does not move: {joints[joint]} was commanded to move {displacement:.3f} rad in "
                f"{self.config.standstill_time} s or more, and no joint moved. Is there a protective stop, a "
                "speed scaling of 0, an inactive controller, an obstacle?"
            )

    def check(self, now_ns: int) -> MonitorReport:
        """The state of everything at a time; call it at every tick, for the clock's sake."""
        with self._lock:
            self._notice_jump(now_ns)
            found = {fault.name: fault for watch in self._watches() for fault in watch(now_ns)}
            # A fault keeps its place and its first text while it is present: status and logs change
            # on edges only.
            now = {name: fault for name, fault in self._present.items() if name in found}
            now |= {name: fault for name, fault in found.items() if name not in now}
            raised = tuple(fault for name, fault in now.items() if name not in self._present)
            recovered = tuple(fault for name, fault in self._present.items() if name not in now)
            self._present = now
            actions: list[Action] = [fault.action for fault in now.values()]
            action: Action = max(actions, key=SEVERITY.index, default="none")
            ordered = sorted(now.values(), key=lambda fault: -SEVERITY.index(fault.action))
            return MonitorReport(action, tuple(ordered), raised, recovered)

    def _watches(self) -> tuple[Callable[[int], list[Fault]], ...]:
        watches = (
            self._clock, self._permitted, self._images, self._joint_states, self._words,
            self._policy, self._listener, self._executes_ours, self._arm_stands,
        )
        of_policy = (self._images, self._words, self._policy)
        return tuple(w for w in watches if not self.person_drives or w not in of_policy)

    def _notice_jump(self, now_ns: int) -> None:
        step = (now_ns - self._now_ns) / NANOSECONDS
        if step < 0 or step > self.config.clock_jump:
            direction = "back" if step < 0 else "forward"
            self._jumped = f"the clock jumped {direction} by {abs(step):.3f} s: waiting for new images and joint states"
            self._restart(now_ns)
            self._inference.started_ns = None
        self._now_ns = now_ns

    def _clock(self, now_ns: int) -> list[Fault]:
        if self._jumped is not None and self._joints.ever and all(c.ever for c in self._cameras.values()):
            self._jumped = None
        return [] if self._jumped is None else [Fault("clock_jumped", "cease_commands", self._jumped)]

    def _permitted(self, now_ns: int) -> list[Fault]:
        config = self._permission_config
        if config is None:
            return []
        seen = self._permission
        age = (now_ns - seen.received_ns) / NANOSECONDS
        if seen.given is None:
            text = f"the permission to move has not come on {config.topic}"
        elif not seen.given:
            text = f"the robot may not move: false on {config.topic}"
        elif config.timeout > 0.0 and not 0.0 <= age <= config.timeout:
            text = (
                f"the robot may not move: nothing on {config.topic} for more than "
                f"{config.timeout:g} s (robot_may_move_timeout)"
            )
        else:
            return []
        return [Fault(ROBOT_MAY_NOT_MOVE, "smooth_stop", text)]

    def _images(self, now_ns: int) -> list[Fault]:
        found = []
        for name, seen in self._cameras.items():
            age = (now_ns - seen.heard_ns) / NANOSECONDS
            if age > self.config.max_age:
                what = "stopped" if seen.ever else "has not spoken"
                text = f"camera {name} {what}: no image for more than {self.config.max_age} s (max_age). Check it."
                found.append(Fault(f"image_stale {name}", "smooth_stop", text))
                continue
            found += self._stamps(name, seen) + self._frozen(name, seen, now_ns)
        return found

    def _stamps(self, name: str, seen: _Camera) -> list[Fault]:
        if seen.off < CLOCK_OFF:
            return []
        how = f"{seen.ahead:.3f} s ahead of" if seen.ahead > 0 else f"{-seen.ahead:.3f} s behind"
        text = (
            f"camera {name}'s clock is {how} the node's. Synchronise the machines (chrony, PTP), let the driver stamp "
            "with the host's clock, and set use_sim_time alike on all nodes."
        )
        return [Fault(f"camera_clock {name}", "smooth_stop", text)]

    def _frozen(self, name: str, seen: _Camera, now_ns: int) -> list[Fault]:
        positions = self._joints.positions
        if seen.same_from is None or positions is None or seen.same_from.shape != positions.shape:
            return []
        same = (now_ns - seen.same_since_ns) / NANOSECONDS
        moved = float(np.max(np.abs(positions - seen.same_from), initial=0.0))
        # Until new bytes come: the arm, held, may be where it was when they stopped changing.
        seen.frozen = seen.frozen or (same >= self.config.frozen_time and moved >= self.config.frozen_motion)
        if not seen.frozen:
            return []
        text = (
            f"camera {name} is frozen: the same bytes for {self.config.frozen_time} s or more while a joint moved "
            f"{self.config.frozen_motion} rad or more. Restart it."
        )
        return [Fault(f"image_frozen {name}", "smooth_stop", text)]

    def _joint_states(self, now_ns: int) -> list[Fault]:
        seen = self._joints
        heard = seen.heard_ns if seen.stamp_ns is None else min(seen.heard_ns, seen.stamp_ns)
        age = (now_ns - heard) / NANOSECONDS
        if age <= self.config.max_age:
            return self._implausible(now_ns)
        what = "are stale" if seen.ever else "have not come"
        text = (
            f"joint states {what}: none for more than {self.config.max_age} s (max_age). Check "
            "joint_state_broadcaster."
        )
        return [Fault("joint_states_stale", "smooth_stop", text)]

    def _implausible(self, now_ns: int) -> list[Fault]:
        distrust = self._distrust
        if distrust.since_ns is None or not 0 <= now_ns - distrust.since_ns <= DISTRUST_NS:
            return []
        return [Fault("joint_states_implausible", "smooth_stop", f"joint states are not believed: {distrust.reason}")]

    def _words(self, now_ns: int) -> list[Fault]:
        if self._instruction:
            return []
        return [Fault("no_instruction", "smooth_stop", "no instruction: publish one on the instruction topic")]

    def _policy(self, now_ns: int) -> list[Fault]:
        running = self._inference
        if running.refused_instruction is not None:
            return [Fault("instruction_refused", "smooth_stop", f"instruction refused: {running.refused_instruction}")]
        if running.failure is not None:
            return [Fault("inference_died", "smooth_stop", f"inference failed: {running.failure}")]
        if running.started_ns is None:
            return []
        taken = (now_ns - running.started_ns) / NANOSECONDS
        if taken <= self.config.inference_timeout:
            return []
        limit = self.config.inference_timeout
        return [Fault("inference_late", "wait", f"inference takes too long, allowed {limit} s")]

    def _listener(self, now_ns: int) -> list[Fault]:
        control = self._controller
        if control.absence:
            return [Fault("controller_absent", "cease_commands", control.absence)]
        if control.others:
            text = (
                f"{', '.join(control.others)} also commands {control.name}: two that command one arm make it jump. "
                "Stop one of them."
            )
            return [Fault("controller_shared", "smooth_stop", text)]
        if control.off_since_ns is None or now_ns - control.off_since_ns <= self.config.following_time * NANOSECONDS:
            return []
        text = (
            f"the controller does not follow: {control.joint} is {control.error:.3f} rad from its command, allowed "
            f"{self.config.following_error} rad. Is the arm stopped, or in collision?"
        )
        return [Fault("controller_not_following", "smooth_stop", text)]

    def _executes_ours(self, now_ns: int) -> list[Fault]:
        text = self._controller.reference
        # A stop along the commanded motion would begin where the controller is not.
        return [Fault(CONTROLLER_REFERENCE, "cease_commands", text)] if text else []

    def _arm_stands(self, now_ns: int) -> list[Fault]:
        held = self._standstill
        if held.since_ns is None:
            return []
        moved = not self._detector.suspect
        near = held.distance <= self.config.standstill_motion
        if now_ns - held.since_ns >= STANDSTILL_HOLD_NS and (moved or near):
            self._detector.forget()
            self._standstill = _Standstill()
            return []
        return [Fault(ARM_NOT_FOLLOWING, "smooth_stop", held.text)]
