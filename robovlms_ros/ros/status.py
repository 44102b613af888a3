"""Status of the node: PolicyStatus on every change and twice a second, /diagnostics once a second,
and the latencies in both."""

import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock

from robovlms_ros.core.text_safety import RepeatFilter, printable, without_numbers
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.msg import PolicyStatus
from robovlms_ros.ros.graph import LATCHED
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.messages import to_time
from robovlms_ros.ros.spinning import QUIET_PUBLISHER

TEXT_LIMIT = 1000
"""Characters of a status text; the fields of messages in it are cut much shorter where they are
quoted."""

LEVELS = {
    PolicyStatus.RUNNING: DiagnosticStatus.OK,
    PolicyStatus.INACTIVE: DiagnosticStatus.OK,
    PolicyStatus.CONFIGURING: DiagnosticStatus.OK,
    PolicyStatus.FINALIZED: DiagnosticStatus.OK,
    PolicyStatus.PAUSED: DiagnosticStatus.OK,
    PolicyStatus.WAITING: DiagnosticStatus.WARN,
    PolicyStatus.UNCONFIGURED: DiagnosticStatus.WARN,
    PolicyStatus.HOLDING: DiagnosticStatus.ERROR,
}


class Latencies:
    """The newest durations of one kind, in seconds."""

    def __init__(self, keep: int = 1000) -> None:
        self._values: deque[float] = deque(maxlen=keep)

    def add(self, seconds: float) -> None:
        """Take one more."""
        self._values.append(seconds)

    def __len__(self) -> int:
        return len(self._values)

    def percentile(self, percent: float) -> float:
        """NaN while there are none."""
        return float(np.percentile(list(self._values), percent)) if self._values else math.nan


@dataclass
class NodeStatus:
    """The facts behind a status, kept by whoever knows them. Stamps in ns, 0 for never.

    history_step: s between the frames of the training; None for a policy without a history.
    speed_scaling: the part of the speed limits in use now; NaN where there is no gate. clearance:
    the nearest bodies along the newest command and their distances, empty without a check.
    """

    state: str = PolicyStatus.UNCONFIGURED
    detail: str = ""
    instruction: str = ""
    policy_id: str = ""
    path: str = ""
    trajectory_shape: str = ""
    dry_run: bool = True
    history: tuple[int, int] = (0, 0)
    history_every: int = 1
    history_step: float | None = None
    chunks: int = 0
    refusals: int = 0
    speed_scaling: float = math.nan
    clamps: int = 0
    last_clamp: str = ""
    last_refusal: str = ""
    last_refusal_ns: int = 0
    last_stop: str = ""
    last_stop_ns: int = 0
    clearance: str = ""
    reaction: Latencies = field(default_factory=Latencies)
    inference: Latencies = field(default_factory=Latencies)

    def set_state(self, state: str, detail: str) -> None:
        """Enter a state; the same complaint with another number is no change."""
        same_detail = without_numbers(detail) == without_numbers(self.detail)
        if state != self.state or not same_detail:
            self.state = state
            self.detail = detail

    def falls_behind(self) -> str:
        """Reason for the history to fall behind the rate of training, empty for none."""
        spent = self.inference.percentile(50)
        step = self.history_step
        every = self.history_every
        if step is None or not spent > every * step:
            return ""
        thinned = f", thinned out to one in {every}" if every > 1 else ""
        return (
            f"an inference takes {spent:.3f} s (p50), the policy was trained on a frame every "
            f"{step:.3f} s{thinned}"
        )

    def change_key(self) -> tuple[object, ...]:
        """Fields whose change is published at once."""
        return (
            self.state,
            self.detail,
            self.instruction,
            self.policy_id,
            self.trajectory_shape,
            self.last_stop_ns,
            self.last_stop,
        )


def status_message(report: NodeStatus, now_ns: int) -> PolicyStatus:
    """The report as a PolicyStatus."""
    message = PolicyStatus(
        state=report.state, detail=printable(report.detail, TEXT_LIMIT),
        instruction=printable(report.instruction), policy_id=report.policy_id,
        trajectory_shape=printable(report.trajectory_shape, TEXT_LIMIT),
        dry_run=report.dry_run, history_have=report.history[0], history_want=report.history[1],
        chunks=report.chunks, refusals=report.refusals,
        latency_p50=report.reaction.percentile(50), latency_p99=report.reaction.percentile(99),
        inference_p50=report.inference.percentile(50), inference_p99=report.inference.percentile(99),
        latency_count=len(report.reaction),
        authority=report.speed_scaling,  # messages keep their fields
        clamps=report.clamps,
        last_clamp=printable(report.last_clamp, TEXT_LIMIT),
        last_refusal=printable(report.last_refusal, TEXT_LIMIT), last_refusal_time=to_time(report.last_refusal_ns),
        last_stop=printable(report.last_stop, TEXT_LIMIT), last_stop_time=to_time(report.last_stop_ns),
    )
    message.header.stamp = to_time(now_ns)
    return message


def diagnostics_message(report: NodeStatus, node_name: str, watched: dict[str, str], now_ns: int) -> DiagnosticArray:
    """The report, and one status per watched thing: `watched` maps its name to what is wrong, empty
    when nothing is."""
    values = {
        "instruction": printable(report.instruction), "policy": report.policy_id, "path": report.path,
        "trajectory shape": report.trajectory_shape,
        "dry_run": str(report.dry_run).lower(),
        "history": f"{report.history[0]} of {report.history[1]}"
                   + (f", one frame in {report.history_every} steps" if report.history_every > 1 else ""),
        "chunks": str(report.chunks), "refusals": str(report.refusals),
        "reaction p50, p99 (s)": f"{report.reaction.percentile(50):.4f}, {report.reaction.percentile(99):.4f}",
        "inference p50, p99 (s)": f"{report.inference.percentile(50):.4f}, {report.inference.percentile(99):.4f}",
        "authority": f"{report.speed_scaling:.2f}",
        "clamped": str(report.clamps),
        "last clamp": report.last_clamp,
        "last refusal": report.last_refusal, "last stop": report.last_stop,
        "clearance": report.clearance,
    }
    # An inactive node has a detail only where it deactivated itself.
    own_end = report.state == PolicyStatus.INACTIVE and bool(report.detail)
    level = DiagnosticStatus.ERROR if own_end else LEVELS[report.state]
    overall = DiagnosticStatus(
        level=level, name=f"{node_name}: policy", hardware_id=node_name,
        message=printable(f"{report.state}: {report.detail}" if report.detail else report.state, TEXT_LIMIT),
        values=[KeyValue(key=key, value=printable(value, TEXT_LIMIT)) for key, value in values.items()],
    )
    parts = [
        DiagnosticStatus(level=DiagnosticStatus.ERROR if text else DiagnosticStatus.OK, name=f"{node_name}: {name}",
                         hardware_id=node_name, message=printable(text, TEXT_LIMIT) or "ok")
        for name, text in watched.items()
    ]
    message = DiagnosticArray(status=[overall, *parts])
    message.header.stamp = to_time(now_ns)
    return message


PERIOD = 0.5


class StatusPublisher:
    """Publishes one node's report, from any thread; a status never overtakes a newer one.

    watched: parts of /diagnostics beside the policy: name -> what is wrong, empty when
        nothing is.
    clock: paces the reports, so that they go on while simulated time is paused.
    """

    def __init__(self, node: PlainLifecycleNode, report: NodeStatus, watched: Callable[[], dict[str, str]],
                 clock: Clock) -> None:
        self._node = node
        self._report = report
        self._watched = watched
        self._lock = threading.Lock()
        self._said: tuple[object, ...] = ()
        self._logged = ""
        self._clock = clock
        self._repeats = RepeatFilter()
        self._beats = 0
        self._status = node.create_publisher(PolicyStatus, "~/status", LATCHED, event_callbacks=QUIET_PUBLISHER)
        self._diagnostics = node.create_publisher(DiagnosticArray, "/diagnostics", 10,
                                                   event_callbacks=QUIET_PUBLISHER)
        node.create_timer(PERIOD, self._on_beat, callback_group=node.work_group, clock=clock)

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def log_edge(self, line: str) -> None:
        """Log a line about a change; the same one, numbers aside, again only after a while."""
        if self._repeats.passes(line, self._clock.now().nanoseconds / NANOSECONDS):
            self._node.get_logger().info(printable(line, TEXT_LIMIT))

    def publish_on_change(self) -> None:
        """Publish the status if it must be received at once."""
        if self._report.change_key() != self._said:
            self.publish()

    def publish(self) -> None:
        """Publish the status."""
        with self._lock:
            self._said = self._report.change_key()
            line = f"{self._report.state}: {self._report.detail}"
            # Edges are logged, not levels: the same complaint with another number is no news.
            edge = without_numbers(line)
            if edge != self._logged and self._report.detail:
                self.log_edge(line)
            self._logged = edge
            self._status.publish(status_message(self._report, self._now_ns()))

    def _on_beat(self) -> None:
        self.publish()
        self._beats += 1
        if self._beats % round(1.0 / PERIOD) == 0:
            self._diagnostics.publish(diagnostics_message(
                self._report, self._node.get_fully_qualified_name(), self._watched(), self._now_ns()))
