"""The node of a simulated arm's joint_trajectory_controller: its topic, and the parameters of its
build."""

from collections.abc import Callable

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter
from trajectory_msgs.msg import JointTrajectory

from robovlms_ros.control.trajectory_controller_model import TrajectoryController

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
