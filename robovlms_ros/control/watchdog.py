"""What can go wrong around a running policy, noticed in time: what the arm then does, why, and when it is over.

The watchdog is fed by whoever hears of images, joint states, inference and the controller, and asked on a timer. It
reads no clock: every time comes in, so simulated time, pauses and bags that loop behave as they should. It answers
with the faults that are present, and with those that appeared or went since it was last asked, so that logs and status
carry edges, not levels.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.schema import parameter, require
from robovlms_ros.core.types import NANOSECONDS

Array = NDArray[np.float64]

Action = Literal["none", "wait", "hold", "stop"]
"""What a fault does to the arm, the weaker first. `wait`: nothing new is sent, the running plan ends at rest by itself.
`hold`: a smooth stop is sent, then nothing until the fault is gone. `stop`: nothing is sent and the plan is forgotten,
because nobody listens or its times mean nothing any more."""

DISTRUST_NS = NANOSECONDS
"""So long after an implausible joint state none is believed: the wrong ones may come between right ones."""

CLOCK_OFF = 3  # images in a row with a stamp far from now: one or two are a busy machine, whose clock came late

SEVERITY: tuple[Action, ...] = ("none", "wait", "hold", "stop")


@dataclass(frozen=True)
class WatchdogConfig:
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
    clock_jump: float = parameter(
        2.0, "A step forward of the node's clock that is a jump; a step back always is.",
        unit="s", low=0.1, high=3600.0,
    )

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            require(0.0 < value < 1e6, f"watchdog.{name}", value, "a number above 0")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: its name (`image_stale wrist`), what it does to the arm, and the status text."""

    name: str
    action: Action
    text: str


@dataclass(frozen=True)
class WatchdogReport:
    """action: the strongest that a present fault asks for. faults: all present, by severity, then by appearance.

    raised, recovered: since the last check.
    """

    action: Action
    faults: tuple[Fault, ...]
    raised: tuple[Fault, ...]
    recovered: tuple[Fault, ...]


@dataclass
class _Camera:
    """What is known of one camera. ahead: s, its last stamp before the clock. off: images in a row that were ahead or
    behind. same_...: since when, and from which joint positions, the digest is the same."""

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
    listening: bool = True
    name: str = ""
    error: float = 0.0
    joint: str = ""
    off_since_ns: int | None = None
    others: tuple[str, ...] = ()


@dataclass
class _Joints:
    heard_ns: int
    ever: bool = False
    stamp_ns: int | None = None
    positions: Array | None = field(default=None)


@dataclass
class _Distrust:
    """The last reason not to believe joint states, and its time."""

    reason: str = ""
    since_ns: int | None = None


def image_digest(data: bytes | memoryview) -> int:
    """A checksum of an image's bytes as they arrived (1 MB in about 0.5 ms): equal for identical frames."""
    return zlib.crc32(data)


class Watchdog:
    """Feed it, then ask `check` on a timer (10 Hz or more). Starts with `reset`, at activation."""

    def __init__(self, config: WatchdogConfig, cameras: tuple[str, ...], now_ns: int) -> None:
        self.config = config
        self._camera_names = cameras
        self._present: dict[str, Fault] = {}
        self._instruction = ""
        self._controller = _Controller()
        self.reset(now_ns)

    def reset(self, now_ns: int) -> None:
        """Activation: everything has `max_age` from now to be heard of. The instruction and the controller stay."""
        self._now_ns = now_ns
        self._jumped: str | None = None
        self._restart(now_ns)
        self._inference = _Inference()

    def _restart(self, now_ns: int) -> None:
        self._cameras = {name: _Camera(now_ns) for name in self._camera_names}
        self._joints = _Joints(now_ns)
        self._distrust = _Distrust()
        self._controller.off_since_ns = None

    @property
    def present(self) -> tuple[Fault, ...]:
        """The faults of the last check."""
        return tuple(self._present.values())

    def image(self, camera: str, stamp_ns: int, digest: int, now_ns: int) -> None:
        """An image arrived. digest: `image_digest` of its bytes."""
        seen = self._cameras[camera]
        seen.heard_ns, seen.ever, seen.ahead = now_ns, True, (stamp_ns - now_ns) / NANOSECONDS
        seen.off = 0 if -self.config.max_age <= seen.ahead <= self.config.clock_tolerance else seen.off + 1
        if digest != seen.digest or seen.same_from is None:
            seen.digest, seen.same_since_ns, seen.same_from = digest, now_ns, self._joints.positions
            seen.frozen = False

    def joint_state(self, stamp_ns: int, positions: Array, now_ns: int) -> None:
        """Joint positions (J,) arrived, rad."""
        self._joints = _Joints(now_ns, True, stamp_ns, np.asarray(positions, dtype=np.float64))

    def implausible_joint_state(self, reason: str, now_ns: int) -> None:
        """A joint state came that is not believed. The reason of the first one stays until the fault is gone."""
        distrust = self._distrust
        fresh = distrust.since_ns is None or not 0 <= now_ns - distrust.since_ns <= DISTRUST_NS
        self._distrust = _Distrust(reason if fresh else distrust.reason, now_ns)

    def commanders(self, name: str, others: tuple[str, ...]) -> None:
        """Nodes beside this one that command the controller. name: the topic or action."""
        self._controller.name = name
        self._controller.others = others

    def instruction(self, text: str) -> None:
        """The instruction in force; empty for none."""
        if text.strip() != self._instruction:
            self._inference.refused_instruction = None
        self._instruction = text.strip()

    def inference_started(self, now_ns: int) -> None:
        """An inference begins."""
        self._inference.started_ns = now_ns

    def inference_finished(self) -> None:
        """It gave a chunk."""
        self._inference = _Inference()

    def inference_failed(self, reason: str) -> None:
        """It raised; gone with the next that finishes."""
        self._inference = _Inference(failure=reason)

    def instruction_refused(self, reason: str) -> None:
        """The policy cannot take the instruction; gone with another instruction."""
        self._inference = _Inference(refused_instruction=reason)

    def controller(self, name: str, subscribers: int) -> None:
        """How many listen to what the node sends; name: the topic or action."""
        self._controller.name, self._controller.listening = name, subscribers > 0

    def following(self, joint: str, error: float, now_ns: int) -> None:
        """The joint furthest from its command, rad: by controller_state, or measured against the running plan."""
        control = self._controller
        control.joint, control.error = joint, abs(error)
        if control.error <= self.config.following_error:
            control.off_since_ns = None
        elif control.off_since_ns is None:
            control.off_since_ns = now_ns

    def check(self, now_ns: int) -> WatchdogReport:
        """The state of everything at a time; call it at every tick, for the clock's sake."""
        self._notice_jump(now_ns)
        found = {fault.name: fault for watch in self._watches() for fault in watch(now_ns)}
        # A fault keeps its place and its first text while it is present: status and logs change on edges only.
        now = {name: fault for name, fault in self._present.items() if name in found}
        now |= {name: fault for name, fault in found.items() if name not in now}
        raised = tuple(fault for name, fault in now.items() if name not in self._present)
        recovered = tuple(fault for name, fault in self._present.items() if name not in now)
        self._present = now
        actions: list[Action] = [fault.action for fault in now.values()]
        action: Action = max(actions, key=SEVERITY.index, default="none")
        ordered = sorted(now.values(), key=lambda fault: -SEVERITY.index(fault.action))
        return WatchdogReport(action, tuple(ordered), raised, recovered)

    def _watches(self) -> tuple[Callable[[int], list[Fault]], ...]:
        return (self._clock, self._images, self._joint_states, self._words, self._policy, self._listener)

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
        return [] if self._jumped is None else [Fault("clock_jumped", "stop", self._jumped)]

    def _images(self, now_ns: int) -> list[Fault]:
        found = []
        for name, seen in self._cameras.items():
            age = (now_ns - seen.heard_ns) / NANOSECONDS
            if age > self.config.max_age:
                what = "stopped" if seen.ever else "has not spoken"
                text = f"camera {name} {what}: no image for more than {self.config.max_age} s (max_age). Check it."
                found.append(Fault(f"image_stale {name}", "hold", text))
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
        return [Fault(f"camera_clock {name}", "hold", text)]

    def _frozen(self, name: str, seen: _Camera, now_ns: int) -> list[Fault]:
        positions = self._joints.positions
        if seen.same_from is None or positions is None or seen.same_from.shape != positions.shape:
            return []
        same = (now_ns - seen.same_since_ns) / NANOSECONDS
        moved = float(np.max(np.abs(positions - seen.same_from), initial=0.0))
        # Until new bytes come: the arm, held, may stand where it stood when they stopped changing.
        seen.frozen = seen.frozen or (same >= self.config.frozen_time and moved >= self.config.frozen_motion)
        if not seen.frozen:
            return []
        text = (
            f"camera {name} is frozen: the same bytes for {self.config.frozen_time} s or more while a joint moved "
            f"{self.config.frozen_motion} rad or more. Restart it."
        )
        return [Fault(f"image_frozen {name}", "hold", text)]

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
        return [Fault("joint_states_stale", "hold", text)]

    def _implausible(self, now_ns: int) -> list[Fault]:
        distrust = self._distrust
        if distrust.since_ns is None or not 0 <= now_ns - distrust.since_ns <= DISTRUST_NS:
            return []
        return [Fault("joint_states_implausible", "hold", f"joint states are not believed: {distrust.reason}")]

    def _words(self, now_ns: int) -> list[Fault]:
        if self._instruction:
            return []
        return [Fault("no_instruction", "hold", "no instruction: publish one on the instruction topic")]

    def _policy(self, now_ns: int) -> list[Fault]:
        running = self._inference
        if running.refused_instruction is not None:
            return [Fault("instruction_refused", "hold", f"instruction refused: {running.refused_instruction}")]
        if running.failure is not None:
            return [Fault("inference_died", "hold", f"inference failed: {running.failure}")]
        if running.started_ns is None:
            return []
        taken = (now_ns - running.started_ns) / NANOSECONDS
        if taken <= self.config.inference_timeout:
            return []
        limit = self.config.inference_timeout
        return [Fault("inference_late", "wait", f"inference takes too long, allowed {limit} s")]

    def _listener(self, now_ns: int) -> list[Fault]:
        control = self._controller
        if not control.listening:
            text = f"nobody listens to {control.name}: start the controller, or correct its name in the robot's YAML"
            return [Fault("controller_absent", "stop", text)]
        if control.others:
            text = (
                f"{', '.join(control.others)} also commands {control.name}: two that command one arm make it jump. "
                "Stop one of them."
            )
            return [Fault("controller_shared", "hold", text)]
        if control.off_since_ns is None or now_ns - control.off_since_ns <= self.config.following_time * NANOSECONDS:
            return []
        text = (
            f"the controller does not follow: {control.joint} is {control.error:.3f} rad from its command, allowed "
            f"{self.config.following_error} rad. Is the arm stopped, or in collision?"
        )
        return [Fault("controller_not_following", "hold", text)]
