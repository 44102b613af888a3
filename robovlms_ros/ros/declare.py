"""Declare the table of parameters.py on a node, and read it back as one checked struct.

rclpy ignores a parameter that was given and is not declared, and raises on one of the wrong type.
Here both are kept as problems that `read` raises, so that a lifecycle node stays up, reports them,
and can be set right.
"""

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter as RosParameter

from robovlms_ros.core.schema import ConfigError
from robovlms_ros.ros.parameters import (
    CAMERAS,
    FORMER,
    NodeParameters,
    Parameter,
    check_cameras,
    check_known,
    defaults,
    expand,
    from_values,
    of_this_release,
)

# Declared by rclpy itself, or by a publisher that lets users override its QoS.
FOREIGN = ("use_sim_time", "start_type_description_service")
FOREIGN_PREFIXES = ("qos_overrides.",)


class DeclaredParameters:
    """The parameters of one node.

    locked: the reason not to change them now, None where there is none; called with True for those
    that can be changed while the node is inactive. `live` ones always can be.
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
        overrides = {
            name: value.value
            for name, value in node._parameter_overrides.items()
            if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)
        }
        given = self._of_this_release(overrides)
        try:
            self._cameras = check_cameras(given.get("cameras", CAMERAS))
        except (ConfigError, TypeError) as error:
            self._problems["cameras"] = ConfigError(str(error))
            self._cameras = CAMERAS
        self._table = {p.name: p for p in expand(self._cameras)}
        for name in given:
            self._try(name, lambda name=name: check_known([name], self._table))
        values = defaults(self._cameras)
        for name, parameter in self._table.items():
            if name in given and name not in self._problems:
                self._try(name, lambda p=parameter: values.update({p.name: p.check(given[p.name])}))
            node.declare_parameter(name, values[name], _descriptor(parameter), ignore_override=True)
        node.add_pre_set_parameters_callback(self._replace_former)
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)

    def _of_this_release(self, given: dict[str, Any]) -> dict[str, Any]:
        """`given` by present names; a value that was given by both names is a problem."""
        values = dict(given)
        for old, new in FORMER.items():
            both = {name: values.pop(name) for name in (old, new) if name in values}
            self._try(new, lambda both=both: values.update(of_this_release(both, self._warn)))
        return of_this_release(values, self._warn)

    def _warn(self, text: str) -> None:
        self._node.get_logger().warning(text)

    def _try(self, name: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except ConfigError as error:
            self._problems[name] = error

    def read(self) -> NodeParameters:
        """The values in force. Raises ConfigError, all problems of what the node was given in one
        text."""
        if self._problems:
            texts = dict.fromkeys(str(error) for error in self._problems.values())
            raise ConfigError(" ".join(texts))
        return from_values({name: self._node.get_parameter(name).value for name in self._table})

    def _replace_former(self, parameters: list[RosParameter]) -> list[RosParameter]:
        present = []
        for parameter in parameters:
            if parameter.name in FORMER:
                (name,) = of_this_release({parameter.name: None}, self._warn)
                present.append(RosParameter(name, parameter.type_, parameter.value))
            else:
                present.append(parameter)
        return present

    def _on_set(self, parameters: list[RosParameter]) -> SetParametersResult:
        names = [parameter.name for parameter in parameters]
        for name in FORMER.values():
            if names.count(name) > 1:
                return SetParametersResult(successful=False, reason=f"{name}: given twice")
        for parameter in parameters:
            if parameter.name == "use_sim_time" and self._locked(False) is not None:
                # rclpy changes the clock at once, under all that is being timed by it.
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
    descriptor = ParameterDescriptor(
        description=parameter.text(),
        additional_constraints=parameter.allowed(),
        read_only=parameter.fixed,
    )
    low = parameter.low
    high = parameter.high
    if parameter.kind is float:
        descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
    elif parameter.kind is int:
        integers = IntegerRange(from_value=int(low), to_value=int(high))
        descriptor.integer_range = [integers]
    return descriptor
