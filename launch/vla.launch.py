"""The policy node on a robot: ros2 launch robovlms_ros vla.launch.py checkpoint:=FOLDER robot:=panda

With autostart the node is configured and activated, and a failure of either ends the launch with a non-zero code.
Without, it stays unconfigured until `ros2 lifecycle set` (or a manager) says otherwise.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import LifecycleNode

from robovlms_ros.core.resources import share_directory
from robovlms_ros.ros.autostart import autostart, fail_with

BOOLEANS = {"true": True, "false": False}
# Arguments that become the node's parameter of the same name; empty ones leave what params_file says.
TEXTS = {
    "backbone": "preset of config/backbones; may stay empty where the checkpoint names its own",
    "checkpoint": "folder with config.yaml and model.safetensors, or random (never leaves dry_run)",
    "robot": "robot of config/robots by name, or the path of a YAML",
    "device": "where the model runs: auto, cpu, cuda, cuda:1, ...",
}
SWITCHES = {
    "dry_run": "true: chunks are published and nothing that moves",
    "use_sim_time": "true: time comes from /clock",
}


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node made from them."""
    defaults = str(share_directory() / "config" / "vla.yaml")
    keep = " (empty: as in params_file)"
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value="", description=text + keep) for name, text in TEXTS.items()),
        *(DeclareLaunchArgument(name, default_value="", choices=["", *BOOLEANS], description=text + keep)
          for name, text in SWITCHES.items()),
        DeclareLaunchArgument("params_file", default_value=defaults, description="parameters of the node, YAML"),
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node and its topics"),
        DeclareLaunchArgument("autostart", default_value="true", choices=[*BOOLEANS],
                              description="true: configure and activate; false: stay unconfigured"),
        OpaqueFunction(function=_node),
    ])


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = context.launch_configurations
    params_file = Path(given["params_file"]).expanduser()
    if not params_file.is_file():
        raise FileNotFoundError(f"params_file = '{params_file}': no such file. Copy config/vla.yaml and edit the copy.")
    parameters = {name: given[name] for name in TEXTS if given[name]}
    switches = {name: BOOLEANS[given[name]] for name in SWITCHES if given[name]}
    node = LifecycleNode(
        package="robovlms_ros", executable="vla_node", name="vla_node", namespace=given["namespace"],
        parameters=[str(params_file), {**parameters, **switches}], output="screen", emulate_tty=True,
    )
    begin = autostart(node) if BOOLEANS[given["autostart"]] else []
    # The handlers first: the process may start, and even die, before anything after it is looked at.
    return [*fail_with(node), *begin, node]
