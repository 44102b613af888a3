"""The simulated Panda and the policy node that drives it: ros2 launch robovlms_ros demo.launch.py

The one place where dry_run is false by default: this arm cannot hurt anybody. Both nodes run on a domain of their own,
on this machine only, so that no command reaches a real arm. The launch prints the environment in which `ros2 topic`
finds them. Another task than `instruction`, in that environment:
    ros2 topic pub --once --qos-durability transient_local /instruction std_msgs/msg/String "data: lift the green cube"
"""

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import EqualsSubstitution, IfElseSubstitution, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from robovlms_ros.core import registry
from robovlms_ros.core.resources import share_directory, shipped_policy
from robovlms_ros.ros.launching import check_arguments
from robovlms_ros.ros.processes import isolated_environment


def isolate(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Set the environment of the nodes and of the launch itself, before either joins a graph."""
    variables = isolated_environment(LaunchConfiguration("domain_id").perform(context))
    shown = " ".join(f"{name}={value}" for name, value in variables.items())
    actions = [SetEnvironmentVariable(name, value) for name, value in variables.items()]
    return [*actions, LogInfo(msg=f"the demo's nodes are found with: {shown} ros2 topic list")]


def generate_launch_description() -> LaunchDescription:
    """The simulated arm, and vla.launch.py with the demo's parameters."""
    config = share_directory() / "config"
    policies = [name for name in registry.names("backbone") if shipped_policy(name) == name]
    argument = LaunchConfiguration
    arm = Node(
        package="robovlms_ros", executable="sim_arm", name="sim_arm", namespace=argument("namespace"), output="screen",
        parameters=[str(config / "sim_arm.yaml"), {"seed": ParameterValue(argument("seed"), value_type=int)}],
    )
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("robovlms_ros"), "/launch/vla.launch.py"]),
        launch_arguments={
            "params_file": str(config / "demo.yaml"),
            "checkpoint": IfElseSubstitution(
                EqualsSubstitution(argument("checkpoint"), ""),
                argument("backbone"),
                argument("checkpoint"),
            ),
            "backbone": argument("backbone"),
            "device": argument("device"),
            "namespace": argument("namespace"),
            "autostart": argument("autostart"),
            "instruction": argument("instruction"),
            "rviz": argument("rviz"),
            "dry_run": "false",
            "use_sim_time": "true",
        }.items(),
    )
    declared = [
        DeclareLaunchArgument("seed", default_value="0", description="scene of the simulation"),
        DeclareLaunchArgument("instruction", default_value="lift the red cube", description="the task in words"),
        DeclareLaunchArgument("checkpoint", default_value="", description="another checkpoint than the shipped one"),
        DeclareLaunchArgument("backbone", default_value="", choices=["", *policies],
                              description="the shipped policy of this preset of config/backbones"),
        DeclareLaunchArgument("device", default_value="cpu", description="where the model runs: auto, cpu, cuda, ..."),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of both nodes and their topics"),
        DeclareLaunchArgument("autostart", default_value="true", choices=["true", "false"],
                              description="true: configure and activate the policy node"),
        DeclareLaunchArgument("domain_id", default_value="",
                              description="ROS_DOMAIN_ID of the demo, on this machine only; empty: a random one"),
        DeclareLaunchArgument("rviz", default_value="false", choices=["true", "false"],
                              description="true: start RViz with config/rviz/robovlms.rviz"),
    ]
    names = [one.name for one in declared]
    check = OpaqueFunction(function=lambda context: check_arguments(context, __file__, names))
    return LaunchDescription([check, *declared, OpaqueFunction(function=isolate), arm, policy])
