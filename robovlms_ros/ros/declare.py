"""Declare the table of parameters.py on a node, and read it back as one checked struct.

rclpy ignores a parameter it was given and that nobody declares, and dies on one of the wrong type. Here both are kept
as problems that `read` raises, so that a lifecycle node stays up, says what is wrong, and can be set right.
"""

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.parameter_table import RETIRED
from robovlms_ros.ros.parameters import (
    NodeParameters,
    Parameter,
    check_cameras,
    check_known,
    defaults,
    expand,
    from_values,
)

# Declared by rclpy itself, or by a publisher that lets users override its QoS.
FOREIGN = ("use_sim_time", "start_type_description_service")
FOREIGN_PREFIXES = ("qos_overrides.",)


class DeclaredParameters:
    """The parameters of one node.

    locked: the reason why they cannot be changed now, None when they can; called with True for
    those that can be changed while the node is inactive. Those marked `live` always can.
    on_live_change: called after a live one was changed.
    """

    def __init__(
        self,
        node: Node,
        locked: Callable[[bool], str | None],
        on_live_change: Callable[[], None],
    ) -> None:
        self._node = node
        self._on_live_change = on_live_change
        self._locked = locked
        self._problems: dict[str, ConfigError] = {}
        given = {name: value.value for name, value in node._parameter_overrides.items()
                 if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)}
        for name in [name for name in given if name in RETIRED]:
            node.get_logger().warning(f"parameter {name} has no effect any more: {RETIRED[name]}. Remove it.")
            del given[name]
        try:
            self._cameras = check_cameras(given.get("cameras", defaults()["cameras"]))
        except (ConfigError, TypeError) as error:
            self._problems["cameras"] = ConfigError(str(error))
            self._cameras = tuple(defaults()["cameras"])  # type: ignore[arg-type]
        self._table = {p.name: p for p in expand(self._cameras)}
        for name in given:
            self._try(name, lambda name=name: check_known([name], self._table))
        values = defaults(self._cameras)
        for name, parameter in self._table.items():
            if name in given and name not in self._problems:
                self._try(name, lambda p=parameter: values.update({p.name: p.check(given[p.name])}))
            node.declare_parameter(name, values[name], _descriptor(parameter), ignore_override=True)
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)

    def _try(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except ConfigError as error:
            self._problems[name] = error

    def read(self) -> NodeParameters:
        """The values in force. Raises ConfigError, all problems of what the node was given in one text."""
        if self._problems:
            raise ConfigError(" ".join(str(error) for error in self._problems.values()))
        return from_values({name: self._node.get_parameter(name).value for name in self._table})

    def _on_set(self, parameters: list[RosParameter]) -> SetParametersResult:
        for parameter in parameters:
            if parameter.name == "use_sim_time" and self._locked(False) is not None:
                # rclpy changes the clock at once, under whatever is being timed by it.
                reason = f"use_sim_time: {self._locked(False)}"
                return SetParametersResult(successful=False, reason=reason)
            if parameter.name not in self._table:
                continue
            declared = self._table[parameter.name]
            reason = None if declared.live else self._locked(declared.inactive)
            if reason is not None:
                return SetParametersResult(successful=False, reason=f"{parameter.name}: {reason}")
            try:
                self._table[parameter.name].check(parameter.value)
            except ConfigError as error:
                return SetParametersResult(successful=False, reason=str(error))
            self._problems.pop(parameter.name, None)
        return SetParametersResult(successful=True)

    def _after_set(self, parameters: list[RosParameter]) -> None:
        if any(p.name in self._table and self._table[p.name].live for p in parameters):
            self._on_live_change()


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=parameter.description, additional_constraints=parameter.allowed(),
                                     read_only=parameter.fixed)
    if parameter.high < float("inf") and isinstance(parameter.default, float):
        descriptor.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
    elif parameter.high < float("inf"):
        descriptor.integer_range = [IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high))]
    return descriptor
