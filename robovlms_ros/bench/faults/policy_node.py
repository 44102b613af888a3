"""`vla_node` with a scripted policy: the shipped checkpoint is loaded, its chunks are replaced by a
fast known motion.

The fault benchmark needs an arm at working speed at any moment, and a policy that fails on command.
Everything else is the node itself.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from std_msgs.msg import String

from robovlms_ros.control.robot import load_robot
from robovlms_ros.core.types import NANOSECONDS, ActionChunk, ActionSpec, Observation, RoboVLMsError
from robovlms_ros.ros.lifecycle import run_until_signalled
from robovlms_ros.ros.loading import LoadedPolicy, RobotModel
from robovlms_ros.ros.parameters import NodeParameters
from robovlms_ros.ros.vla_node import VLANode

FAULT_TOPIC = "policy_fault"
STEP = 0.05  # s
HORIZON = 16
AMPLITUDE = np.array([0.36, 0.18, -0.3, 0.18, 0.3, -0.18, 0.36])  # rad
FREQUENCY = 2.4  # rad/s: the fastest joints reach 0.86 rad/s
GRIPPER_PERIOD = np.pi / FREQUENCY  # s between two changes of the opening
CLOSES_AT = 0.5 * np.pi / FREQUENCY  # s: the arm is fastest then
LATE = 3.0  # s


class ScriptedSession:
    """A policy session with scripted chunks; everything else is the real session's.

    fault: empty, or the failure to simulate: late, died, not_finite, huge, jump.
    """

    def __init__(self, session: Any, joints: tuple[str, ...], home: Sequence[float]) -> None:
        self._session = session
        self._spec = ActionSpec("joint_position", "base", "rotation_vector", "chained", STEP, (*joints, "gripper"))
        self._home = np.array(home)
        self._begin_ns: int | None = None
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def predict_action_chunk(self, observation: Observation) -> ActionChunk:
        """The motion's next steps from the observation's stamp on. Raises RoboVLMsError for the
        fault `died`."""
        chunk = self._session.predict_action_chunk(observation)
        if self.fault == "died":
            raise RoboVLMsError("the scripted policy failed, as it was told to.")
        if self.fault == "late":
            time.sleep(LATE)
        stamp = observation.stamp_ns
        if self._begin_ns is None or stamp < self._begin_ns:
            self._begin_ns = stamp
        seconds = (stamp - self._begin_ns) / NANOSECONDS + STEP * np.arange(1, HORIZON + 1)
        positions = self._home + AMPLITUDE * (1 - np.cos(FREQUENCY * seconds[:, None]))
        opening = ((seconds - CLOSES_AT) % (2 * GRIPPER_PERIOD) >= GRIPPER_PERIOD).astype(np.float64)
        values = np.hstack([positions, opening[:, None]])
        if self.fault == "not_finite":
            values[:] = np.nan
        elif self.fault == "huge":
            values[:, :7] *= 1e6
        elif self.fault == "jump":
            values[:, :7] += 0.5
        return replace(chunk, values=values, spec=self._spec)


class ScriptedPolicyNode(VLANode):
    """The node with a ScriptedSession; a String on FAULT_TOPIC sets the session's fault."""

    def _wire(
        self,
        parameters: NodeParameters,
        body: RobotModel,
        brain: LoadedPolicy,
        shadow: LoadedPolicy | None = None,
    ) -> None:
        robot = load_robot(parameters.robot)
        scripted = ScriptedSession(brain.session, robot.joints, robot.home)
        self._scripted = scripted
        super()._wire(parameters, body, replace(brain, session=scripted), shadow)
        if not hasattr(self, "_fault_subscription"):
            self._fault_subscription = self.create_subscription(String, FAULT_TOPIC, self._on_fault_topic, 10)

    def _on_fault_topic(self, message: String) -> None:
        self._scripted.fault = message.data


if __name__ == "__main__":
    sys.exit(run_until_signalled(ScriptedPolicyNode))
