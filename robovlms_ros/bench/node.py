"""Time that the ROS node adds to a step: real inputs, policy runner, worker and executor, with a
policy that only prepares images."""

import argparse
import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import rclpy
from PIL import Image as PillowImage
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image, JointState

from robovlms_ros.control.executor import build_executor
from robovlms_ros.control.faults import SafetyMonitorConfig
from robovlms_ros.control.safety_monitor import SafetyMonitor
from robovlms_ros.core.structured_text import write_json
from robovlms_ros.core.text_table import aligned
from robovlms_ros.core.types import ActionChunk, ActionSpec, Observation, RoboVLMsError
from robovlms_ros.inference.worker import InferenceWorker
from robovlms_ros.models.image_processor import SIGLIP_MEAN, SIGLIP_STD, ImageProcessor
from robovlms_ros.msg import ActionChunk as ActionChunkMsg
from robovlms_ros.observations import images as conversion
from robovlms_ros.ros import observation_subscriber as inputs_module
from robovlms_ros.ros.command_sender import CommandInterfaces, DecisionObserver
from robovlms_ros.ros.controllers.base import Context
from robovlms_ros.ros.controllers.trajectory_topic import JointTrajectoryArm
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.loading import PoseFiller, load_body
from robovlms_ros.ros.messages import chunk_to_message, to_time
from robovlms_ros.ros.observation_subscriber import ObservationSubscriber
from robovlms_ros.ros.parameters import defaults, from_values
from robovlms_ros.ros.policy_runner import PolicyRunner
from robovlms_ros.ros.spinning import QUIET_PUBLISHER, SteadyExecutor, share_the_interpreter
from robovlms_ros.ros.status import NodeStatus

NAMESPACE = "/bench_node"
HEIGHT = 480
WIDTH = 640
RATE = 30.0
CAMERAS = ("static", "wrist")
SPEC = ActionSpec("eef_delta", "base", "rotation_vector", "from_observation", 0.05)
HORIZON = 20
WARM_UP = 2.0
PATIENCE = 120.0
ADDED_MS = 3.0
RATIO = 1.2


class Cameras(Node):
    """Two cameras with synchronised stamps and an arm at rest."""

    def __init__(self, transport: str, encoding: str) -> None:
        super().__init__("cameras", namespace=NAMESPACE)
        robot = load_body(from_values(defaults()), lambda topic: "").robot
        rng = np.random.default_rng(0)
        compressed = transport == "compressed"
        kind, suffix = (CompressedImage, "/compressed") if compressed else (Image, "")
        self._messages = {}
        for name in CAMERAS:
            coarse = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
            pixels = np.asarray(PillowImage.fromarray(coarse).resize((WIDTH, HEIGHT)))
            publisher = self.create_publisher(kind, f"{name}/image_raw{suffix}", qos_profile_sensor_data)
            self._messages[name] = (publisher, _jpeg(pixels) if compressed else _raw(pixels, encoding))
        self._states = self.create_publisher(JointState, "joint_states", 10)
        self._state = JointState(name=list(robot.joints), position=list(robot.home), velocity=[0.0] * len(robot.joints))
        self.create_timer(1.0 / RATE, self._take)
        self.create_timer(0.01, self._measure)

    def _take(self) -> None:
        stamp = to_time(self.get_clock().now().nanoseconds)
        for publisher, message in self._messages.values():
            message.header.stamp = stamp
            publisher.publish(message)

    def _measure(self) -> None:
        self._state.header.stamp = to_time(self.get_clock().now().nanoseconds)
        self._states.publish(self._state)


def _raw(pixels: np.ndarray, encoding: str) -> Image:
    size = conversion.PIXEL_BYTES[encoding]
    content = np.resize(pixels, (HEIGHT, WIDTH, size))
    message = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=size * WIDTH)
    message.data.frombytes(content.tobytes())
    return message


def _jpeg(pixels: np.ndarray) -> CompressedImage:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG", quality=90)
    message = CompressedImage(format="rgb8; jpeg compressed bgr8")
    message.data.frombytes(buffer.getvalue())
    return message


class Stopwatch:
    """Times by observation stamp (ns): when its last image came, what the library took, when each
    stage was done."""

    def __init__(self) -> None:
        self.entered = 0.0
        self.decoding = 0.0
        self.came: dict[int, tuple[float, float, float]] = {}
        self.free_since = 0.0
        self.added_in: list[float] = []
        self.library: list[float] = []
        self.ready: dict[int, float] = {}
        self.out: list[float] = []
        self.command: list[float] = []

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` (a conversion), its duration kept."""
        def call(*args: Any) -> Any:
            begin = time.perf_counter()
            result = function(*args)
            self.decoding = time.perf_counter() - begin
            return result
        return call


class PreparingSession:
    """Prepares the model's input, as a policy does, and answers with a chunk that keeps the arm
    where it is."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self.processor = ImageProcessor(224, SIGLIP_MEAN, SIGLIP_STD)
        self._sequence = 0

    def reset(self) -> None: ...

    def observe(self, observation: Observation) -> None: ...

    def finish(self) -> None: ...

    def predict_action_chunk(self, observation: Observation) -> ActionChunk:
        watch = self._watch
        begin = time.perf_counter()
        for name, image in observation.images.items():
            self.processor(image, name)
        done = time.perf_counter()
        came, decoding, submitted = watch.came.pop(observation.stamp_ns)
        # A frame that waits for the inference before it waits for the policy, not for the node.
        waited = max(0.0, watch.free_since - submitted)
        watch.added_in.append(begin - came - decoding - waited)
        watch.library.append(done - begin + decoding)
        self._sequence += 1
        chunk = ActionChunk(observation.stamp_ns, np.zeros((HORIZON, 7)), SPEC, observation.instruction, "none",
                            self._sequence)
        watch.ready[chunk.stamp_ns] = time.perf_counter()
        return chunk


class BenchNode(PlainLifecycleNode):
    """Inputs, worker, pilot and a joint trajectory topic, as `vla_node` wires them, with
    stopwatches in between."""

    def __init__(self, transport: str) -> None:
        super().__init__("bench", namespace=NAMESPACE)
        values = {**defaults(), "instruction": "stand still"}
        values |= {f"camera.{name}.transport": transport for name in CAMERAS}
        parameters = from_values(values)
        body = load_body(parameters, lambda topic: "")
        assert body.make_kinematics is not None
        self.stopwatch = watch = Stopwatch()
        self.messages: list[Any] = []
        monitor = SafetyMonitor(SafetyMonitorConfig(max_age=5.0), CAMERAS, self.now_ns())
        self.inputs = ObservationSubscriber(self, parameters, body.robot, parameters.cameras, False, monitor,
                             PoseFiller(body.make_kinematics()), self._on_observation, lambda text: None)
        executor = build_executor(
            body.robot, body.make_kinematics(), parameters.schedule, body.collision
        )
        self._arm = JointTrajectoryArm(Context(self, body.robot, self.inputs.measured), body.robot.controller)
        send = self._arm.send

        def timed_send(command: Any, now_ns: int) -> None:
            send(command, now_ns)
            if watch.ready:
                watch.command.append(time.perf_counter() - watch.ready.pop(max(watch.ready)))

        self._arm.send = timed_send  # type: ignore[method-assign]
        self._arm.absence = lambda: ""  # type: ignore[method-assign]
        self._chunks = self.create_publisher(ActionChunkMsg, "~/action_chunk", 10, event_callbacks=QUIET_PUBLISHER)
        self._frame = body.robot.base_frame
        interfaces = CommandInterfaces(executor, self._arm, None, parameters.schedule.lead)
        observer = DecisionObserver()
        observer.on_chunk = self._publish  # type: ignore[method-assign]
        self._runner = PolicyRunner(
            self.inputs, monitor, interfaces, self.now_ns, NodeStatus(), lambda line: None,
            observer=observer,
        )
        self.session = PreparingSession(watch)
        self.worker = InferenceWorker(self.session, self.now_ns, self._on_chunk, self._on_error)
        self._runner.start(self.worker)

    def now_ns(self) -> int:
        """The node's clock, ns."""
        return int(self.get_clock().now().nanoseconds)

    def on_image(self, camera: str, message: Any, encoding: str | None) -> None:
        """Replacement of the subscriber's callback that records its entry time."""
        self.stopwatch.entered = time.perf_counter()
        if len(self.messages) < 60:
            self.messages.append(message)
        ObservationSubscriber._on_image(self.inputs, camera, message, encoding)

    def _on_observation(self, observation: Observation) -> None:
        watch = self.stopwatch
        watch.came[observation.stamp_ns] = (watch.entered, watch.decoding, time.perf_counter())
        self._runner.observe(observation)

    def _on_chunk(self, chunk: ActionChunk) -> None:
        self._runner.on_chunk(chunk)
        self.stopwatch.free_since = time.perf_counter()

    def _publish(self, chunk: ActionChunk) -> None:
        self._chunks.publish(chunk_to_message(chunk, self._frame))
        self.stopwatch.out.append(time.perf_counter() - self.stopwatch.ready[chunk.stamp_ns])

    def _on_error(self, error: Exception) -> None:
        self.get_logger().error(f"{type(error).__name__}: {error}")
        self._runner.on_error(error)


def measure(transport: str, encoding: str, seconds: float) -> dict[str, Any]:
    """One transport's row: p50 and p99 in ms of every stage, and the ratio to the library alone."""
    cameras = subprocess.Popen([sys.executable, "-m", __name__, transport, encoding])
    share_the_interpreter()
    rclpy.init()
    convert = inputs_module.to_rgb
    try:
        node = BenchNode(transport)
        # The callback looks both names up when it is called, so a stopwatch can stand in front of
        # them.
        inputs_module.to_rgb = node.stopwatch.timed(convert)  # type: ignore[assignment]
        node.inputs._on_image = node.on_image  # type: ignore[method-assign]
        executor = SteadyExecutor(num_threads=4)
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin, daemon=True)
        thread.start()
        watch = node.stopwatch
        deadline = time.monotonic() + PATIENCE
        while not watch.command:
            if time.monotonic() > deadline:
                raise RoboVLMsError(f"no image came in {PATIENCE:.0f} s: the cameras' process does not run.")
            time.sleep(0.1)
        time.sleep(WARM_UP)
        for values in (watch.added_in, watch.out, watch.command, watch.library):
            values.clear()
        time.sleep(seconds)
        executor.shutdown(timeout_sec=5.0)
        node.worker.stop()
        alone = _alone(node, convert)
        row = _row(transport, watch, alone)
        node.destroy_node()
        return row
    finally:
        inputs_module.to_rgb = convert
        cameras.terminate()
        cameras.wait()
        rclpy.try_shutdown()


def _alone(node: BenchNode, convert: Callable[[Any, Any], Any]) -> list[float]:
    """The library's calls of one set, without a node: the last image decoded or converted, both
    prepared."""
    converter = inputs_module.pick_converter()
    spent = []
    for message in node.messages:
        begin = time.perf_counter()
        image = convert(message, converter)
        node.session.processor(image)
        node.session.processor(image)
        spent.append(time.perf_counter() - begin)
    return spent


def _row(transport: str, watch: Stopwatch, alone: list[float]) -> dict[str, Any]:
    def percentiles(values: list[float]) -> dict[str, float]:
        return {f"p{p}": 1000.0 * float(np.percentile(values, p)) for p in (50, 99)}

    return {
        "transport": transport, "sets": len(watch.added_in), "in_ms": percentiles(watch.added_in),
        "out_ms": percentiles(watch.out), "command_ms": percentiles(watch.command),
        "library_ms": percentiles(watch.library), "library_alone_ms": percentiles(alone),
        "ratio": float(np.median(watch.library) / np.median(alone)),
    }


def run(args: argparse.Namespace) -> int:
    """Measure raw and compressed images; returns 0 when both aims are met, else 1."""
    rows = [measure(transport, args.encoding, args.seconds) for transport in ("raw", "compressed")]
    print("ms, two 640x480 cameras at 30 Hz; p50 / p99\n")
    header = ("transport", "added in", "added out", "command", "library", "ratio", "sets")
    print(aligned(header, [_cells(row) for row in rows], numbers=True))
    added = max(row["in_ms"]["p99"] + row["out_ms"]["p99"] for row in rows)
    ratio = max(row["ratio"] for row in rows)
    met = added <= ADDED_MS and ratio <= RATIO
    print(
        f"\nadded, p99: {added:.2f} ms (aim: at most {ADDED_MS:g}); ratio {ratio:.2f} (aim: "
        f"at most {RATIO:g}): {'met' if met else 'MISSED'}"
    )
    write_json(args.json, {"rows": rows, "added_p99_ms": added, "ratio": ratio, "pass": met})
    return 0 if met else 1


def _cells(row: dict[str, Any]) -> list[str]:
    stages = [row[name] for name in ("in_ms", "out_ms", "command_ms", "library_ms")]
    times = [f"{stage['p50']:.2f} / {stage['p99']:.2f}" for stage in stages]
    return [row["transport"], *times, f"{row['ratio']:.2f}", str(row["sets"])]


def main() -> int:
    """The cameras' process: transport and encoding on the command line; SIGTERM ends it."""
    # rclpy's own handler would invalidate the context under the executor that waits on it.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    executor = SingleThreadedExecutor()
    node = Cameras(*sys.argv[1:3])
    executor.add_node(node)
    with suppress(KeyboardInterrupt):
        executor.spin()
    return 0


if __name__ == "__main__":
    sys.exit(main())
