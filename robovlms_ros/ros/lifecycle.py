"""A lifecycle node whose transitions may simply raise.

A subclass writes four plain methods. Every way out of `active` goes through `_halt`, every way back
to nothing through `_teardown`, and both accept whatever part of the work had been done:

    unconfigured --_setup--> inactive --_start--> active --_halt--> inactive --_teardown-->
    unconfigured

rclpy turns an exception in a transition into an error without a text. Here it is logged, handed to
`_failed`, and the transition fails, so that the node stays where it was and can be tried again.

rclpy of Jazzy raises for a transition that the present state does not have, out of the service's
callback, which ends the process. Here such a request fails with a line in the log. Transitions are
carried out by rclpy's public `trigger_*` methods, which Jazzy and Rolling have alike.
"""

import inspect
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence

import rclpy
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import RoboVLMsError
from robovlms_ros.ros.checked_node import CheckedNode
from robovlms_ros.ros.spinning import SteadyExecutor, share_the_interpreter

TRIGGERED = ("configure", "cleanup", "activate", "deactivate", "shutdown")
"""Labels of the transitions that rclpy has a `trigger_*` method for."""

LAST_WORDS = 1.0
"""Seconds that the last messages get to leave the process."""


class PlainLifecycleNode(LifecycleNode, CheckedNode):
    """See the module's docstring. One transition at a time.

    rclpy puts the lifecycle services into the default callback group. What must go on during a long
    configure belongs into `work_group`.
    """

    def __init__(self, name: str, **options: object) -> None:
        self._transition_lock = threading.RLock()
        super().__init__(name, **options)
        self.work_group = MutuallyExclusiveCallbackGroup()
        self._service_change_state.callback = self._on_change_state

    def _setup(self) -> None:
        """Get everything ready; may take long. May raise: `_teardown` follows."""

    def _start(self) -> None:
        """Begin; must not take long. May raise: `_halt` follows."""

    def _halt(self, reason: str) -> None:
        """Stop what `_start` began. Accepts that nothing was begun. Must not raise."""

    def _teardown(self) -> None:
        """Free what `_setup` made. Accepts any part of it. Must not raise."""

    def _entered(self, state: str) -> None:
        """A transition has begun or ended: `state` is the lifecycle's word for where the node is
        now."""

    def _failed(self, transition: str, reason: str) -> None:
        """A transition failed for `reason`."""

    @property
    def lifecycle_state(self) -> str:
        """`unconfigured`, `inactive`, `active`, `finalized`, or a transition's name such as
        `configuring`."""
        return str(self._state_machine.current_state[1])

    def change_state(self, transition: int | str) -> bool:
        """Run a transition by its id or label.

        False where it fails, or where the present state does not have it.
        """
        with self._transition_lock:
            offered = self._state_machine.available_transitions
            available = {number: label for number, label, *_ in offered if label in TRIGGERED}
            chosen = [number for number, label in available.items() if transition in (number, label)]
            if not chosen:
                allowed = ", ".join(f"{number} ({label})" for number, label in available.items()) or "none"
                self.get_logger().warning(
                    f"transition {printable(transition)} is refused: the node is {self.lifecycle_state}. "
                    f"Allowed now: {allowed}.")
                return False
            label = available[chosen[0]]
            try:
                result = getattr(self, f"trigger_{label}")()
            except RuntimeError as error:  # RCLError is one; our own transitions let none through
                self.get_logger().error(f"transition {label} failed: {printable(error)}")
                return False
            return bool(result == TransitionCallbackReturn.SUCCESS)

    def _on_change_state(self, request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
        response.success = self.change_state(request.transition.label or request.transition.id)
        return response

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `_setup`; on failure everything is freed again."""
        self._entered("configuring")
        result = self._attempt("configure", self._setup, self._teardown, "inactive", "unconfigured")
        index_modules()
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `_start`."""
        return self._attempt("activate", self._start, lambda: self._halt("activate failed"), "active", "inactive")

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `_halt`."""
        return self._attempt("deactivate", lambda: self._halt("deactivated"), lambda: None, "inactive", "active")

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `_teardown`."""
        return self._attempt("clean up", self._teardown, lambda: None, "unconfigured", "inactive")

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Run `_halt` and `_teardown`, from any state."""
        self._end("shut down")
        self._entered("finalized")
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured, whatever went wrong."""
        self._end("an error in a transition")
        self._entered("unconfigured")
        return TransitionCallbackReturn.SUCCESS

    def stop(self, reason: str) -> None:
        """Do what deactivate and cleanup do, for an end that is no transition: a signal, a dying
        process."""
        if self.lifecycle_state in ("active", "inactive"):
            self._end(reason)
            self._entered("finalized")

    def _end(self, reason: str) -> None:
        with self._transition_lock:
            self._halt(reason)
            self._teardown()

    def _attempt(self, name: str, action: Callable[[], None], undo: Callable[[], None], done: str,
                 back: str) -> TransitionCallbackReturn:
        with self._transition_lock:
            try:
                action()
            # the one place where any failure of a transition gets its text
            except Exception as error:
                known = isinstance(error, RoboVLMsError)
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                self.get_logger().error(f"{name} failed: {reason}" if known else
                                        f"{name} failed:\n{traceback.format_exc()}")
                undo()
                self._entered(back)
                self._failed(name, reason)
                return TransitionCallbackReturn.FAILURE
            self._entered(done)
            return TransitionCallbackReturn.SUCCESS


def index_modules() -> None:
    """Let Python index the modules that are loaded by now.

    rclpy's logger looks up the module of each caller. The first line from a file that is not in the
    index indexes all new modules: with torch and transformers, over 0.1 s in which a stop waits.
    """
    inspect.getmodule(index_modules.__code__, "not in the index")


def run_until_signalled(make_node: Callable[[], PlainLifecycleNode], arguments: Sequence[str] | None = None) -> int:
    """Spin a node until SIGINT or SIGTERM, then `stop` it and let its last messages out; returns
    the exit code.

    rclpy's own signal handlers shut the context down at once, and then nothing could be published
    any more.
    """
    share_the_interpreter()
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    node = make_node()
    # A goal of ~/execute holds one thread, two while it is preempted.
    executor = SteadyExecutor(num_threads=6)
    executor.add_node(node)

    failed = False

    def spin() -> None:
        nonlocal failed
        try:
            executor.spin()
        except ExternalShutdownException:
            pass
        # whatever a callback raised: the arm is stopped below, and the process exits with a failure
        except Exception:
            # rclpy's executors may also raise because they are being shut down.
            if not ended.is_set():
                failed = True
                node.get_logger().fatal(f"a callback failed:\n{traceback.format_exc()}")
        finally:
            ended.set()

    thread = threading.Thread(target=spin, name="executor", daemon=True)
    thread.start()
    ended.wait()
    busy = node.lifecycle_state == "configuring"
    node.stop("the process was asked to end")
    for publisher in list(node.publishers):
        publisher.wait_for_all_acked(Duration(seconds=LAST_WORDS))
    if busy:
        # What is still loading cannot be interrupted, and nothing has been started that moves.
        os._exit(int(failed))
    executor.shutdown(timeout_sec=5.0)
    thread.join(timeout=5.0)
    node.destroy_node()
    rclpy.try_shutdown()
    return int(failed)
