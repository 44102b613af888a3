"""Stage of the controller adapters' tests: an adapter on one node, its peer on another."""

import numpy as np
from rclpy.node import Node
from ros_graph import Spinner, wait_for

from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.motion_guard import MotionGuard
from robovlms_ros.control.robot import load_robot, parse_robot
from robovlms_ros.core.resources import share_directory
from robovlms_ros.core.schema import read_mapping
from robovlms_ros.core.types import RobotState, TrajectoryCommand
from robovlms_ros.ros.controllers.base import Context
from robovlms_ros.ros.controllers.table import make_arm, make_gripper
from robovlms_ros.ros.messages import from_time

STEP_NS = 20_000_000


class Stage:
    """Two spinning nodes, the one that sends and the one that hears, and a robot whose blocks can be replaced."""

    count = 0

    def __init__(self):
        Stage.count += 1
        space = f"controllers{Stage.count}"
        self.sender, self.hearer = Node("sender", namespace=space), Node("hearer", namespace=space)
        self.spinners = [Spinner(self.sender), Spinner(self.hearer)]
        self.robot = load_robot("panda")
        self.guard = MotionGuard(self.robot)
        self.position = np.array(self.robot.home)
        self.kinematics = Kinematics(self.robot.description_path, self.robot.joints, self.robot.eef_frame,
                                     self.robot.base_frame)
        self.heard, self.made, self.sent, self.wait_for = [], [], 0, wait_for

    def context(self, **blocks):
        path = share_directory() / "config" / "robots" / "panda.yaml"
        robot = parse_robot({**read_mapping(path), **blocks}, "test", path.parent)
        return Context(self.sender, robot, lambda: RobotState(0, self.position, np.zeros(7)), self.kinematics)

    def arm(self, kind=None, heard_on=None, **block):
        """An adapter, and a subscription to what it publishes."""
        if kind is not None:
            self.hearer.create_subscription(kind, heard_on, self.heard.append, 100)
        arm = make_arm(self.context(controller=block))
        self.made.append(arm)
        if kind is not None:
            wait_for(arm.listeners, "the connection")
            self.count_what(arm._publisher)
        return arm

    def count_what(self, publisher):
        publish = publisher.publish

        def counted(message):
            self.sent += 1
            publish(message)

        publisher.publish = counted

    def gripper(self, kind=None, heard_on=None, **block):
        if kind is not None:
            self.hearer.create_subscription(kind, heard_on, self.heard.append, 100)
        fingers = {"joint": "finger", "open_position": 0.04, "closed_position": 0.0}
        gripper = make_gripper(self.context(gripper={**fingers, **block}))
        self.made.append(gripper)
        if kind is not None:
            wait_for(gripper.listeners, "the connection")
        return gripper

    def command(self, now_ns, delta=0.1, seconds=1.0):
        """A straight move of every joint by `delta` rad that begins 20 ms from now."""
        steps = np.linspace(0.0, 1.0, 11)
        smooth = steps**2 * (3 - 2 * steps)
        speeds = 6 * steps * (1 - steps) * delta / seconds
        command = TrajectoryCommand(now_ns + STEP_NS, self.robot.joints, steps * seconds,
                                    self.position + np.outer(smooth, np.full(7, delta)), np.outer(speeds, np.ones(7)))
        return MotionGuard(self.robot).admit(command, now_ns, RobotState(now_ns, self.position))

    def play(self, arm, begin_ns, end_ns):
        """Tick the adapter from one time to another, 50 Hz, as fast as what it sends is heard."""
        for now in range(begin_ns, end_ns, STEP_NS):
            self.tick(arm, now)

    def tick(self, arm, now):
        """A burst would overwrite what the publisher keeps for a subscriber that is behind."""
        before = self.sent
        arm.tick(now)
        if self.sent > before:
            wait_for(lambda: len(self.heard) >= self.sent, "what was sent")

    def stamp(self):
        """The newest heard message's, ns; 0 before the first."""
        return from_time(self.heard[-1].header.stamp) if self.heard else 0

    def close(self):
        for adapter in self.made:
            adapter.close()
        for spinner in self.spinners:
            spinner.close()
