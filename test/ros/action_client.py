"""A client of the action `~/execute` for tests, in a node of its own."""

from rclpy.action import ActionClient
from rclpy.node import Node
from ros_graph import Spinner, wait_for
from std_msgs.msg import Bool, String

from robovlms_ros.action import ExecuteInstruction
from robovlms_ros.srv import MarkOutcome


class SentGoal:
    """An accepted goal. feedback: messages so far."""

    def __init__(self, handle, feedback):
        self.handle = handle
        self.feedback = feedback
        self._result = handle.get_result_async()

    def wait_running(self):
        """Until feedback that is newer than the call shows the policy at work on the goal."""
        count = len(self.feedback)

        def running():
            return any(f.state == "running" and f.chunks > 0 for f in self.feedback[count:])

        wait_for(running, lambda: f"a running goal, it is {self.feedback[-1:]}")

    def cancel(self):
        future = self.handle.cancel_goal_async()
        wait_for(future.done, "an answer to the cancel request")
        assert future.result().goals_canceling

    def result(self):
        """The result's response: status and result."""
        wait_for(self._result.done, lambda: f"the result, feedback is {self.feedback[-1:]}")
        return self._result.result()


class GoalClient:
    """Sends goals and marks to a graph's node; `close` takes it off the network."""

    def __init__(self, graph):
        self.node = Node("goal_client", namespace=graph.namespace)
        self._action = ActionClient(self.node, ExecuteInstruction, "vla/execute")
        self._mark = self.node.create_client(MarkOutcome, "vla/mark_outcome")
        self.outcomes = []  # markers that the node publishes for recordings
        self.node.create_subscription(String, "episode", lambda m: self.outcomes.append(m.data), 10)
        self._success = self.node.create_publisher(Bool, "success", 10)
        self._spinner = Spinner(self.node)

    def send(self, instruction, **fields):
        """The accepted goal, None for a refused one."""
        wait_for(self._action.server_is_ready, "the action server")
        feedback = []
        goal = ExecuteInstruction.Goal(instruction=instruction, **fields)
        future = self._action.send_goal_async(goal, lambda m: feedback.append(m.feedback))
        wait_for(future.done, "an answer to the goal")
        handle = future.result()
        return SentGoal(handle, feedback) if handle.accepted else None

    def mark(self, outcome, note):
        wait_for(self._mark.service_is_ready, "the service mark_outcome")
        future = self._mark.call_async(MarkOutcome.Request(outcome=outcome, note=note))
        wait_for(future.done, "an answer to the mark")
        return future.result()

    def publish_success(self, value):
        wait_for(lambda: self._success.get_subscription_count() > 0, "a subscriber of success")
        self._success.publish(Bool(data=value))

    def close(self):
        self._action.destroy()
        self._spinner.close()
