"""A node that no client can end: rclpy's executors end the process with the first callback that
raises."""

from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.service import Service
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock

from robovlms_ros.core.text_safety import printable


class CheckedNode(Node):
    """Checks the requests and messages that rclpy's own callbacks would raise for.

    A /clock message of negative time is ignored with a warning. A service whose callback raises,
    rclpy's parameter services included, answers with an empty response, and the failure is logged.
    /clock has a callback group of its own: no callback may delay the node's clock, since a stop
    that is timed by an old clock is a step.
    """

    _clock_refused = False

    def create_subscription(
        self, msg_type: Any, topic: str, callback: Any, *args: Any, **options: Any
    ) -> Subscription:
        """As `Node.create_subscription`; rclpy's time source subscribes to /clock by it."""
        if msg_type is not Clock:
            return super().create_subscription(msg_type, topic, callback, *args, **options)
        options["callback_group"] = MutuallyExclusiveCallbackGroup()
        checked = self._checked_clock(callback)
        return super().create_subscription(msg_type, topic, checked, *args, **options)

    def create_service(self, srv_type: Any, srv_name: str, callback: Any, **options: Any) -> Service:
        """As `Node.create_service`; rclpy makes its parameter services by it."""

        def answer(request: Any, response: Any) -> Any:
            try:
                return callback(request, response)
            except Exception as error:  # a request must not end the process that commands an arm
                self.get_logger().error(
                    f"{srv_name}: the request is refused: {type(error).__name__}: {printable(error)}")
                return srv_type.Response()

        return super().create_service(srv_type, srv_name, answer, **options)

    def _checked_clock(self, take_time: Any) -> Any:
        def take_valid_time(message: Clock) -> None:
            seconds = message.clock.sec
            if seconds >= 0:
                self._clock_refused = False
                take_time(message)
            elif not self._clock_refused:
                self._clock_refused = True
                self.get_logger().warning(
                    f"/clock: {seconds} s is negative; simulated time must be 0 or more. The message is ignored: "
                    "correct the simulator, or the bag that is played."
                )

        return take_valid_time
