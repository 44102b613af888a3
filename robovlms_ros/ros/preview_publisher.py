"""Publishes the preview of the newest chunk: markers on `~/preview`, and for every calibrated
camera its newest image with the path drawn in on `~/preview/NAME`.

Nothing is computed without a subscriber. The work is done by a timer in a callback group of its
own, so that neither chunks nor images wait for it.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from numpy.typing import NDArray
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from robovlms_ros.control.collision_config import WorldBody
from robovlms_ros.control.executor import Decision
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.preview import ToolPreview, draw_preview, preview_of
from robovlms_ros.control.robot import Box, RobotSpec
from robovlms_ros.core.rotations import matrix_from_euler, quaternion_from_matrix
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.text_safety import printable, without_numbers
from robovlms_ros.core.types import ActionChunk, Observation, ObservationError, RobotState
from robovlms_ros.observations.camera_model import (
    CalibrationFile,
    CameraModel,
    load_calibration,
    model_from_info,
)
from robovlms_ros.ros.graph import NEWEST_ONLY
from robovlms_ros.ros.lifecycle import PlainLifecycleNode
from robovlms_ros.ros.loading import RobotModel
from robovlms_ros.ros.messages import image_to_message, to_time
from robovlms_ros.ros.parameters import CameraParameters
from robovlms_ros.ros.spinning import QUIET_PUBLISHER, QUIET_SUBSCRIPTION
from robovlms_ros.ros.status import TEXT_LIMIT

PERIOD = 0.1
"""s between two previews, at least."""
PATH_WIDTH = 0.006  # m
HALF_SPACE_EDGE = 4.0  # m, of the plate that represents a half-space
HALF_SPACE_DEPTH = 0.01
WORKSPACE_COLOUR = (0.3, 0.6, 1.0, 0.9)
WORLD_COLOUR = (0.6, 0.6, 0.6, 0.35)


@dataclass(eq=False)
class CameraView:
    """One camera's preview. model: None until its CameraInfo came. kinematics: of the link that
    carries the camera, None for base_frame. shown: the observation and the decision in the last
    picture. problem: the last one that was logged, without its numbers."""

    name: str
    calibration: CalibrationFile
    model: CameraModel | None
    kinematics: Kinematics | None
    publisher: Publisher
    infos: Subscription | None = None
    frame_id: str = ""
    shown: tuple[object, ...] = ()
    problem: str = ""


class PreviewPublisher:
    """Previews of one node. `on_decision` and `observe` only store, from any thread."""

    def __init__(self, node: PlainLifecycleNode, clock: Clock) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._robot: RobotSpec | None = None
        self._kinematics: Kinematics | None = None
        self._state_at: Callable[[int], RobotState] | None = None
        self._views: list[CameraView] = []
        self._newest: tuple[ActionChunk, Decision] | None = None
        self._observation: Observation | None = None
        self._preview: tuple[object, ToolPreview] | None = None
        self._shown: tuple[ActionChunk, Decision] | None = None
        self._subscribers = 0
        self._markers = node.create_publisher(
            MarkerArray, "~/preview", 1, event_callbacks=QUIET_PUBLISHER
        )
        group = MutuallyExclusiveCallbackGroup()
        self._group = group
        node.create_timer(PERIOD, self._on_timer, callback_group=group, clock=clock)

    def configure(
        self,
        body: RobotModel,
        cameras: Sequence[CameraParameters],
        state_at: Callable[[int], RobotState],
    ) -> None:
        """Take over a robot and its calibrated cameras. Raises RoboVLMsError.

        state_at: the arm at a stamp, ns; raises ObservationError.
        """
        with self._lock:
            make = body.make_kinematics
            if make is None:
                return
            self._robot = body.robot
            self._state_at = state_at
            self._kinematics = make()
            for camera in cameras:
                if camera.calibration:
                    self._views.append(self._view(camera, body.robot, make))

    def _view(
        self, camera: CameraParameters, robot: RobotSpec, make: Callable[..., Kinematics]
    ) -> CameraView:
        calibration = load_calibration(camera.calibration)
        model = calibration.model()
        if model is None and not camera.info_topic:
            place = f"parameter camera.{camera.name}.calibration = '{camera.calibration}'"
            raise ConfigError(
                f"{place}: it has a pose and no camera_matrix. Add the keys of "
                f"camera_calibration's YAML, or give camera.{camera.name}.info_topic."
            )
        frame = calibration.pose.frame
        moving = None if frame in (None, robot.base_frame) else make(frame)
        publisher = self._node.create_publisher(
            Image, f"~/preview/{camera.name}", QoSProfile(depth=1), event_callbacks=QUIET_PUBLISHER
        )
        view = CameraView(camera.name, calibration, model, moving, publisher)
        if camera.info_topic:
            view.infos = self._node.create_subscription(
                CameraInfo, camera.info_topic, lambda message: self._on_info(view, message),
                NEWEST_ONLY, callback_group=self._group, event_callbacks=QUIET_SUBSCRIPTION,
            )
        return view

    def close(self) -> None:
        """Forget the robot and its cameras; remove the markers."""
        with self._lock:
            if self._robot is not None and self._markers.get_subscription_count() > 0:
                self._markers.publish(MarkerArray(markers=[Marker(action=Marker.DELETEALL)]))
            for view in self._views:
                self._node.destroy_publisher(view.publisher)
                if view.infos is not None:
                    self._node.destroy_subscription(view.infos)
            self._views = []
            self._robot = None
            self._kinematics = None
            self._newest = None
            self._observation = None
            self._preview = None
            self._shown = None
            self._subscribers = 0

    def on_decision(self, chunk: ActionChunk, decision: Decision) -> None:
        """Take the decision on a chunk."""
        self._newest = (chunk, decision)

    def observe(self, observation: Observation) -> None:
        """Take the newest images."""
        if self._views:
            self._observation = observation

    def _on_info(self, view: CameraView, message: CameraInfo) -> None:
        view.frame_id = message.header.frame_id
        try:
            view.model = model_from_info(message, view.calibration.rectified)
        except (ConfigError, ValueError) as error:
            self._complain(view, f"CameraInfo: {error}")

    def _complain(self, view: CameraView, text: str) -> None:
        problem = without_numbers(text)
        if problem != view.problem:
            line = printable(f"no ~/preview/{view.name}: {text}", TEXT_LIMIT)
            self._node.get_logger().warning(line)
        view.problem = problem

    def _on_timer(self) -> None:
        with self._lock:
            if self._robot is None or self._kinematics is None:
                return
            newest = self._newest
            subscribers = self._markers.get_subscription_count()
            # One more subscriber receives the present preview at once.
            if subscribers > self._subscribers or (subscribers and newest is not self._shown):
                self._shown = newest
                self._markers.publish(markers_of(self._robot, self._preview_of(newest)))
            self._subscribers = subscribers
            for view in self._views:
                if view.publisher.get_subscription_count() > 0:
                    self._show(view, newest)

    def _preview_of(self, newest: tuple[ActionChunk, Decision] | None) -> ToolPreview | None:
        if newest is None:
            return None
        assert self._kinematics is not None
        if self._preview is None or self._preview[0] is not newest:
            self._preview = (newest, preview_of(*newest, self._kinematics))
        return self._preview[1]

    def _show(self, view: CameraView, newest: tuple[ActionChunk, Decision] | None) -> None:
        observation = self._observation
        image = None if observation is None else observation.images.get(view.name)
        if image is None or observation is None or view.model is None:
            return
        inputs = (observation, newest)
        if view.shown and all(old is new for old, new in zip(view.shown, inputs, strict=True)):
            return
        view.shown = inputs
        preview = self._preview_of(newest)
        pose = self._pose_of(view, observation)
        if preview is not None and pose is not None:
            try:
                image = draw_preview(image, preview, view.model, pose)
            except ConfigError as error:
                self._complain(view, str(error))
                return
        view.publisher.publish(image_to_message(image, observation.stamp_ns, view.frame_id))

    def _pose_of(self, view: CameraView, observation: Observation) -> NDArray[np.float64] | None:
        """(4, 4) base_T_camera at an observation; None where the arm is not known then."""
        pose = view.calibration.pose.matrix()
        if view.kinematics is None:
            return pose
        assert self._state_at is not None
        try:
            state = observation.state or self._state_at(observation.stamp_ns)
        except ObservationError as error:
            self._complain(view, str(error))
            return None
        return view.kinematics.forward(state.positions) @ pose


def markers_of(robot: RobotSpec, preview: ToolPreview | None) -> MarkerArray:
    """The workspace, the world and the path as markers.

    Their namespaces are `workspace`, `world` and `path`; the path is stamped as its chunk.
    """
    markers = []
    if robot.limits.workspace is not None:
        markers.append(_workspace(robot.limits.workspace, robot.base_frame))
    for number, body in enumerate(robot.world):
        markers.append(_world_body(body, number, robot.base_frame))
    drawn = preview is not None and len(preview.points) > 0
    path = Marker(ns="path", id=0, type=Marker.LINE_STRIP, action=Marker.DELETE)
    end = Marker(ns="path", id=1, type=Marker.SPHERE, action=Marker.DELETE)
    if drawn:
        assert preview is not None
        colour = _colour((*(value / 255 for value in preview.colour), 1.0))
        path.points = [_point(point) for point in preview.points]
        end.pose.position = _point(preview.points[-1])
        for marker, width in ((path, PATH_WIDTH), (end, 3 * PATH_WIDTH)):
            marker.action = Marker.ADD
            marker.color = colour
            marker.scale = Vector3(x=width, y=width, z=width)
            marker.header.stamp = to_time(preview.stamp_ns)
    for marker in (path, end):
        marker.header.frame_id = robot.base_frame
    return MarkerArray(markers=[*markers, path, end])


def _workspace(box: Box, frame: str) -> Marker:
    """The twelve edges of a box."""
    marker = Marker(ns="workspace", type=Marker.LINE_LIST, frame_locked=True)
    marker.header.frame_id = frame
    marker.scale.x = PATH_WIDTH / 2
    marker.color = _colour(WORKSPACE_COLOUR)
    corners = np.array(np.meshgrid(*zip(box.lower, box.upper, strict=True))).reshape(3, -1).T
    for i, first in enumerate(corners):
        for second in corners[i + 1 :]:
            if np.count_nonzero(first != second) == 1:
                marker.points += [_point(first), _point(second)]
    return marker


def _world_body(body: WorldBody, number: int, base_frame: str) -> Marker:
    marker = Marker(ns="world", id=number, frame_locked=True, color=_colour(WORLD_COLOUR))
    marker.header.frame_id = body.frame or base_frame
    rotation = matrix_from_euler(np.array(body.rpy))
    position = np.array(body.position)
    if body.type == "cylinder":
        marker.type = Marker.CYLINDER
        size = (2 * body.size[0], 2 * body.size[0], body.size[1])
    elif body.type == "sphere":
        marker.type = Marker.SPHERE
        size = (2 * body.size[0],) * 3
    else:
        marker.type = Marker.CUBE
        size = (HALF_SPACE_EDGE, HALF_SPACE_EDGE, HALF_SPACE_DEPTH)
        if body.type == "box":
            size = (body.size[0], body.size[1], body.size[2])
        else:
            position = position - rotation[:, 2] * HALF_SPACE_DEPTH / 2
    w, x, y, z = map(float, quaternion_from_matrix(rotation))
    marker.pose = Pose(position=_point(position), orientation=Quaternion(x=x, y=y, z=z, w=w))
    marker.scale = Vector3(x=size[0], y=size[1], z=size[2])
    return marker


def _point(values: NDArray[np.float64]) -> Point:
    return Point(x=float(values[0]), y=float(values[1]), z=float(values[2]))


def _colour(values: Sequence[float]) -> ColorRGBA:
    return ColorRGBA(r=values[0], g=values[1], b=values[2], a=values[3])
