"""One arm and its gripper in virtual time, driven by the node's own objects without middleware.

Runner, executor, monitor and gripper adapter are the node's. Controllers are the model of
joint_trajectory_controller. A policy object supplies chunks and the arm's model: `ScriptedPolicy`
here, `ReplayedPolicy` in `recorded_episodes.py`. Commanded joints, measured joints and gripper
commands are recorded.
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from robovlms_ros.bench.faults.rows import (
    FaultRow,
    judge,
    longest_standstill,
    time_to_rest,
)
from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.faults import SafetyMonitorConfig
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.control.scheduler import HOLD_NS
from robovlms_ros.control.trajectory_controller_model import (
    TrajectoryController,
    TrajectoryMessage,
    TrajectoryPoint,
)
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    ObservationError,
    RobotState,
)
from robovlms_ros.observations.joint_states import ImplausibleJointState, JointPlausibility, JointStateBuffer
from robovlms_ros.ros.command_sender import CommandInterfaces, DecisionObserver
from robovlms_ros.ros.controllers.base import Arm, Context
from robovlms_ros.ros.controllers.trajectory_topic import OneJointTrajectoryGripper
from robovlms_ros.ros.messages import from_time
from robovlms_ros.ros.policy_runner import PolicyRunner
from robovlms_ros.ros.status import NodeStatus

PANDA = load_robot("panda")
HOME = np.array(PANDA.home)
TICK_NS = 2_000_000
TICK = TICK_NS / NANOSECONDS
START_NS = 1000 * NANOSECONDS
LAG = 0.02  # s, of the joints behind their command
SERVO_STIFFNESS = 50.0**2  # 1/s^2, of the simulator's computed torque
SERVO_DAMPING = 2 * 50.0
STEP = 0.05
AMPLITUDE = np.array([0.55, 0.3, -0.5, 0.3, 0.5, -0.3, 0.6])  # rad
FREQUENCY = 2.4  # rad/s: four joints reach 0.7 to 0.86 rad/s
SPEC = ActionSpec(
    "joint_position", "base", "rotation_vector", "chained", STEP, (*PANDA.joints, "gripper")
)


class SentStop(NamedTuple):
    """A smooth stop: when it was sent (ns), and its own time (s) from then on."""

    sent_ns: int
    seconds: float


class ModelArm(Arm):
    """An adapter that hands commands to the controller's model. listening: 0 while the controller
    is away. executed: the controller's last command, None where it is not reported.

    ended: True from a smooth stop or an abandoned motion until the next chunk's command.
    """

    name = "arm"

    shape = "self_splice"

    def __init__(self, controller):
        self.controller = controller
        self.listening = 1
        self.others = ()
        self.executed = None
        self.ended = True
        self.stop = None
        self.stops = []

    def watch_stops(self, executor):
        """Take every smooth stop of the executor for the motion's end, a rejected one too."""
        smooth_stop = executor.smooth_stop

        def observed(now_ns, clock=None):
            self.ended = True
            self.stop = smooth_stop(now_ns, clock)
            return self.stop

        executor.smooth_stop = observed

    def _send(self, command, now_ns):
        self.ended = command is self.stop
        if self.ended:
            end_ns = command.stamp_ns + round(command.times[-1] * NANOSECONDS) - HOLD_NS
            self.stops.append(SentStop(now_ns, (end_ns - now_ns) / NANOSECONDS))
        if self.listening:
            self.controller.accept(command, now_ns)

    def abandon(self):
        self.ended = True

    def listeners(self):
        return self.listening

    def reference(self):
        return self.executed

    def other_commanders(self):
        return self.others

    def close(self):
        pass


class ModelGripper:
    """The finger, its controller, and the node of the gripper's adapter, which publishes to the
    controller.

    commands: (time ns, position m, the arm's motion had ended). narrowest: the opening at which an
    object stops the finger.
    """

    def __init__(self, clock, arm, narrowest):
        self.spec = PANDA.gripper
        self.adapter = OneJointTrajectoryGripper(Context(self, PANDA, lambda: None), self.spec)
        self.controller = TrajectoryController((self.spec.joint,))
        self.position = self.spec.position(1.0)
        self.commands = []
        self._clock = clock
        self._arm = arm
        self._stop = self.spec.position(narrowest)

    def create_publisher(self, *_, **__):
        return self

    def publish(self, message):
        points = tuple(
            TrajectoryPoint(from_time(point.time_from_start), point.positions, point.velocities)
            for point in message.points
        )
        now = self._clock()
        stamp = from_time(message.header.stamp)
        self.controller.accept(TrajectoryMessage(stamp, tuple(message.joint_names), points), now)
        self.commands += [(now, point.positions[0], self._arm.ended) for point in points]

    def step(self, now_ns):
        command = self.controller.update(now_ns, TICK_NS, np.array([self.position]), np.zeros(1))[0]
        self.position = max(float(command[0]), self._stop)

    def faults(self):
        """Commands that are not finite, outside the finger's range, or sent while no motion was
        under way."""
        low, high = sorted((self.spec.closed_position, self.spec.open_position))
        return [command for command in self.commands if not low <= command[1] <= high or command[2]]


class LaggingJoints:
    """Joints that follow their command with a first-order lag."""

    def __init__(self, start):
        self.positions = start
        self.velocities = np.zeros(7)

    def follow(self, command, velocity):
        self.positions = self.positions + (command - self.positions) * (1 - np.exp(-TICK / LAG))


class ServoedJoints:
    """Joints under the computed torque of `robovlms_ros.sim.world`, without its physics."""

    def __init__(self, start):
        self.positions = start
        self.velocities = np.zeros(7)

    def follow(self, command, velocity):
        pull = SERVO_STIFFNESS * (command - self.positions)
        pull += SERVO_DAMPING * (velocity - self.velocities)
        self.velocities = self.velocities + TICK * pull
        self.positions = self.positions + TICK * self.velocities


class Observations:
    """Joint states as the node's inputs keep them, with the monitor fed. finger: the gripper
    joint's position."""

    def __init__(self, monitor, clock, instruction, finger):
        bounds = JointPlausibility(
            PANDA.joints,
            PANDA.lower(),
            PANDA.upper(),
            np.array(PANDA.limits.velocity),
            PANDA.max_start_jump,
        )
        self.buffer = JointStateBuffer(PANDA.joints, PANDA.gripper, 3.0, bounds)
        self.monitor = monitor
        self.clock = clock
        self.instruction = instruction
        self.finger = finger
        self.fault = None

    def receive(self, stamp_ns, positions, names=PANDA.joints, velocities=None):
        stamp = SimpleNamespace(
            sec=int(stamp_ns // NANOSECONDS), nanosec=int(stamp_ns % NANOSECONDS)
        )
        message = SimpleNamespace(
            header=SimpleNamespace(stamp=stamp),
            name=[*names, PANDA.gripper.joint],
            position=[*positions, self.finger()],
            velocity=[] if velocities is None else [*velocities, 0.0],
        )
        now = self.clock()
        try:
            if stamp_ns - now > 100_000_000:
                raise ObservationError("stamped ahead")
            advanced = self.buffer.add(message)
        except ImplausibleJointState as error:
            self.monitor.implausible_joint_state(str(error), now)
            return
        except ObservationError as error:
            self.fault = f"joint_states: {error}"
            return
        if advanced:
            self.fault = None
            state = self.buffer.latest()
            self.monitor.joint_state(state.stamp_ns, state.positions, now)

    def state_at(self, stamp_ns):
        return self.buffer.at(stamp_ns, 0.1)

    def measured(self):
        return self.buffer.latest()

    def speed(self):
        return self.buffer.speed()

    def problem(self, now_ns):
        return self.fault

    def topic_of(self, fault):
        return ""

    def clear_joint_states(self):
        self.buffer.clear()

    def clear(self):
        self.buffer.clear()


class IdleWorker:
    inferring_since_ns = None

    def submit(self, observation):
        pass

    def reset(self):
        pass


class ScriptedPolicy:
    """Absolute joint positions along a fast known path, ten chunks a second, each 80 ms after its
    image."""

    instruction = "lift"
    kinematics = None
    speed_scaling_ramp = PANDA.gate.speed_scaling_ramp
    narrowest = 0.0

    def __init__(self):
        self.joints = LaggingJoints(HOME)

    def infer(self, tick, now_ns):
        """The chunk of an image taken at this tick and the ticks until it is ready; None for no
        image."""
        if tick % 50:
            return None
        seconds = tick * TICK + STEP * np.arange(1, 17)
        opening = np.full((16, 1), float(np.sin(tick * TICK) > 0))
        values = np.hstack([self.path(seconds), opening])
        return ActionChunk(now_ns, values, SPEC, self.instruction, "test"), 40

    def path(self, seconds):
        """The intended joints (..., 7): from rest at home, working speed on four joints."""
        return HOME + AMPLITUDE * (1 - np.cos(FREQUENCY * np.asarray(seconds)[..., None])) / 2 * 1.2


class Simulation:
    """One episode of a policy. Hooks change the joint states and chunks on their way to the node's
    objects."""

    def __init__(self, policy=None):
        self.policy = policy or ScriptedPolicy()
        self.joints = self.policy.joints
        self.offset_ns = 0
        self.tick = 0
        self.monitor = SafetyMonitor(SafetyMonitorConfig(), ("static",), START_NS)
        self.controller = TrajectoryController(PANDA.joints)
        self.arm = ModelArm(self.controller)
        self.gripper = ModelGripper(self.now, self.arm, self.policy.narrowest)
        self.observations = Observations(
            self.monitor, self.now, self.policy.instruction, lambda: self.gripper.position
        )
        self.executor = build_executor(PANDA, self.policy.kinematics)
        self.executor.gate.speed_scaling_ramp = self.policy.speed_scaling_ramp
        self.arm.watch_stops(self.executor)
        self.report = NodeStatus()
        self.chunks = []
        observer = DecisionObserver()
        observer.on_chunk = self.chunks.append
        self.runner = PolicyRunner(
            self.observations,
            self.monitor,
            CommandInterfaces(self.executor, self.arm, self.gripper.adapter, 0.02),
            self.now,
            self.report,
            lambda line: None,
            steady_ns=lambda: 0,
            observer=observer,
        )
        self.commands = [self.joints.positions]
        self.measured = [self.joints.positions]
        # Ticks at which the controller itself, restarted, takes up the measured pose.
        self.own_steps = []
        self.pending = []
        self.joint_hook = lambda state: [state]
        self.chunk_hook = lambda chunk: chunk
        self.camera_on = True
        self.frozen = None  # (7,) rad: the joints stay there

    def now(self):
        return START_NS + self.tick * TICK_NS + self.offset_ns

    def run(self, seconds, events=()):
        """events: (seconds, function of the simulation), in order."""
        events = list(events)
        self.runner.start(IdleWorker())
        for _ in range(round(seconds / TICK)):
            while events and self.tick * TICK >= events[0][0]:
                events.pop(0)[1](self)
            self.step()
            self.tick += 1

    def step(self):
        now = self.now()
        if self.tick % 5 == 0:
            for stamp, positions, keywords in self.joint_hook((now, self.measured[-1], {})):
                self.observations.receive(stamp, positions, **keywords)
        if self.tick % 15 == 0 and self.camera_on:
            self.monitor.image("static", now, self.tick, now)
            self.monitor.instruction(self.policy.instruction)
        inferred = self.policy.infer(self.tick, now)
        chunk = None if inferred is None else self.chunk_hook(inferred[0])
        if chunk is not None:
            self.pending.append((self.tick + inferred[1], chunk))
        while self.pending and self.pending[0][0] <= self.tick:
            self.runner.on_chunk(self.pending.pop(0)[1])
        if self.tick % 25 == 0:
            self.runner.tick()
        command, velocity = self.controller.update(
            now, TICK_NS, self.joints.positions, self.joints.velocities
        )
        self.arm.executed = RobotState(now, command)
        if self.frozen is None:
            self.joints.follow(command, velocity)
        self.gripper.step(now)
        self.commands.append(command)
        self.measured.append(self.joints.positions)

    def freeze(self):
        self.frozen = self.joints.positions

    def release(self):
        """The joints follow their command from this moment on."""
        self.frozen = None

    def restart_controller(self):
        self.controller.reset()
        self.own_steps.append(len(self.commands))

    def judged(self):
        """Worst command step and acceleration as parts of the limits, and the position's excess
        (rad), commanded."""
        commands = np.array(self.commands)
        times = TICK * np.arange(len(commands))
        step, _, acceleration, _, outside = judge(times, commands, commands, self.own_steps, PANDA)
        return step, acceleration, outside

    def row(self, fault, at, until, closing=False, rest_allowed=np.nan):
        """The episode's measurements as the fault benchmark judges them.

        The time to rest counts from `at` to `until`, s; everything else from the first tick.
        closing: the gripper closes at `at`.
        """
        commands = np.array(self.commands)
        times = TICK * np.arange(len(commands))
        judged = judge(times, commands, np.array(self.measured), self.own_steps, PANDA)
        after = slice(round(at / TICK), round(until / TICK))
        rest = time_to_rest(times[after], commands[after])
        speed = float(np.abs(commands[after.start] - commands[after.start - 1]).max() / TICK)
        standstill = longest_standstill(times[after], commands[after])
        return FaultRow(
            fault,
            speed,
            closing,
            *judged,
            rest,
            rest_allowed,
            "any" if np.isnan(rest_allowed) else "rests",
            standstill,
            self.report.state,
            self.report.detail,
        )
