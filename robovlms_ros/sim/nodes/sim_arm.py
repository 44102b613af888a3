"""`sim_arm`: the simulated Panda as a ROS node, with the topics of a real arm and its cameras.

Publishes `<camera>/image_raw` (and `<camera>/image_raw/compressed`, JPEG, with `compressed`),
`joint_states`, `robot_description`, `/clock` with `publish_clock`. Subscriptions:
`gripper_controller/joint_trajectory`, and `panda_arm_controller/joint_trajectory` in a node of its
own, as a controller has. `~/reset` puts the arm into the scene of the parameter `seed`.
`~/ground_truth` (JSON) is for judges: a policy that reads it has learned nothing; its `resets`
counts the scenes that `~/reset` set up, and `instruction` is a sentence of the seed's own. The
parameter `task` chooses between the two cubes and the scenes of a tabletop task.

Without `/clock` its stamps are those of the node's own clock, as a real arm's are.
"""

import io
import json
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

import rclpy
from PIL import Image as PillowImage
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control.trajectory_controller_model import (
    TrajectoryController,
    TrajectoryRejected,
)
from robovlms_ros.core import resources
from robovlms_ros.core.types import NANOSECONDS
from robovlms_ros.ros.graph import LATCHED
from robovlms_ros.ros.messages import image_to_message, to_time, trajectory_from_message
from robovlms_ros.sim.tasks.base import CUBES
from robovlms_ros.sim.tasks.language import TaskError
from robovlms_ros.sim.tasks.objects import FINGER_OPEN
from robovlms_ros.sim.world import CAMERAS, TICK_NS, SimWorld

CAMERA_PERIOD_NS = NANOSECONDS // 20
JOINT_STATE_PERIOD_NS = NANOSECONDS // 100
TRUTH_PERIOD_NS = NANOSECONDS // 20

# Wall seconds that the simulation may lag before it gives the time up instead of catching up in a
# burst.
MAX_LAG = 0.1


SWITCH = "allow_trajectory_replacement"


class SimControllerNode(Node):
    """Receives a controller's trajectories, and answers for its parameters as the real node does.

    name: of the controller, prefix of its topic. owner: the simulated arm's node, whose namespace
    and context it shares. blends: True has the parameters of a build that blends trajectories, of
    which `allow_trajectory_replacement` may be set at any time. accept: called with every message.
    """

    def __init__(
        self,
        name: str,
        owner: Node,
        controller: TrajectoryController,
        blends: bool,
        accept: Callable[[JointTrajectory], None],
    ) -> None:
        super().__init__(
            name,
            namespace=owner.get_namespace(),
            context=owner.context,
            # A name given to the process is the arm's.
            use_global_arguments=False,
        )
        self._controller = controller
        fixed = ParameterDescriptor(read_only=True)
        desired = controller.interpolate_from_desired_state
        self.declare_parameter("interpolate_from_desired_state", desired, fixed)
        controller.allow_trajectory_replacement = blends
        if blends:
            self.declare_parameter("positions_upsampling.enable", False, fixed)
            self.declare_parameter("positions_upsampling.policy_frequency", 0.0)
            self.declare_parameter(SWITCH, True)
            self.add_on_set_parameters_callback(self._on_set)
        self.create_subscription(JointTrajectory, f"{name}/joint_trajectory", accept, 10)

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == SWITCH:
                self._controller.allow_trajectory_replacement = bool(parameter.value)
        return SetParametersResult(successful=True)


class SimArmNode(Node):
    """One SimWorld on the ROS graph. The world lives in a thread of its own, which alone touches
    it.

    controller: the node of its arm's controller, to be spun and destroyed beside this one.
    """

    def __init__(self, **options: object) -> None:
        super().__init__("sim_arm", **options)  # type: ignore[arg-type]
        self._declare()
        self._world = self._make_world()
        self._factor = float(self._get("real_time_factor"))
        self._publish_clock = bool(self._get("publish_clock"))
        if not self._publish_clock and self._factor != 1.0:
            self.get_logger().warning("real_time_factor other than 1 without publish_clock: stamps run with the "
                                      "world's time and drift from the node's clock.")
        self._seed = int(self._get("seed"))
        self._resets_done = 0
        self._offset_ns = 0 if self._publish_clock else self.get_clock().now().nanoseconds - self._world.time_ns
        self._commands: queue.SimpleQueue[tuple[TrajectoryController, JointTrajectory]] = queue.SimpleQueue()
        self._resets: queue.SimpleQueue[queue.SimpleQueue[str]] = queue.SimpleQueue()
        self._make_endpoints()
        self._running = True
        self._thread = threading.Thread(target=self._run, name="world", daemon=True)
        self._thread.start()

    def _declare(self) -> None:
        def declare(name: str, default: object, description: str, **ranges: object) -> None:
            self.declare_parameter(name, default, ParameterDescriptor(description=description, **ranges))

        declare("seed", 0, "Scene that ~/reset (and the start) sets up.",
                integer_range=[IntegerRange(from_value=0, to_value=2**31 - 1)])
        declare(
            "task",
            CUBES,
            "Task whose scenes ~/reset sets up: cubes, lift, stack, put, push, or all, which draws "
            "one of the tabletop tasks. Empty is cubes.",
        )
        declare("blank_cameras", False, "True: every image is black, from the next ~/reset on.")
        declare("image_size", 96, "Pixels, width and height of an image.", read_only=True,
                integer_range=[IntegerRange(from_value=16, to_value=1024)])
        declare("real_time_factor", 1.0, "Simulated seconds per second.", read_only=True,
                floating_point_range=[FloatingPointRange(from_value=0.01, to_value=100.0)])
        declare("publish_clock", False, "True: publish /clock and stamp with simulated time.", read_only=True)
        declare("compressed", False, "True: publish each image as JPEG too.", read_only=True)
        declare("controller_blends", False, "True: the arm's controller blends a new trajectory into "
                "the running one, as the newest ros2_controllers do; false: it forgets the running one, "
                "as Jazzy's.", read_only=True)

    def _get(self, name: str):  # type: ignore[no-untyped-def]
        return self.get_parameter(name).value

    def _make_world(self) -> SimWorld:
        seed, blank, size = (self._get(name) for name in ("seed", "blank_cameras", "image_size"))
        return SimWorld(seed, blank, size, task=self._get("task") or CUBES)

    def _make_endpoints(self) -> None:
        self._images = {name: self.create_publisher(Image, f"{name}/image_raw", qos_profile_sensor_data)
                        for name in CAMERAS}
        self._jpegs = {}
        if self._get("compressed"):
            self._jpegs = {name: self.create_publisher(CompressedImage, f"{name}/image_raw/compressed",
                                                       qos_profile_sensor_data) for name in CAMERAS}
        self._states = self.create_publisher(JointState, "joint_states", 10)
        self._clock_publisher = self.create_publisher(Clock, "/clock", 10) if self._publish_clock else None
        self._truth = self.create_publisher(String, "~/ground_truth", 10)
        self._description = self.create_publisher(String, "robot_description", LATCHED)
        urdf = resources.share_directory() / "config" / "robots" / "panda.urdf"
        self._description.publish(String(data=urdf.read_text(encoding="utf-8")))
        arm = self._world.arm_controller
        gripper = self._world.gripper_controller
        self.controller = SimControllerNode(
            "panda_arm_controller",
            self,
            arm,
            self._get("controller_blends"),
            lambda message: self._commands.put((arm, message)),
        )
        self.create_subscription(JointTrajectory, "gripper_controller/joint_trajectory",
                                 lambda message: self._commands.put((gripper, message)), 10)
        self.create_service(Trigger, "~/reset", self._on_reset)

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        answer: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._resets.put(answer)
        try:
            refusal = answer.get(timeout=10.0)
        except queue.Empty:
            refusal = "the simulation does not answer"
        response.success = not refusal
        response.message = refusal or f"scene of seed {self._seed}"
        return response

    def _run(self) -> None:
        world = self._world
        began_ns = self._world.time_ns
        start = time.monotonic()
        while self._running:
            self._serve_requests()
            world.step()
            self._publish_due()
            ahead = (world.time_ns - began_ns) / NANOSECONDS / self._factor - (time.monotonic() - start)
            if ahead > 0:
                time.sleep(ahead)
            elif -ahead > MAX_LAG:
                start -= ahead
                if not self._publish_clock:
                    self._offset_ns += int(-ahead * NANOSECONDS)
        world.close()

    def _serve_requests(self) -> None:
        while not self._commands.empty():
            controller, message = self._commands.get()
            try:
                trajectory = trajectory_from_message(message, self._offset_ns)
                controller.accept(trajectory, self._world.time_ns)
            except TrajectoryRejected as error:
                self.get_logger().warning(f"trajectory rejected: {error}")
        while not self._resets.empty():
            self._resets.get().put(self._reset_world())

    def _reset_world(self) -> str:
        """Set up the scene that the parameters name; returns why not, empty when it is done."""
        try:
            self._world.set_task(self._get("task") or CUBES)
            self._seed = int(self._get("seed"))
            self._world.blank_cameras = bool(self._get("blank_cameras"))
            self._world.reset(self._seed)
            self._resets_done += 1
        except TaskError as error:
            return str(error)
        return ""

    def _publish_due(self) -> None:
        now_ns = self._world.time_ns
        if now_ns % JOINT_STATE_PERIOD_NS < TICK_NS:
            if self._clock_publisher is not None:
                self._clock_publisher.publish(Clock(clock=to_time(now_ns)))
            self._states.publish(self._joint_state(now_ns))
        if now_ns % TRUTH_PERIOD_NS < TICK_NS:
            self._truth.publish(String(data=self._ground_truth()))
        if now_ns % CAMERA_PERIOD_NS < TICK_NS:
            for name in CAMERAS:
                self._publish_image(name, now_ns)

    def _joint_state(self, now_ns: int) -> JointState:
        state = self._world.joint_state()
        finger = FINGER_OPEN * (state.gripper or 0.0)
        velocities = [] if state.velocities is None else [*state.velocities.tolist(), 0.0]
        message = JointState(name=[*self._world.joints, self._world.finger_joint],
                             position=[*state.positions.tolist(), finger], velocity=velocities)
        message.header.stamp = to_time(now_ns + self._offset_ns)
        return message

    def _ground_truth(self) -> str:
        scene = {"seed": self._seed, "resets": self._resets_done, "time": self._world.time_ns / NANOSECONDS,
                 "joints": list(self._world.joints), "task": self._world.scene_task,
                 "instruction": self._world.sentence}
        return json.dumps(scene | self._world.ground_truth().as_json())

    def _publish_image(self, name: str, now_ns: int) -> None:
        pixels = self._world.render(name)
        message = image_to_message(pixels, now_ns + self._offset_ns, f"{name}_camera_optical_frame")
        self._images[name].publish(message)
        if name in self._jpegs:
            buffer = io.BytesIO()
            PillowImage.fromarray(pixels).save(buffer, "JPEG", quality=95)
            jpeg = CompressedImage(format="rgb8; jpeg compressed bgr8")
            jpeg.header = message.header
            jpeg.data.frombytes(buffer.getvalue())
            self._jpegs[name].publish(jpeg)

    def destroy_node(self) -> None:
        """Stop the world's thread, then the node."""
        self._running = False
        self._thread.join(timeout=5.0)
        super().destroy_node()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node until a signal ends it."""
    # rclpy's own handlers would shut the context down while the world's thread still publishes.
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    node = SimArmNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(node.controller)
    try:
        executor.spin()
    except (KeyboardInterrupt, SystemExit, ExternalShutdownException):
        pass
    finally:
        node.controller.destroy_node()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
