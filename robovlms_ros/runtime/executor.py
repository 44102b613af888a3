"""From a chunk to what the arm is told: plan, schedule, gate. Live node, rollouts and bag evaluation all run this."""

from dataclasses import dataclass, replace

import numpy as np

from robovlms_ros.runtime.gate import SafetyGate, Verdict
from robovlms_ros.runtime.gripper import GripperSwitch
from robovlms_ros.runtime.kinematics import Kinematics
from robovlms_ros.runtime.planner import PlanRefused, plan_chunk
from robovlms_ros.runtime.robot import RobotSpec
from robovlms_ros.runtime.schedule import ScheduleConfig, ScheduleRefused, schedule_for
from robovlms_ros.runtime.scheduler import ChunkScheduler
from robovlms_ros.runtime.spline import Array
from robovlms_ros.types import ActionChunk, JointPlan, RobotState, TrajectoryCommand


@dataclass(frozen=True)
class Decision:
    """What became of a chunk.

    command: to be sent to the arm's controller; None when the chunk is refused: `stop` then holds the arm.
    gripper: the opening to be commanded now, 0 or 1; None when there is nothing to command.
    verdict: pass, clamp or refuse, and why. plan: the chunk in joint space; None where it cannot be planned.
    """

    command: TrajectoryCommand | None
    gripper: float | None
    verdict: Verdict
    plan: JointPlan | None


class ChunkExecutor:
    """One arm's way from chunks to commands. Not thread safe; time comes in as stamps.

    kinematics: None for a policy in joint space.
    """

    def __init__(
        self, robot: RobotSpec, kinematics: Kinematics | None, scheduler: ChunkScheduler, gate: SafetyGate
    ) -> None:
        self.robot, self.kinematics, self.scheduler, self.gate = robot, kinematics, scheduler, gate
        self._switch = None if robot.gripper is None else GripperSwitch(robot.gripper)
        self._plan: JointPlan | None = None

    def reset(self) -> None:
        """Activation or a new episode: the next chunk starts at the measured state, wherever the arm was taken."""
        self.scheduler.reset()
        self.gate.reset()
        self._plan = None
        if self._switch is not None:
            self._switch.reset()

    def on_chunk(self, chunk: ActionChunk, state_at_stamp: RobotState, measured: RobotState, now_ns: int) -> Decision:
        """Decide on a chunk that has just become ready.

        state_at_stamp: the arm when the chunk's image was taken. measured: the arm now.
        """
        plan = None
        try:
            plan = plan_chunk(chunk, state_at_stamp, self.kinematics, self.robot)
            proposed = self.scheduler.propose(plan, now_ns, measured)
        except (PlanRefused, ScheduleRefused) as refusal:
            return Decision(None, None, self.gate.refuse(str(refusal)), plan)
        verdict = self.gate.check(proposed, measured, now_ns, chunk.stamp_ns)
        if verdict.command is None:
            return Decision(None, None, verdict, plan)
        self.scheduler.commit(verdict.command)
        self._plan = plan
        return Decision(verdict.command, self.gripper_at(now_ns), verdict, plan)

    def shadow(self, chunk: ActionChunk, state_at_stamp: RobotState, measured: RobotState, now_ns: int) -> Decision:
        """`on_chunk` for an arm that is not commanded (dry run): judged as if it had followed the plan so far.

        After a refusal, and where the plan is further from the arm than max_start_jump (somebody else moves the arm, or
        nobody does), the plan begins again at the measured state. The chunk's targets are composed from the arm's real
        pose, which is what the policy saw.
        """
        running = self.commanded(now_ns)
        if running is not None and np.abs(running[0] - measured.positions).max() <= self.robot.max_start_jump:
            measured = replace(measured, positions=running[0], velocities=running[1], eef_pose=None)
        else:
            self._begin_at_the_arm()
        decision = self.on_chunk(chunk, state_at_stamp, measured, now_ns)
        if decision.command is None:
            self._begin_at_the_arm()
        return decision

    def _begin_at_the_arm(self) -> None:
        self.scheduler.reset()
        self.gate.restart()

    def gripper_at(self, t_ns: int) -> float | None:
        """The opening to be commanded at a time (not falling from call to call): 0 closed, 1 open, None undecided.

        The step under way decides; after the last step its opening stays.
        """
        if self._switch is None:
            return None
        plan = self._plan
        if plan is None or plan.gripper is None:
            return self._switch.opening
        step = min(int(np.searchsorted(plan.times_ns, t_ns)), len(plan.gripper) - 1)
        return self._switch.update(float(plan.gripper[step]), t_ns)

    def commanded(self, t_ns: int) -> tuple[Array, Array] | None:
        """Positions and velocities (J,) of the running plan, for controllers that are sent one target at a time."""
        return self.scheduler.commanded(t_ns)

    def stop(self, now_ns: int, measured: RobotState) -> TrajectoryCommand:
        """A smooth stop; chunks and gripper steps are forgotten, and the next chunk continues from where it ends.

        Raises ScheduleRefused when there is neither a plan nor a finite measurement to hold.
        """
        command = self.scheduler.hold(now_ns, measured, self.gate.authority_at(now_ns))
        self.gate.sent(command)
        self._plan = None
        return command


def build_executor(
    robot: RobotSpec, kinematics: Kinematics | None, schedule: ScheduleConfig | None = None
) -> ChunkExecutor:
    """The executor of a robot, as node, rollouts and bag evaluation run it. Raises ConfigError (`schedule_for`)."""
    scheduler = ChunkScheduler(robot.joints, schedule_for(robot, schedule or ScheduleConfig()), robot.limits)
    return ChunkExecutor(robot, kinematics, scheduler, SafetyGate(robot, kinematics))
