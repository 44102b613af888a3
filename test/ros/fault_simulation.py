"""One arm at working speed in virtual time: the node's own runner, executor, guard and watchdog, no middleware.

The arm is the model of joint_trajectory_controller with a lag; faults are drawn at random moments. Everything that is
commanded is recorded tick by tick.
"""

from types import SimpleNamespace

import numpy as np

from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.safety_monitor import SafetyMonitor, SafetyMonitorConfig
from robovlms_ros.control.trajectory_controller_model import TrajectoryController
from robovlms_ros.core.types import (
    NANOSECONDS,
    ActionChunk,
    ActionSpec,
    ObservationError,
    RobotState,
)
from robovlms_ros.observations.joint_plausibility import ImplausibleJointState, JointPlausibility
from robovlms_ros.observations.joint_states import JointStateBuffer
from robovlms_ros.ros.controllers.base import Arm
from robovlms_ros.ros.policy_runner import CommandInterfaces, PolicyRunner
from robovlms_ros.ros.status import NodeStatus

PANDA = load_robot("panda")
HOME = np.array(PANDA.home)
TICK_NS = 2_000_000
TICK = TICK_NS / NANOSECONDS
START_NS = 1000 * NANOSECONDS
LAG = 10  # ticks from a command to the measured joints
STEP = 0.05
AMPLITUDE = np.array([0.55, 0.3, -0.5, 0.3, 0.5, -0.3, 0.6])  # rad
FREQUENCY = 2.4  # rad/s: four joints reach 0.7 to 0.86 rad/s
SPEC = ActionSpec("joint_position", "base", "rotation_vector", "chained", STEP, (*PANDA.joints, "gripper"))


class ModelArm(Arm):
    """An adapter that hands commands to the controller's model. listening: 0 while the controller is away."""

    name = "arm"

    def __init__(self, controller):
        self.controller = controller
        self.listening = 1
        self.others = ()
        self.sent = []

    def _send(self, command, now_ns):
        self.sent.append((now_ns, command))
        if self.listening:
            self.controller.accept(command, now_ns)

    def listeners(self):
        return self.listening

    def other_commanders(self):
        return self.others

    def close(self):
        pass


class Observations:
    """Joint states as the node's inputs keep them: believed or not, with the watchdog fed."""

    instruction = "lift"

    def __init__(self, monitor, clock):
        bounds = JointPlausibility(
            PANDA.joints, PANDA.lower(), PANDA.upper(), np.array(PANDA.limits.velocity), PANDA.max_start_jump
        )
        self.buffer = JointStateBuffer(PANDA.joints, PANDA.gripper, 3.0, bounds)
        self.monitor = monitor
        self.clock = clock
        self.fault = None

    def receive(self, stamp_ns, positions, names=PANDA.joints, velocities=None):
        stamp = SimpleNamespace(sec=int(stamp_ns // NANOSECONDS), nanosec=int(stamp_ns % NANOSECONDS))
        message = SimpleNamespace(
            header=SimpleNamespace(stamp=stamp),
            name=list(names),
            position=list(positions),
            velocity=[] if velocities is None else list(velocities),
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
            self.monitor.joint_state(self.buffer.latest().stamp_ns, self.buffer.latest().positions, now)

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


def path(seconds):
    """The policy's intent (..., 7): from rest at home, working speed on four joints."""
    return HOME + AMPLITUDE * (1 - np.cos(FREQUENCY * np.asarray(seconds)[..., None])) / 2 * 1.2


class Simulation:
    """Runs one episode. `fault` is called with the simulation once, at `at` seconds."""

    def __init__(self):
        self.offset_ns = 0
        self.tick = 0
        self.monitor = SafetyMonitor(SafetyMonitorConfig(), ("static",), START_NS)
        self.controller = TrajectoryController(PANDA.joints)
        self.arm = ModelArm(self.controller)
        self.observations = Observations(self.monitor, self.now)
        executor = build_executor(PANDA, None)
        self.report = NodeStatus()
        self.chunks = []
        self.runner = PolicyRunner(
            self.observations,
            self.monitor,
            CommandInterfaces(executor, self.arm, None, 0.02),
            self.chunks.append,
            self.now,
            self.report,
            lambda line: None,
            steady_ns=lambda: 0,
        )
        self.executor = executor
        self.commands = [HOME] * (LAG + 1)
        self.own_steps = set()  # ticks at which the controller itself, restarted, takes up the measured pose
        self.pending = []
        self.joint_hook = lambda state: [state]
        self.chunk_hook = lambda chunk: chunk
        self.camera_on = True
        self.frozen = None  # (7,) rad: the joints stay there
        self.arms = []  # measured joints, tick by tick

    def now(self):
        return START_NS + self.tick * TICK_NS + self.offset_ns

    def run(self, seconds, events=()):
        """events: (seconds, function of the simulation), in order."""
        events = list(events)
        self.runner.start(IdleWorker())
        for _ in range(round(seconds / TICK)):
            t = self.tick * TICK
            while events and t >= events[0][0]:
                events.pop(0)[1](self)
            self.step(t)
            self.tick += 1

    def step(self, t):
        now = self.now()
        measured = self.commands[-1 - LAG] if self.frozen is None else self.frozen
        self.arms.append(measured)
        if self.tick % 5 == 0:
            for stamp, positions, keywords in self.joint_hook((now, measured, {})):
                self.observations.receive(stamp, positions, **keywords)
        if self.tick % 15 == 0 and self.camera_on:
            self.monitor.image("static", now, self.tick, now)
            self.monitor.instruction("lift")
        if self.tick % 50 == 0:
            steps = t + STEP * np.arange(1, 17)
            values = np.hstack([path(steps), np.full((16, 1), float(np.sin(t) > 0))])
            chunk = self.chunk_hook(ActionChunk(now, values, SPEC, "lift", "test"))
            if chunk is not None:
                self.pending.append((self.tick + 40, chunk))
        while self.pending and self.pending[0][0] <= self.tick:
            self.runner.on_chunk(self.pending.pop(0)[1])
        if self.tick % 25 == 0:
            self.runner.tick()
        command = self.controller.update(now, TICK_NS, measured, np.zeros(7))[0]
        self.commands.append(command)

    def freeze(self):
        self.frozen = self.commands[-1 - LAG]

    def release(self):
        """The joints go to the command of this moment."""
        self.frozen = None

    def restart_controller(self):
        self.controller.reset()
        self.own_steps.add(len(self.commands))

    def judged(self):
        """Worst command step, speed and acceleration as parts of the limits, and the position's excess (rad)."""
        commands = np.array(self.commands)
        speeds = np.diff(commands, axis=0) / TICK
        accelerations = np.diff(speeds, axis=0) / TICK
        for tick in self.own_steps:  # the controller's own, which no client can prevent
            speeds[max(0, tick - 2):tick + 1] = 0.0
            accelerations[max(0, tick - 3):tick + 2] = 0.0
        limits = PANDA.limits
        outside = max((PANDA.lower() - commands).max(), (commands - PANDA.upper()).max())
        return (
            float(np.abs(speeds / limits.velocity).max()),
            float(np.abs(accelerations / limits.acceleration).max()),
            float(outside),
        )

    def speed(self):
        """The fastest joint's commanded speed now, rad/s."""
        return float(np.abs(self.commands[-1] - self.commands[-2]).max() / TICK)

    def measured_state(self):
        return RobotState(self.now(), self.commands[-1 - LAG])
