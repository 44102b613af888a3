"""Faults injected through the real graph into an arm at working speed, and the arm's motion judged
against its limits.

The node is a process of its own, on a domain of its own; the arm is `FaultArm`. For each fault the
arm first moves at WORKING_SPEED or more. Judged from the fault on, the recovery included: every
command step against the joints' speed limit, measured speed, commanded and measured acceleration,
positions, and the time to rest (`rows`).
"""

import argparse
import datetime
import itertools
import math
import os
import platform
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState

from robovlms_ros.bench.faults.arm import PERIOD
from robovlms_ros.bench.faults.rows import (
    FaultRow,
    Motion,
    as_json,
    judge,
    longest_standstill,
    markdown,
    time_to_rest,
)
from robovlms_ros.bench.faults.stage import FaultStage
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.messages import from_time, to_time
from robovlms_ros.ros.processes import isolated_environment

WORKING_SPEED = 0.6  # rad/s
AFTER = 2.6  # s recorded after a fault
RECOVERY = 1.0  # s recorded after the node runs again
STOP = 0.6  # s: the longest stop from working speed, below the 0.8 s in which a plan ends by itself
SILENCE = 0.6  # s until silence counts (max_age), and a tick
FROZEN = 2.5  # s: found after 0.5 s, a stop, and the set point's way back to the arm
PLAN = 1.3  # s: a chunk's horizon and the stop at its end
LATE = 0.01
"""s that a message's lead leaves for its way: later ones step, whatever the node sends."""

REPEATS = 5
TAKEN_UP = 2 * PERIOD
"""s after which the controller has taken up a command that arrived."""


@dataclass(frozen=True)
class InjectedFault:
    """One fault. inject is called at working speed, mend after the record.

    rest_allowed: s until the arm must be at rest, from the injection on; NaN where the motion goes
    on. resumes: the motion may stop and must move again while the fault is present. slow: the
    injection takes seconds, and the fault is complete at its end; the time to rest counts from
    there.
    restarts: the node's process has ended and is started again afterwards. simulated_time: needs
        /clock.
    """

    name: str
    inject: Callable[[FaultStage], Any]
    mend: Callable[[FaultStage], Any] = lambda stage: None
    rest_allowed: float = math.nan
    resumes: bool = False
    slow: bool = False
    restarts: bool = False
    simulated_time: bool = False

    @property
    def motion(self) -> Motion:
        """The motion that the fault must leave."""
        if self.resumes:
            return "resumes"
        return "goes on" if math.isnan(self.rest_allowed) else "rests"


def _hook_joints(change: Callable[[JointState], JointState | None]) -> Callable[[FaultStage], None]:
    def inject(stage: FaultStage) -> None:
        stage.arm.joint_hook = change

    return inject


def _hook_images(change: Callable[[Any], Any]) -> Callable[[FaultStage], None]:
    def inject(stage: FaultStage) -> None:
        stage.arm.image_hook = change

    return inject


def _mend_messages(stage: FaultStage) -> None:
    stage.arm.joint_hook = lambda message: message
    stage.arm.image_hook = lambda message: message
    stage.arm.silent_camera = ""


def _shifted(seconds: float) -> Callable[[Any], Any]:
    def change(message: Any) -> Any:
        message.header.stamp = to_time(from_time(message.header.stamp) + round(seconds * NANOSECONDS))
        return message

    return change


def _once(change: Callable[[JointState], JointState]) -> Callable[[JointState], JointState]:
    done: list[bool] = []

    def first(message: JointState) -> JointState:
        if done:
            return message
        done.append(True)
        return change(message)

    return first


def _moved(joint: int, distance: float) -> Callable[[JointState], JointState]:
    def change(message: JointState) -> JointState:
        message.position[joint] += distance
        return message

    return change


def _not_a_number(message: JointState) -> JointState:
    message.position[3] = math.nan
    return message


def _velocities_not_a_number(message: JointState) -> JointState:
    message.velocity = [math.nan] * len(message.name)
    return message


def _one_joint_less(message: JointState) -> JointState:
    del message.name[6]
    del message.position[6]
    return message


def _named_twice(message: JointState) -> JointState:
    message.name = [*message.name, message.name[3]]
    message.position = [*message.position, 0.0]
    return message


def _frozen(field: str) -> Callable[[Any], Any]:
    """A field of every message repeats the first message's value."""
    kept: list[Any] = []

    def change(message: Any) -> Any:
        kept.append(getattr(message, field))
        setattr(message, field, kept[0])
        return message

    return change


def _every_other(change: Callable[[JointState], JointState]) -> Callable[[JointState], JointState]:
    count = itertools.count()
    return lambda message: change(message) if next(count) % 2 else message


def _without_wrist(stage: FaultStage) -> None:
    stage.arm.silent_camera = "wrist"


def _controller_restart(stage: FaultStage) -> None:
    stage.arm.listen(False)
    stage.arm.restart_controller()
    time.sleep(0.3)
    stage.arm.listen(True)


def _controller_away(stage: FaultStage) -> None:
    stage.arm.listen(False)
    stage.arm.restart_controller()


def _release(stage: FaultStage) -> None:
    stage.arm.frozen = False


def _jump_clock(seconds: float) -> Callable[[FaultStage], None]:
    def inject(stage: FaultStage) -> None:
        # No client can take back what is under way to a controller whose clock jumps.
        before = stage.arm.received
        stage.wait(lambda: stage.arm.received > before, "a command, before the clock jumps")
        time.sleep(TAKEN_UP)
        stage.arm.jump_clock(seconds)

    return inject


def faults() -> tuple[InjectedFault, ...]:
    """Every fault of docs/faults.md, each watchdog and each end."""
    healthy = _mend_messages
    silent = SILENCE + STOP
    policy = lambda kind: lambda stage: stage.policy_fault(kind)  # noqa: E731
    strangers = FaultStage.remove_strangers
    return (
        InjectedFault("joint states silent", _hook_joints(lambda message: None), healthy, silent),
        InjectedFault("joint states 0.6 s old", _hook_joints(_shifted(-0.6)), healthy, silent),
        InjectedFault("joint states stamped 8 s ahead", _hook_joints(_shifted(8.0)), healthy, STOP),
        InjectedFault(
            "one glitch of 0.6 rad",
            lambda s: _hook_joints(_once(_moved(0, 0.6)))(s),
            healthy,
            resumes=True,
        ),
        InjectedFault(
            "one reading of 100 rad",
            lambda s: _hook_joints(_once(_moved(2, 100.0)))(s),
            healthy,
            resumes=True,
        ),
        InjectedFault(
            "zeros of a second publisher",
            lambda s: s.second_publisher(np.zeros(7)),
            strangers,
            STOP,
        ),
        InjectedFault(
            "a second publisher that agrees",
            lambda s: s.second_publisher(None),
            strangers,
            0.5 + STOP,
        ),
        InjectedFault(
            "a position that is not a number", _hook_joints(_not_a_number), healthy, STOP
        ),
        InjectedFault(
            "joint states without their last joint", _hook_joints(_one_joint_less), healthy, STOP
        ),
        InjectedFault(
            "joint states that repeat one pose",
            lambda s: _hook_joints(_frozen("position"))(s),
            healthy,
            2.0 + STOP,
        ),
        InjectedFault(
            "every other joint state 0.3 s old",
            lambda s: _hook_joints(_every_other(_shifted(-0.3)))(s),
            healthy,
        ),
        InjectedFault(
            "every other joint state 0.09 s ahead",
            lambda s: _hook_joints(_every_other(_shifted(0.09)))(s),
            healthy,
        ),
        InjectedFault(
            "velocities that are not numbers", _hook_joints(_velocities_not_a_number), healthy
        ),
        InjectedFault("a joint with two values", _hook_joints(_named_twice), healthy, STOP),
        InjectedFault("cameras silent", _hook_images(lambda message: None), healthy, silent),
        InjectedFault("one of two cameras silent", _without_wrist, healthy, silent),
        InjectedFault("camera clock 8 s ahead", _hook_images(_shifted(8.0)), healthy, silent),
        InjectedFault(
            "cameras frozen", lambda s: _hook_images(_frozen("data"))(s), healthy, 1.2 + STOP
        ),
        InjectedFault(
            "empty instruction",
            lambda s: s.instruct(""),
            lambda s: s.instruct("lift the red cube"),
            STOP,
        ),
        InjectedFault("inference late", policy("late"), policy(""), PLAN + 0.2),
        InjectedFault("inference failed", policy("died"), policy(""), 0.3 + STOP),
        InjectedFault("chunk not finite", policy("not_finite"), policy(""), 0.3 + STOP),
        InjectedFault("chunk of 1e6 rad", policy("huge"), policy(""), 0.3 + STOP),
        InjectedFault("chunk 0.5 rad away", policy("jump"), policy("")),
        InjectedFault("controller away", _controller_away, lambda s: s.arm.listen(True), STOP),
        InjectedFault("controller restarted", _controller_restart, resumes=True),
        InjectedFault("arm frozen, then released", lambda s: s.arm.freeze(), _release, FROZEN),
        InjectedFault(
            "second publisher of commands", lambda s: s.second_commander(), strangers, STOP
        ),
        InjectedFault(
            "second policy node", lambda s: s.second_node(), strangers, 0.5 + STOP, slow=True
        ),
        InjectedFault("pause", lambda s: s.pause(True), lambda s: s.pause(False), STOP),
        InjectedFault(
            "pause and resume at once",
            lambda s: (s.pause(True), s.pause(False)),
            resumes=True,
        ),
        InjectedFault("reset", lambda s: s.reset(), resumes=True),
        InjectedFault("deactivate", lambda s: s.deactivate(), lambda s: s.activate(), STOP),
        InjectedFault(
            "SIGINT", lambda s: s.signal(signal.SIGINT), rest_allowed=STOP, restarts=True
        ),
        InjectedFault(
            "SIGTERM", lambda s: s.signal(signal.SIGTERM), rest_allowed=STOP, restarts=True
        ),
        InjectedFault(
            "kill -9", lambda s: s.signal(signal.SIGKILL), rest_allowed=PLAN, restarts=True
        ),
        InjectedFault(
            "clock 50 s back", _jump_clock(-50.0), resumes=True, simulated_time=True
        ),
        InjectedFault(
            "clock 60 s forward", _jump_clock(60.0), resumes=True, simulated_time=True
        ),
    )


def measure(stage: FaultStage, fault: InjectedFault) -> FaultRow:
    """Bring the arm to working speed, inject the fault and judge the motion after it."""
    stage.wait(lambda: stage.status.state == PolicyStatus.RUNNING, f"running, before '{fault.name}'")
    # The gripper closes once in two of its periods: faults are injected then, where it comes in
    # time.
    deadline = time.monotonic() + 6.0

    def ready() -> bool:
        fast = stage.arm.speed() >= WORKING_SPEED
        closing = time.monotonic() - stage.arm.gripper_closes_s < 0.4
        return fast and (closing or time.monotonic() > deadline)

    stage.wait(ready, f"{WORKING_SPEED} rad/s, before '{fault.name}'")
    closing = time.monotonic() - stage.arm.gripper_closes_s < 0.4
    speed = stage.arm.speed()
    since = stage.arm.mark()
    stage.arm.delayed = 0.0
    earlier = stage.status.last_stop
    begin = time.monotonic()
    fault.inject(stage)
    complete = since
    if fault.slow:
        complete = stage.arm.mark()
        begin = time.monotonic()
    time.sleep(max(0.0, begin + AFTER - time.monotonic()))
    state = stage.status.state
    stopped = stage.status.last_stop
    detail = stage.status.detail or (stopped if stopped != earlier else "")
    until = stage.arm.mark()
    fault.mend(stage)
    _recover(stage, fault)
    times, commands, measured, own = stage.arm.recorded(max(0, since - 3))
    judged = judge(times, commands, measured, own, stage.arm.robot)
    present = slice(3 + complete - since, until - since)
    rest = time_to_rest(times[present], commands[present])
    standstill = longest_standstill(times[present], commands[present])
    return FaultRow(
        fault.name,
        speed,
        closing,
        *judged,
        rest,
        fault.rest_allowed,
        fault.motion,
        standstill,
        state,
        detail,
        stage.arm.delayed,
    )


def _recover(stage: FaultStage, fault: InjectedFault) -> None:
    """Bring the node back to running and let the arm move: what a recovery commands is judged like
    the fault."""
    if fault.restarts:
        stage.node.stop()
        stage.start_node()
    # the node deactivated itself after many refusals
    if stage.status.state == PolicyStatus.INACTIVE:
        stage.activate()
    stage.wait(lambda: stage.status.state == PolicyStatus.RUNNING, f"running, after '{fault.name}'")
    time.sleep(RECOVERY)


@contextmanager
def _stage(simulated_time: bool) -> Iterator[FaultStage]:
    logs = Path(tempfile.mkdtemp(prefix="robovlms_faults_"))
    stage = FaultStage(logs, simulated_time)
    try:
        stage.start_node()
        yield stage
    finally:
        stage.close()
        stage.destroy_node()


def measure_all(chosen: Sequence[InjectedFault], report: Callable[[FaultRow], None]) -> list[FaultRow]:
    """Measure the chosen faults; `report` is called with each row. A measurement in which the
    machine delayed a command on its way is repeated. Raises BenchFailed, ChildDied."""
    # A domain of its own, on this machine only: the commands must never reach a real arm on the
    # network.
    os.environ.update(isolated_environment())
    rows = []
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        for simulated_time in (False, True):
            group = [fault for fault in chosen if fault.simulated_time == simulated_time]
            if not group:
                continue
            with _stage(simulated_time) as stage:
                for fault in group:
                    row = measure(stage, fault)
                    repeats = 0
                    while row.delayed > LATE and repeats < REPEATS:
                        row = measure(stage, fault)
                        repeats += 1
                    rows.append(row)
                    report(row)
    finally:
        rclpy.try_shutdown()
    return rows


def run(args: argparse.Namespace) -> int:
    """Measure; returns 1 when a fault is beyond its bounds."""
    known = faults()
    texts = args.only or [""]
    chosen = [fault for fault in known if any(text in fault.name for text in texts)]
    if not chosen:
        names = ", ".join(fault.name for fault in known)
        print(f"no fault contains {args.only}. There are: {names}")
        return 2
    rows = measure_all(chosen, _show)
    beyond = [row.fault for row in rows if not row.within]
    write_json(args.json, as_json(rows))
    if args.markdown:
        page = _page(markdown(rows), len(rows), beyond)
        args.markdown.write_text(page, encoding="utf-8")
    print(f"{len(rows)} faults, beyond their bounds: {', '.join(beyond) or 'none'}")
    return 1 if beyond else 0


def _show(row: FaultRow) -> None:
    print(markdown([row]).splitlines()[-1], flush=True)


def _page(table: str, count: int, beyond: list[str]) -> str:
    cores = os.cpu_count()
    today = datetime.date.today().isoformat()
    return f"""# Faults at working speed

`./scripts/run robovlms bench faults --markdown docs/results/faults.md`, {today}, {platform.machine()}, {cores}
shared cores. {count} faults, {len(beyond)} beyond their bounds{": " + ", ".join(beyond) if beyond else ""}.

The policy node runs as a process of its own over Fast DDS. The arm is a model of
joint_trajectory_controller with a first-order lag of 20 ms. A scripted policy moves it at 0.6 rad/s
or more when the fault is injected. Columns are parts of the planning limits of
`config/robots/panda.yaml`. Bounds: command step 1.01, measured speed 1.05, acceleration 1.2. The
recovery after each fault is judged, too. A restarted controller takes up the measured pose by
itself; that one step is the controller's and is not counted. A measurement in which the machine
delayed a command by more than 10 ms on its way from the node to the controller is repeated.

{table}
"""
