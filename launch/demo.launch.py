"""The simulated Panda and the policy node that drives it: ros2 launch robovlms_ros demo.launch.py

The one place where dry_run is false by default: this arm cannot hurt anybody. Another task than `instruction`:
    ros2 topic pub --once --qos-durability transient_local /instruction std_msgs/msg/String "data: lift the green cube"
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, SetParameter
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from robovlms_ros.resources import share_directory


def generate_launch_description() -> LaunchDescription:
    """The simulated arm, and vla.launch.py with the demo's parameters."""
    config = share_directory() / "config"
    argument = LaunchConfiguration
    arm = Node(
        package="robovlms_ros", executable="sim_arm", name="sim_arm", namespace=argument("namespace"), output="screen",
        parameters=[str(config / "sim_arm.yaml"), {"seed": ParameterValue(argument("seed"), value_type=int)}],
    )
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource([FindPackageShare("robovlms_ros"), "/launch/vla.launch.py"]),
        launch_arguments={
            "params_file": str(config / "demo.yaml"),
            "checkpoint": argument("checkpoint"),
            "device": argument("device"),
            "namespace": argument("namespace"),
            "autostart": argument("autostart"),
            "dry_run": "false",
            "use_sim_time": "true",
        }.items(),
    )
    return LaunchDescription([
        DeclareLaunchArgument("seed", default_value="0", description="scene of the simulation"),
        DeclareLaunchArgument("instruction", default_value="lift the red cube", description="the task in words"),
        DeclareLaunchArgument("checkpoint", default_value="", description="another checkpoint than the shipped one"),
        DeclareLaunchArgument("device", default_value="cpu", description="where the model runs: auto, cpu, cuda, ..."),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of both nodes and their topics"),
        DeclareLaunchArgument("autostart", default_value="true", choices=["true", "false"],
                              description="true: configure and activate the policy node"),
        arm,
        GroupAction([
            SetParameter("instruction", ParameterValue(argument("instruction"), value_type=str)),
            policy,
        ]),
    ])
