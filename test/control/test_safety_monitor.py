"""SafetyMonitors, each with what it does to the arm, its text, and its recovery; and that only
edges are reported: stale, silent and frozen images; camera clocks ahead and behind; stale joint
    states; no instruction; late and dead
inference; an absent controller and one that does not follow; a clock that jumps back or forward,
and one that pauses.
"""

import numpy as np
import pytest

from robovlms_ros.control.camera_check import image_digest
from robovlms_ros.control.controller_check import window_stamps
from robovlms_ros.control.faults import PermissionConfig, SafetyMonitorConfig
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.control.standstill import JointSample
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import NANOSECONDS, RobotState

START = 100 * NANOSECONDS
TICK = NANOSECONDS // 10


class Bench:
    """A healthy system at 10 Hz, whose parts can be made to fail."""

    def __init__(self) -> None:
        self.now_ns = START
        self.monitor = SafetyMonitor(SafetyMonitorConfig(), ("static", "wrist"), START)
        self.monitor.instruction("lift the red cube")
        self.monitor.controller.absence = ""
        self.q, self.frame = np.zeros(2), 0
        self.silent, self.frozen, self.joints, self.offset_ns = set(), set(), True, 0

    def tick(self, count: int = 1, speed: float = 0.0):
        for _ in range(count):
            self.now_ns += TICK
            self.frame += 1
            self.q = self.q + speed * 0.1
            if self.joints:
                self.monitor.joint_state(self.now_ns, self.q, self.now_ns)
            for camera in {"static", "wrist"} - self.silent:
                digest = 7 if camera in self.frozen else self.frame
                self.monitor.image(
                    camera, self.now_ns + self.offset_ns - NANOSECONDS // 50, digest, self.now_ns
                )
            self.report = self.monitor.check(self.now_ns)
        return self.report

    def expect(self, name: str, action: str, text: str) -> None:
        assert [fault.name for fault in self.report.faults] == [name]
        assert self.report.action == action and text in self.report.faults[0].text

    def expect_recovered(self, name: str) -> None:
        report = self.tick()
        assert report.action == "none" and not report.faults
        assert [fault.name for fault in report.recovered] == [name]
        assert self.tick().recovered == ()


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    assert bench.tick(30).faults == ()
    return bench


def test_a_camera_that_stops(bench):
    bench.silent = {"wrist"}
    bench.tick(5)
    assert not bench.report.faults
    report = bench.tick()
    bench.expect("image_stale wrist", "smooth_stop", "camera wrist stopped: no image for more than 0.5 s")
    assert report.raised == report.faults
    assert bench.tick().raised == ()  # an edge, not a level
    bench.silent = set()
    bench.expect_recovered("image_stale wrist")


def test_a_camera_that_never_speaks():
    bench = Bench()
    bench.silent = {"static"}
    bench.tick(6)
    bench.expect("image_stale static", "smooth_stop", "sent no image yet")


def test_a_frozen_camera(bench):
    bench.frozen = {"static"}
    assert bench.tick(20, speed=0.0).faults == ()  # a still scene may give identical frames
    bench.tick(10, speed=0.2)
    bench.expect("image_frozen static", "smooth_stop", "same bytes")
    bench.tick(10, speed=0.0)  # the arm is held now, which does not make the camera well
    bench.expect("image_frozen static", "smooth_stop", "a joint moved 0.05 rad or more")
    bench.frozen = set()
    bench.expect_recovered("image_frozen static")


def test_digests_tell_frames_apart():
    image = np.zeros((4, 4, 3), np.uint8)
    assert image_digest(image.tobytes()) == image_digest(image.copy().tobytes())
    assert image_digest(image.tobytes()) != image_digest((image + 1).tobytes())


@pytest.mark.parametrize(("offset", "text"), [(0.3, "0.280 s ahead of"), (-0.7, "0.720 s behind")])
def test_a_camera_clock_that_is_off(bench, offset, text):
    bench.silent = {"wrist"}
    bench.offset_ns = round(offset * NANOSECONDS)
    bench.tick(2)  # a busy machine's clock message may be late, once or twice
    assert bench.report.faults == ()
    bench.tick()
    bench.expect(
        "camera_clock static", "smooth_stop", f"camera static's clock is {text} the node's"
    )
    bench.silent, bench.offset_ns = set(), 0
    bench.expect_recovered("camera_clock static")


def test_stale_joint_states(bench):
    bench.joints = False
    bench.tick(6)
    bench.expect("joint_states_stale", "smooth_stop", "joint states are stale: none for more than 0.5 s")
    bench.joints = True
    bench.expect_recovered("joint_states_stale")


def test_joint_states_that_arrive_but_are_old(bench):
    bench.joints = False
    for _ in range(6):
        bench.monitor.joint_state(bench.now_ns - NANOSECONDS, bench.q, bench.now_ns)
        bench.tick()
    bench.expect(
        "joint_states_stale", "smooth_stop", "joint states are stale: none for more than 0.5 s"
    )


def test_no_instruction(bench):
    bench.monitor.instruction("  ")
    bench.tick()
    bench.expect("no_instruction", "smooth_stop", "publish one on the instruction topic")
    bench.monitor.instruction("lift the green cube")
    bench.expect_recovered("no_instruction")


def test_a_late_inference(bench):
    bench.monitor.inference_started(bench.now_ns)
    assert not bench.tick(10).faults
    bench.tick()
    bench.expect("inference_late", "wait", "inference takes too long, allowed 1.0 s")
    bench.monitor.inference_finished()
    bench.expect_recovered("inference_late")


def test_texts_change_on_edges_only(bench):
    bench.silent, bench.offset_ns = {"wrist"}, 300_000_000
    bench.tick(10)
    first = bench.report.faults
    assert len(first) == 2
    for _ in range(30):
        bench.offset_ns += 10_000_000
        bench.tick()
        assert bench.report.faults == first and not bench.report.raised


def test_faults_are_ordered_by_severity_then_by_appearance(bench):
    bench.monitor.instruction("")
    bench.tick()
    bench.silent, bench.joints = {"static", "wrist"}, False
    bench.tick(10)
    bench.monitor.controller.absence = "nobody listens to arm/joint_trajectory"
    bench.tick()
    names = [fault.name for fault in bench.report.faults]
    assert names == [
        "controller_absent", "no_instruction", "image_stale static", "image_stale wrist", "joint_states_stale"]
    bench.monitor.controller.absence = ""
    bench.monitor.instruction("lift the cube")
    bench.tick()
    bench.monitor.instruction("")
    bench.tick()
    assert [fault.name for fault in bench.report.faults] == [*names[2:], "no_instruction"]


def test_a_refused_instruction(bench):
    bench.monitor.instruction("fold the laundry")
    bench.monitor.inference_started(bench.now_ns)
    bench.monitor.instruction_refused("the policy never learned 'fold'")
    bench.tick()
    bench.expect(
        "instruction_refused", "smooth_stop", "instruction refused: the policy never learned 'fold'"
    )
    bench.monitor.instruction("fold the laundry")
    bench.tick()
    bench.expect("instruction_refused", "smooth_stop", "instruction refused")
    bench.monitor.instruction("lift the red cube")
    bench.expect_recovered("instruction_refused")


def test_a_dead_inference(bench):
    bench.monitor.inference_started(bench.now_ns)
    bench.monitor.inference_failed("CUDA out of memory")
    bench.tick()
    bench.expect("inference_died", "smooth_stop", "inference failed: CUDA out of memory")
    bench.monitor.inference_started(bench.now_ns)
    bench.monitor.inference_finished()
    bench.expect_recovered("inference_died")


def test_an_absent_controller(bench):
    bench.monitor.controller.absence = "nobody listens to arm/joint_trajectory"
    bench.tick()
    bench.expect("controller_absent", "cease_commands", "nobody listens to arm/joint_trajectory")
    bench.monitor.controller.absence = ""
    bench.expect_recovered("controller_absent")


def test_a_controller_that_does_not_follow(bench):
    for _ in range(6):
        bench.monitor.controller.following("elbow", -0.4, bench.now_ns)
        bench.tick()
    bench.expect("controller_not_following", "smooth_stop", "elbow is 0.400 rad from its command, allowed 0.3 rad")
    bench.monitor.controller.following("elbow", 0.1, bench.now_ns)
    bench.expect_recovered("controller_not_following")


def refer(bench, ticks, off=0.0, others=(), commanded=True):
    """The controller's reference is `off` (rad) from an elbow that is commanded to rest, or not
    commanded at all."""
    for _ in range(ticks):
        state = RobotState(bench.now_ns, np.array([0.0, off]))
        bench.monitor.controller.commanders("arm/joint_trajectory", others, bench.now_ns)
        still = np.zeros((len(window_stamps(0)), 2)) if commanded else None
        bench.monitor.controller.reference(state, still, ("shoulder", "elbow"), bench.now_ns)
        bench.tick()


def test_a_controller_that_executes_another_motion(bench):
    refer(bench, 10)
    assert not bench.report.faults
    refer(bench, 4, off=0.3)
    text = "its reference of elbow is 0.300 rad from the command (arm/joint_trajectory)"
    bench.expect("controller_reference", "cease_commands", text)
    assert "the graph shows no other sender" in bench.report.faults[0].text
    refer(bench, 6, off=0.3, commanded=False)
    bench.expect("controller_reference", "cease_commands", text)
    refer(bench, 4, off=0.3, commanded=False)  # it has been at rest for a second
    assert not bench.report.faults


def test_the_sender_of_another_motion_is_named_after_it_is_gone(bench):
    refer(bench, 1, others=("/move_group",))
    refer(bench, 30)
    refer(bench, 4, off=0.3)
    bench.expect("controller_reference", "cease_commands", "/move_group also commands it or did")
    bench.monitor.reset(bench.now_ns)
    refer(bench, 100)
    refer(bench, 4, off=0.3)
    assert "no other sender" in bench.report.faults[0].text


def test_a_reference_that_is_no_longer_reported_is_no_fault(bench):
    refer(bench, 1)
    refer(bench, 4, off=0.3)
    bench.monitor.controller.reference(None, None, (), bench.now_ns)
    bench.expect_recovered("controller_reference")


def stand_still(bench, ticks, speed=0.3, start=0.0):
    """The command moves at `speed` (rad/s) while the arm stays where it is; returns the last
    command."""
    commanded = start
    for _ in range(ticks):
        commanded += speed * 0.1
        sample = JointSample(bench.now_ns, np.array([0.0, commanded]), np.zeros(2))
        bench.monitor.moving(sample, ("shoulder", "elbow"), bench.now_ns)
        bench.tick()
    return commanded


def test_an_arm_that_does_not_move(bench):
    command = stand_still(bench, 5)
    assert not bench.report.faults
    command = stand_still(bench, 3, start=command)
    bench.expect(
        "arm_not_following", "smooth_stop", "the arm does not move: elbow was commanded to move 0."
    )
    assert "protective stop" in bench.report.faults[0].text
    # The command that is brought back ends the fault once the arm has been held for a while.
    stand_still(bench, 20, speed=0.0, start=0.02)
    bench.expect("arm_not_following", "smooth_stop", "the arm does not move")
    stand_still(bench, 12, speed=0.0, start=0.02)
    assert not bench.report.faults
    assert bench.monitor.suspects_standstill
    moved = JointSample(bench.now_ns, np.zeros(2), np.full(2, 0.1))
    bench.monitor.moving(moved, ("a", "b"), bench.now_ns)
    assert not bench.monitor.suspects_standstill


def test_an_arm_that_stays_away_from_its_command_stays_held(bench):
    command = stand_still(bench, 8)
    stand_still(bench, 100, speed=0.0, start=command)
    bench.expect("arm_not_following", "smooth_stop", "the arm does not move")
    bench.monitor.reset(bench.now_ns)
    bench.monitor.moving(None, (), bench.now_ns)
    assert not bench.tick().faults
    assert not bench.monitor.suspects_standstill


def test_nothing_commanded_is_no_standstill(bench):
    stand_still(bench, 8)
    bench.expect("arm_not_following", "smooth_stop", "the arm does not move")
    bench.monitor.moving(None, (), bench.now_ns)
    bench.expect_recovered("arm_not_following")


@pytest.mark.parametrize("seconds", [-50, 60])
def test_a_clock_that_jumps(bench, seconds):
    bench.monitor.inference_started(bench.now_ns)
    bench.now_ns += seconds * NANOSECONDS
    report = bench.monitor.check(bench.now_ns)
    assert report.action == "cease_commands"
    assert [fault.name for fault in report.raised] == ["clock_jumped"]
    assert (
        "jumped back by 50" in report.faults[0].text
        or "jumped forward by 60" in report.faults[0].text
    )
    bench.silent = {"wrist"}
    bench.tick()
    bench.expect("clock_jumped", "cease_commands", "waiting for new images and joint states")
    bench.silent = set()
    bench.expect_recovered("clock_jumped")


def test_a_paused_clock_is_no_fault(bench):
    for _ in range(100):
        assert bench.monitor.check(bench.now_ns).action == "none"


def test_activation_starts_afresh_and_the_strongest_action_wins(bench):
    bench.silent, bench.joints = {"static", "wrist"}, False
    bench.monitor.controller.absence = "nobody listens to arm/joint_trajectory"
    report = bench.tick(10)
    assert {fault.action for fault in report.faults} == {"smooth_stop", "cease_commands"}
    assert report.action == "cease_commands"
    assert [fault.name for fault in report.faults] == [
        "controller_absent",
        "image_stale static",
        "image_stale wrist",
        "joint_states_stale",
    ]
    bench.monitor.controller.absence = ""
    bench.monitor.reset(bench.now_ns)
    assert bench.monitor.check(bench.now_ns).faults == ()


def test_thresholds_are_checked():
    with pytest.raises(ConfigError, match=r"watchdog\.max_age = 0: must be a number above 0"):
        SafetyMonitorConfig(max_age=0)


def permission(timeout: float = 0.0, resume: bool = False) -> SafetyMonitor:
    config = PermissionConfig("may_move", timeout, resume)
    return SafetyMonitor(SafetyMonitorConfig(), (), START, config)


def permission_fault(monitor: SafetyMonitor, now_ns: int) -> str:
    report = monitor.check(now_ns)
    faults = [fault for fault in report.faults if fault.name == "robot_may_not_move"]
    assert all(fault.action == "smooth_stop" for fault in faults)
    return faults[0].text if faults else ""


def test_permission_to_move() -> None:
    monitor = permission()
    assert "has not come on may_move" in permission_fault(monitor, START)
    assert not monitor.permission_withdrawn, "an arm that never moved may begin by itself"
    monitor.robot_may_move(True, START)
    assert permission_fault(monitor, START + TICK) == ""
    assert permission_fault(monitor, START + 3000 * TICK) == "", "the last one counts"
    monitor.robot_may_move(False, START)
    assert "false on may_move" in permission_fault(monitor, START + TICK)
    assert monitor.permission_withdrawn


def test_a_permission_that_must_be_renewed() -> None:
    monitor = permission(timeout=1.0, resume=True)
    monitor.robot_may_move(True, START)
    assert permission_fault(monitor, START + 9 * TICK) == ""
    assert "more than 1 s" in permission_fault(monitor, START + 11 * TICK)
    assert not monitor.permission_withdrawn, "it may resume"
    monitor.robot_may_move(True, START + 12 * TICK)
    assert permission_fault(monitor, START + 13 * TICK) == ""
