"""One arm's chunks to commands: plan, schedule, gate, motion guard. Node, rollouts and bags all run
it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from robovlms_ros.control.collision_solids import CollisionModel
from robovlms_ros.control.description.shapes import CollisionGeometryError
from robovlms_ros.control.gripper_schedule import GripperSwitch, OpeningSchedule
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import (
    AdmittedCommand,
    AdmittedOpening,
    CommandRejected,
    MotionGuard,
)
from robovlms_ros.control.planner import PlanRefused, plan_chunk
from robovlms_ros.control.robot import RobotSpec
from robovlms_ros.control.safety_gate import SafetyGate, Verdict
from robovlms_ros.control.schedule import ScheduleConfig, ScheduleRefused
from robovlms_ros.control.scheduler import ChunkScheduler
from robovlms_ros.control.trajectory import Array, Spline, Stamps, curve_of, cut
from robovlms_ros.core.types import (
    ActionChunk,
    JointPlan,
    RobotState,
    TrajectoryCommand,
    TrajectoryShape,
)

AT_COMMAND = 0.02
"""rad: an arm at rest this near to its last command is there, but for gravity and friction."""

MARGIN_NS = 5_000_000
"""The part of a message's lead that is left for the way to the controller."""

LONGEST_LEAD_NS = 200_000_000
"""The longest lead of a chunk's message that is computed again."""

STOP_ATTEMPTS = 3

STOP_MARGIN = 0.5
"""Part of the collision margins that a stop keeps: it may leave the plan's path by the rest."""

BACK_SHARE = 0.4
"""Part of the speed limits, times the speed scaling, for the return of a set point to the arm."""

FARTHEST_BACK = 1.0
"""rad: a set point that is further from the arm stays where it is."""

REST_SPEED = 0.05
"""rad/s: a joint that is measured slower than this is at rest."""


@dataclass(frozen=True)
class Decision:
    """The executor's answer to a chunk.

    command: ready to be sent to the arm's controller; None for a refused chunk, which `smooth_stop`
        follows.
    gripper: the opening to be commanded now, 0 or 1; None when there is nothing to command.
    verdict: pass, clamp or refuse, and the reason. plan: the chunk in joint space; None where it
        cannot be planned.
    """

    command: AdmittedCommand | None
    gripper: AdmittedOpening | None
    verdict: Verdict
    plan: JointPlan | None


class ChunkExecutor:
    """Turns the chunks of one arm into commands. Not thread safe; time comes in as stamps.

    kinematics: None for a policy in joint space.
    """

    def __init__(
        self,
        robot: RobotSpec,
        kinematics: Kinematics | None,
        scheduler: ChunkScheduler,
        gate: SafetyGate,
        guard: MotionGuard,
    ) -> None:
        self.robot = robot
        self.kinematics = kinematics
        self.scheduler = scheduler
        self.gate = gate
        self.guard = guard
        self._switch = None if robot.gripper is None else GripperSwitch(robot.gripper)
        self._openings = OpeningSchedule(self.scheduler.config, robot.gripper)
        self._resumed = False
        self.stop_conflict = ""
        """The collision that the last stop was changed for, or could not avoid; empty for none."""

    @property
    def shape(self) -> TrajectoryShape:
        """The shape of the commands that follow, by the controller that they are for; it may be set
        at any time."""
        return self.scheduler.shape

    @shape.setter
    def shape(self, shape: TrajectoryShape) -> None:
        self.scheduler.shape = shape

    def reset(self) -> None:
        """Forget everything, the commanded motion included: the next chunk starts at the measured
        state."""
        self._forget_motion()
        self.restart()
        self._resumed = False

    def restart(self) -> None:
        """Activation or the end of a pause: forget chunks, counts and gripper steps, not the
        commanded motion.

        The next chunk continues the commanded motion while that still runs, or while the arm rests
        at its end; otherwise it starts at the measured state.
        """
        self.scheduler.forget_chunks()
        self.gate.reset_counts()
        self._openings.forget()
        self._resumed = True
        if self._switch is not None:
            self._switch.reset()

    def plan(self, chunk: ActionChunk, state_at_stamp: RobotState) -> JointPlan | PlanRefused:
        """The chunk in joint space, or the reason why there is none. The slow part: inverse
        kinematics, no time."""
        try:
            return plan_chunk(chunk, state_at_stamp, self.kinematics, self.robot)
        except PlanRefused as refusal:
            return refusal

    def on_chunk(
        self,
        chunk: ActionChunk,
        state_at_stamp: RobotState,
        measured: RobotState,
        now_ns: int,
        speed: Array | None = None,
        plan: JointPlan | PlanRefused | None = None,
        clock: Callable[[], int] | None = None,
        commit: bool = True,
    ) -> Decision:
        """The decision on a chunk that has just become ready.

        commit: False for a preview, after which nothing counts as commanded.

        state_at_stamp: the arm when the chunk's image was taken. measured: the arm now. speed: (J,)
            measured, rad/s,
        for an arm that is really commanded: a motion that continues no other one starts from rest
            only. plan: the
        answer of `plan`, for a caller that reads the time after it; None computes it here. clock:
        the time now, ns: a message that took longer to compute than it leads is computed once more
            with a longer lead; None for a replay.
        """
        motion = self.guard.commanded
        if motion is not None and motion.times_ns[0] > now_ns:
            self._forget_motion()  # the clock went back: the motion's times mean nothing any more
        if self._resumed:
            self._resumed = False
            self._keep_or_forget_motion(measured, now_ns)
        if speed is not None and self.guard.commanded is None and not np.abs(speed).max() <= REST_SPEED:
            joint = int(np.argmax(np.abs(speed)))
            return Decision(None, None, Verdict("refuse", _moving(self.robot.joints[joint], speed[joint]), None), None)
        if plan is None:
            plan = self.plan(chunk, state_at_stamp)
        if isinstance(plan, PlanRefused):
            return Decision(None, None, self.gate.refuse(str(plan), now_ns), None)
        counts = self.gate.counts
        ramp_began_ns = self.gate.ramp_began_ns
        decision, now_ns = self._decide_in_time(chunk, plan, measured, now_ns, clock)
        if decision.command is None:
            self.gate.resume(self.guard.commanded)
            return decision
        if not commit:
            self.gate.counts = counts
            self.gate.ramp_began_ns = ramp_began_ns
            self.gate.resume(self.guard.commanded)
            return decision
        self.guard.record(decision.command, now_ns)
        self.scheduler.commit(decision.command)
        self.gate.resume(self.guard.commanded)
        self._openings.add(plan)
        return replace(decision, gripper=self.gripper_at(now_ns))

    def _decide_in_time(
        self,
        chunk: ActionChunk,
        plan: JointPlan,
        measured: RobotState,
        now_ns: int,
        clock: Callable[[], int] | None,
    ) -> tuple[Decision, int]:
        """A decision whose command arrives before it takes effect, and the time it was made for."""
        counts = self.gate.counts
        lead_ns = self.scheduler.lead_ns
        decision = self._decide(chunk, plan, measured, now_ns, lead_ns)
        if clock is None or decision.command is None:
            return decision, now_ns
        spent_ns = clock() - now_ns
        if spent_ns <= lead_ns - MARGIN_NS:
            return decision, now_ns
        self.gate.counts = counts
        now_ns = clock()
        lead_ns = min(2 * spent_ns + lead_ns, LONGEST_LEAD_NS)
        decision = self._decide(chunk, plan, measured, now_ns, lead_ns)
        late_ns = clock() - now_ns
        if decision.command is not None and not 0 <= late_ns <= lead_ns - MARGIN_NS:
            text = f"the command took {late_ns / 1e6:.0f} ms to compute: it would arrive too late."
            decision = Decision(None, None, self.gate.refuse(text, now_ns), plan)
        return decision, now_ns

    def _decide(
        self, chunk: ActionChunk, plan: JointPlan, measured: RobotState, now_ns: int, lead_ns: int
    ) -> Decision:
        """Schedule, gate and guard; nothing is committed."""
        try:
            proposed = self.scheduler.propose(plan, now_ns, measured, lead_ns)
        except ScheduleRefused as refusal:
            return Decision(None, None, self.gate.refuse(str(refusal), now_ns), plan)
        self.gate.resume(self.guard.commanded)
        verdict = self.gate.check(proposed, measured, now_ns, chunk.stamp_ns, lead_ns)
        if verdict.command is None:
            return Decision(None, None, verdict, plan)
        try:
            admitted = self.guard.admit(verdict.command, now_ns, measured)
        except CommandRejected as rejection:
            return Decision(None, None, self.gate.refuse(str(rejection), now_ns), plan)
        return Decision(admitted, None, verdict, plan)

    def dry_run_chunk(
        self,
        chunk: ActionChunk,
        state_at_stamp: RobotState,
        measured: RobotState,
        now_ns: int,
        plan: JointPlan | PlanRefused | None = None,
    ) -> Decision:
        """`on_chunk` for an arm that is not commanded (dry run): judged as if the arm had followed
        the plan so far.

        After a refusal, and where the plan is further from the arm than max_start_jump (somebody
        else moves the arm, or nobody does), the plan begins again at the measured state. The
        chunk's targets are composed from the arm's real pose, which is the one that the policy saw.
        """
        then = self.commanded(measured.stamp_ns)
        if then is not None and np.abs(then[0] - measured.positions).max() <= self.robot.max_start_jump:
            measured = replace(measured, positions=then[0], velocities=then[1], eef_pose=None)
        else:
            self._forget_motion()
        decision = self.on_chunk(chunk, state_at_stamp, measured, now_ns, plan=plan)
        if decision.command is None:
            self._forget_motion()
        return decision

    def _keep_or_forget_motion(self, measured: RobotState, now_ns: int) -> None:
        motion = self.guard.commanded
        if motion is None:
            return
        if motion.times_ns[0] <= now_ns and np.ptp(cut(motion, now_ns).positions, axis=0).max() > 0.0:
            then = motion(np.array([measured.stamp_ns]))[0][0]
            if np.abs(then - measured.positions).max() <= self.robot.max_start_jump:
                return  # still under way
        apart = np.abs(motion.positions[-1] - measured.positions).max()
        if not apart <= AT_COMMAND:
            self._forget_motion()

    def _forget_motion(self) -> None:
        self.scheduler.reset()
        self.gate.forget_motion()
        self.guard.reset()

    def gripper_at(self, t_ns: int) -> AdmittedOpening | None:
        """The opening to be commanded at a time (not falling from call to call): 0 closed, 1 open,
        None undecided.

        The recent chunks' steps under way decide (`OpeningSchedule`); after the newest one's last
        step its opening stays.
        """
        if self._switch is None:
            return None
        opening = self._switch.opening
        wanted = self._openings.wanted(t_ns)
        if wanted is not None:
            opening = self._switch.update(wanted, t_ns)
        return None if opening is None else self.guard.admit_opening(opening)

    def set_opening(self, opening: float, now_ns: int) -> AdmittedOpening | None:
        """The side of the gripper for a person's opening, 0 closed to 1 open, by the same
        hysteresis and dwell; None without a gripper, and between the thresholds before the first.

        It stays until the next chunk. Raises CommandRejected unless the opening is a number from 0
        to 1.
        """
        wanted = self.guard.admit_opening(opening)
        self._openings.forget()
        if self._switch is None:
            return None
        side = self._switch.update(wanted, now_ns)
        return None if side is None else self.guard.admit_opening(side)

    @property
    def commanded_opening(self) -> float | None:
        """The gripper's side as it was last decided: 0 closed, 1 open, None before the first."""
        return None if self._switch is None else self._switch.opening

    def commanded(self, t_ns: int) -> tuple[Array, Array] | None:
        """Commanded positions and velocities (J,) at a time, past times included.

        None before the first command, and after a restart until the next chunk: a person may have
        moved the arm.
        """
        if self._resumed:
            return None
        return self.guard.commanded_at(t_ns)

    def commanded_path(self, stamps_ns: Stamps) -> Array | None:
        """Commanded positions (N, J) at N times, past times included; None as `commanded`."""
        motion = None if self._resumed else self.guard.commanded
        return None if motion is None else motion(stamps_ns)[0]

    def commanded_state(self, measured: RobotState, t_ns: int) -> RobotState:
        """The arm as commanded at a time, without a pose; where nothing is commanded, at rest as
        measured."""
        commanded = self.commanded(t_ns)
        if commanded is None:
            return replace(measured, stamp_ns=t_ns, velocities=None, eef_pose=None)
        return RobotState(t_ns, commanded[0], commanded[1])

    def smooth_stop(
        self, now_ns: int, clock: Callable[[], int] | None = None
    ) -> AdmittedCommand:
        """A stop along the commanded motion; the next chunk continues from its end.

        clock: the time now; a stop that took so long that it would arrive after its first point, a
        jump, is computed again with a longer lead. None: not measured.

        Chunks and gripper steps are forgotten. A stop that would collide gives way to the shortest
        one within the limits, that to the end of the running plan, where these are free;
        `stop_conflict` reports it. Raises ScheduleRefused where no motion is commanded,
        CommandRejected where the stop itself breaks a limit, comes too late at every attempt, or
        the running plan's end is preferred: the last command then ends at rest by itself.
        """
        self._openings.forget()
        running = self.guard.commanded
        lead_ns = self.scheduler.lead_ns
        for _ in range(STOP_ATTEMPTS):
            command = self._checked_stop(running, now_ns, lead_ns)
            spent_ns = 0 if clock is None else clock() - now_ns
            if spent_ns <= lead_ns // 2:  # the rest is the guard's, and the way to the controller
                return self._admitted(command, now_ns)
            self.scheduler.resume(running)
            now_ns += spent_ns
            lead_ns += 2 * spent_ns  # without an upper bound: a late stop is better than none
        raise CommandRejected(
            f"the stop took {spent_ns / 1e6:.0f} ms to compute and would arrive too late; the running "
            "motion ends at rest by itself. Relieve the machine."
        )

    def _checked_stop(
        self, running: Spline | None, now_ns: int, lead_ns: int
    ) -> TrajectoryCommand:
        """The stop, after the collision check. Raises as `smooth_stop`."""
        self.stop_conflict = ""
        scaling = self.gate.speed_scaling_at(now_ns)
        command = self.scheduler.smooth_stop(now_ns, scaling, lead_ns=lead_ns)
        if running is None:
            return command
        try:
            return self._free_stop(command, running, now_ns, lead_ns)
        except CollisionGeometryError as error:
            # A stop is never withheld for want of its check.
            self.stop_conflict = f"the stop was not checked for collisions: {error}"
            return command

    def move_back(self, measured: RobotState, now_ns: int) -> AdmittedCommand | None:
        """A slow motion of the set point, which is at rest, to an arm at rest somewhere else.

        An arm that is released after it does not jump. It is continuous with the commanded motion.
        None while a stop is under way, and where the set point is at the arm or further away than
        FARTHEST_BACK. Raises CommandRejected where it breaks a limit.
        """
        commanded = self.commanded(now_ns)
        if commanded is None or np.any(commanded[1] != 0.0):
            return None
        distance = np.abs(commanded[0] - measured.positions).max()
        if not AT_COMMAND < distance <= FARTHEST_BACK:
            return None
        share = BACK_SHARE * self.gate.speed_scaling
        try:
            command = self.scheduler.move_back(measured.positions, now_ns, share)
        except ScheduleRefused:
            return None
        contact = self.gate.sweep(curve_of(command), now_ns, STOP_MARGIN).contact
        if contact is not None:
            self.scheduler.resume(self.guard.commanded)
            raise CommandRejected(f"the set point stays: on its way back {contact.text(now_ns)}")
        return self._admitted(command, now_ns)

    def _admitted(self, command: TrajectoryCommand, now_ns: int) -> AdmittedCommand:
        """A command that continues the commanded motion, recorded. Raises CommandRejected."""
        try:
            admitted = self.guard.admit(command, now_ns, None)
        except CommandRejected:
            self.scheduler.resume(self.guard.commanded)
            raise
        self.guard.record(admitted, now_ns)
        self.gate.resume(self.guard.commanded)
        return admitted

    def _free_stop(
        self, command: TrajectoryCommand, running: Spline, now_ns: int, lead_ns: int
    ) -> TrajectoryCommand:
        """The stop, or a shorter one. Raises CommandRejected to prefer the running plan's end."""
        contact = self.gate.sweep(curve_of(command), now_ns, STOP_MARGIN).contact
        if contact is None:
            return command
        text = f"the smooth stop: {contact.text(now_ns)}"
        self.scheduler.resume(running)
        scaling = self.gate.speed_scaling_at(now_ns)
        shortest = self.scheduler.smooth_stop(now_ns, scaling, shortest=True, lead_ns=lead_ns)
        if self.gate.sweep(curve_of(shortest), now_ns, STOP_MARGIN).contact is None:
            self.stop_conflict = f"{text}; the shortest stop was sent"
            return shortest
        if self.gate.sweep(running, now_ns, STOP_MARGIN).contact is None:
            self.scheduler.resume(running)
            self.stop_conflict = f"{text}; the running plan ends at rest without contact"
            raise CommandRejected(self.stop_conflict)
        # A stop is never withheld: the shortest one meets the body at the least speed.
        self.stop_conflict = f"{text}; no stop avoids it, the shortest one was sent"
        return shortest


def _moving(joint: str, speed: float) -> str:
    if not np.isfinite(speed):
        return (
            f"the speed of {joint} is not known: the newest joint states cover too little time. A "
            "motion starts from rest."
        )
    return (
        f"{joint} moves at {abs(speed):.2f} rad/s, though nothing is commanded: a motion starts from rest "
        f"(at most {REST_SPEED} rad/s). Wait until the arm is at rest."
    )


def build_executor(
    robot: RobotSpec,
    kinematics: Kinematics | None,
    schedule: ScheduleConfig | None = None,
    collision: CollisionModel | None = None,
) -> ChunkExecutor:
    """The executor of a robot, as node, rollouts and bag evaluation run it.

    collision: from `load_collision_model`; None leaves collisions unchecked.
    """
    scheduler = ChunkScheduler(robot.joints, schedule or ScheduleConfig(), robot.limits)
    gate = SafetyGate(robot, kinematics, collision)
    return ChunkExecutor(robot, kinematics, scheduler, gate, MotionGuard(robot))
