"""The policy node on a robot: ros2 launch robovlms_ros vla.launch.py checkpoint:=FOLDER robot:=panda

With autostart the node is configured and activated, and a failure of either ends the launch with a
non-zero code. Without, it stays unconfigured until `ros2 lifecycle set` or a manager configures it.
An argument that does not exist is refused.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

from robovlms_ros.core.resources import share_directory
from robovlms_ros.ros.launching import autostart, check_arguments, fail_with, parameter_in, start_rviz

BOOLEANS = {"true": True, "false": False}
# Arguments that become the node's parameter of the same name; empty ones leave the params_file's.
TEXTS = {
    "backbone": "preset of config/backbones; without a checkpoint a shipped policy runs in dry_run",
    "checkpoint": "folder with config.yaml and model.safetensors, or random (never leaves dry_run)",
    "config": "policy configuration (YAML, or RoboVLMs' JSON) for a checkpoint that brings none",
    "robot": "robot of config/robots by name, or the path of a YAML",
    "device": "device of the model: auto, cpu, cuda, cuda:1, ...",
    "instruction": "the task until one arrives on the topic",
}
CHOICES = {"confirm": ("off", "first_chunk", "each_chunk")}
SWITCHES = {
    "dry_run": "true: chunks are published and nothing that moves",
    "use_sim_time": "true: time comes from /clock",
}


def arguments() -> list[DeclareLaunchArgument]:
    """The launch arguments."""
    defaults = str(share_directory() / "config" / "vla.yaml")
    keep = " (empty: as in params_file)"
    declare = DeclareLaunchArgument
    confirm = "chunks that wait for ~/confirm before they move the arm"
    return [
        *(declare(name, default_value="", description=text + keep) for name, text in TEXTS.items()),
        declare("confirm", default_value="", choices=["", *CHOICES["confirm"]],
                description=confirm + keep),
        *(declare(name, default_value="", choices=["", *BOOLEANS], description=text + keep)
          for name, text in SWITCHES.items()),
        declare("params_file", default_value=defaults, description="parameters of the node, YAML"),
        declare("namespace", default_value="", description="namespace of the node and its topics"),
        declare("autostart", default_value="true", choices=[*BOOLEANS],
                description="true: configure and activate; false: stay unconfigured"),
        declare("rviz", default_value="false", choices=[*BOOLEANS],
                description="true: start RViz with config/rviz/robovlms.rviz"),
    ]


def generate_launch_description() -> LaunchDescription:
    """The arguments, and the node made from them."""
    declared = arguments()
    names = [argument.name for argument in declared]
    check = OpaqueFunction(function=lambda context: check_arguments(context, __file__, names))
    return LaunchDescription([check, *declared, OpaqueFunction(function=_node)])


def _node(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    given = context.launch_configurations
    params_file = Path(given["params_file"]).expanduser()
    if not params_file.is_file():
        raise FileNotFoundError(f"params_file = '{params_file}': no such file. Copy config/vla.yaml and edit the copy.")
    # Without the type launch reads off as false and 12 as a number.
    parameters = {
        name: ParameterValue(given[name], value_type=str)
        for name in (*TEXTS, *CHOICES)
        if given[name]
    }
    switches = {name: BOOLEANS[given[name]] for name in SWITCHES if given[name]}
    node = LifecycleNode(
        package="robovlms_ros", executable="vla_node", name="vla_node", namespace=given["namespace"],
        parameters=[str(params_file), {**parameters, **switches}], output="screen", emulate_tty=True,
    )
    begin = autostart(node) if BOOLEANS[given["autostart"]] else []
    rviz = []
    if BOOLEANS[given["rviz"]]:
        robot = given["robot"] or parameter_in(params_file, "robot") or "panda"
        rviz = start_rviz(given["namespace"], robot)
    # The handlers first: the process may start, and even die, before a later action is visited.
    return [*fail_with(node), *begin, node, *rviz]
