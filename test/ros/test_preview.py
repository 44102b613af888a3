"""~/preview and ~/preview/NAME through DDS.

- The path equals forward kinematics along ~/planned_trajectory; workspace and world are the
  robot's.
- A refused chunk is red. A subscriber that comes late receives the present preview.
- The camera's picture shows the path at its projection, by the YAML or by CameraInfo.
- Nothing is computed without a subscriber.
- A calibration that lacks something is refused at configure.
"""

import numpy as np
import pytest

pytestmark = pytest.mark.ros

MOVE = [0.0, 0.004, 0.0, 0.0, 0.0, 0.0]
FAR = [0.0, 0.0, -0.01, 0.0, 0.0, 0.0]  # through the table
AT_ONCE = {"speed_scaling_ramp": 0.0}


def points_of(marker):
    return np.array([[p.x, p.y, p.z] for p in marker.points])


def named(array, namespace):
    return [marker for marker in array.markers if marker.ns == namespace]


def stamp_of(message):
    return (message.header.stamp.sec, message.header.stamp.nanosec)


@pytest.fixture
def subscribe(ros):
    """A function that subscribes a graph's listener and returns the list that fills."""

    def begin(graph, kind, name):
        received = []
        graph.listener.create_subscription(kind, name, received.append, 50)
        return received

    return begin


def path_by_kinematics(message, robot):
    """Tool positions along a JointTrajectory, every 25 ms at most."""
    from robovlms_ros.control.kinematics import Kinematics
    from robovlms_ros.control.trajectory import Spline
    from robovlms_ros.ros.messages import from_time

    times_ns = np.array([from_time(point.time_from_start) for point in message.points])
    positions = np.array([point.positions for point in message.points])
    velocities = np.array([point.velocities for point in message.points])
    length = times_ns[-1] - times_ns[0]
    count = -(-length // 25_000_000)
    at = np.linspace(times_ns[0], times_ns[-1], count + 1).astype(np.int64)
    kinematics = Kinematics.for_robot(robot)
    sampled = Spline(times_ns, positions, velocities)(at)[0]
    return np.array([kinematics.forward(q)[:3, 3] for q in sampled])


def test_path_workspace_and_world(make_graph, subscribe):
    from fake_policies import Injected, constant
    from trajectory_msgs.msg import JointTrajectory
    from visualization_msgs.msg import Marker, MarkerArray

    from robovlms_ros.msg import ChunkVerdict

    graph = make_graph(confirm="each_chunk", **AT_ONCE)
    robot = graph.arm.robot
    previews = subscribe(graph, MarkerArray, "vla/preview")
    planned = subscribe(graph, JointTrajectory, "vla/planned_trajectory")
    verdicts = subscribe(graph, ChunkVerdict, "vla/verdict")
    graph.activate()
    graph.wait_for(lambda: previews, "the world before any chunk")
    first = previews[-1]
    assert all(marker.action == Marker.DELETE for marker in named(first, "path"))
    corners = points_of(named(first, "workspace")[0])
    assert len(corners) == 24
    np.testing.assert_allclose(corners.min(axis=0), robot.limits.workspace.lower)
    np.testing.assert_allclose(corners.max(axis=0), robot.limits.workspace.upper)
    names = [body.name for body in robot.world]
    world = dict(zip(names, named(first, "world"), strict=True))
    table = world["table"]
    assert table.type == Marker.CUBE
    assert (table.scale.x, table.scale.y, table.scale.z) == (0.8, 0.8, 0.05)
    assert table.pose.position.z == -0.137
    assert world["pedestal"].scale.x == 0.36
    assert {marker.header.frame_id for marker in first.markers} == {robot.base_frame}

    with Injected(graph, constant(MOVE)):
        graph.listener.instruct("lift the red cube")
        graph.listener.wait_state("waiting", "waits for ~/confirm")
        wanted = graph.wait_for
        wanted(lambda: planned and verdicts, "the plan")
        stamp = stamp_of(verdicts[-1])
        wanted(lambda: stamp_of(named(previews[-1], "path")[0]) == stamp, "its preview")
    path = named(previews[-1], "path")[0]
    expected = path_by_kinematics(planned[-1], robot)
    np.testing.assert_allclose(points_of(path), expected, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.01
    assert path.color.g > path.color.r

    late = subscribe(graph, MarkerArray, "vla/preview")
    wanted(lambda: late, "the present preview")
    at = stamp_of(named(late[0], "path")[0])
    wanted(lambda: any(stamp_of(named(array, "path")[0]) == at for array in previews), "the same")


def test_a_refused_chunk_is_red(make_graph, subscribe):
    from fake_policies import Injected, constant
    from visualization_msgs.msg import MarkerArray

    graph = make_graph(dry_run=True, **AT_ONCE)
    previews = subscribe(graph, MarkerArray, "vla/preview")
    graph.activate()
    with Injected(graph, constant(FAR)):
        graph.listener.instruct("lift the red cube")

        def red():
            paths = named(previews[-1], "path") if previews else []
            return paths and paths[0].color.r > paths[0].color.g

        graph.wait_for(red, lambda: f"a red path, it is {graph.listener.said()}", deadline=20.0)


@pytest.mark.parametrize("source", ["yaml", "info"])
def test_picture_of_the_path(make_graph, subscribe, source, tmp_path):
    import yaml
    from fake_policies import Injected, constant
    from sensor_msgs.msg import CameraInfo, Image
    from visualization_msgs.msg import MarkerArray

    from robovlms_ros.control.preview import COLOURS
    from robovlms_ros.core.resources import share_directory
    from robovlms_ros.observations.camera_model import load_calibration

    calibration = load_calibration("panda_static")
    given = {
        "camera__static__calibration": "panda_static",
        "camera__wrist__calibration": "panda_wrist",
    }
    if source == "info":
        shipped = share_directory() / "config" / "cameras" / "panda_static.yaml"
        pose = {"pose": yaml.safe_load(shipped.read_text(encoding="utf-8"))["pose"]}
        path = tmp_path / "pose.yaml"
        path.write_text(yaml.safe_dump(pose), encoding="utf-8")
        given = {
            "camera__static__calibration": str(path),
            "camera__static__info_topic": "static/camera_info",
        }
    graph = make_graph(dry_run=True, **AT_ONCE, **given)
    pictures = subscribe(graph, Image, "vla/preview/static")
    wrist = subscribe(graph, Image, "vla/preview/wrist")
    previews = subscribe(graph, MarkerArray, "vla/preview")
    graph.arm.quirks["static"] = grey
    graph.activate()
    if source == "info":
        camera = calibration.model()
        info = CameraInfo(
            width=96, height=96, distortion_model="plumb_bob", d=[0.0] * 5,
            k=camera.matrix.ravel().tolist(),
        )
        info.header.frame_id = "static_optical"
        publisher = graph.listener.create_publisher(CameraInfo, "static/camera_info", 1)
        graph.listener.create_timer(0.2, lambda: publisher.publish(info))
    with Injected(graph, constant(MOVE)):
        graph.listener.instruct("lift the red cube")

        def coloured():
            if not pictures:
                return ()
            image = np.frombuffer(bytes(pictures[-1].data), np.uint8).reshape(32, 32, 3)
            return np.argwhere((image == COLOURS["pass"]).all(axis=2))

        graph.wait_for(lambda: len(coloured()) > 0, "the path", deadline=20.0)
        drawn = coloured()
        path = points_of(named(previews[-1], "path")[0])
    pose = calibration.pose.matrix()
    local = (path - pose[:3, 3]) @ pose[:3, :3]
    pixels, seen = calibration.model().scaled(32, 32).project(local)
    assert seen.all()
    distance = np.linalg.norm(drawn[:, None, ::-1] - pixels[None], axis=2).min(axis=1)
    assert distance.max() < 6
    assert pictures[-1].header.frame_id == ("static_optical" if source == "info" else "")
    if source == "yaml":
        graph.wait_for(lambda: wrist, "the moving camera's picture")


def grey(message):
    message.data = type(message.data)("B", bytes([128]) * len(message.data))
    return message


def test_nothing_is_computed_without_a_subscriber(make_graph, monkeypatch):
    from robovlms_ros.ros import preview_publisher

    called = []
    for name in ("preview_of", "draw_preview", "markers_of"):
        monkeypatch.setattr(preview_publisher, name, lambda *_, name=name: called.append(name))
    graph = make_graph(dry_run=True, camera__static__calibration="panda_static")
    graph.activate()
    graph.listener.instruct("lift the red cube")
    graph.wait_for(lambda: len(graph.listener.chunks) > 5, "chunks")
    graph.is_quiet(0.5)
    assert not called


@pytest.mark.parametrize(("values", "message"), [
    ({"calibration": "POSE"}, "it has a pose and no camera_matrix"),
    ({"calibration": "missing"}, "panda_static, panda_wrist"),
    ({"info_topic": "static/camera_info"}, "no effect without"),
    ({"calibration": "POSE", "info_topic": "info"}, "nowhere"),
])
def test_refused_at_configure(make_graph, tmp_path, values, message):
    from rclpy.lifecycle import TransitionCallbackReturn

    path = tmp_path / "pose.yaml"
    text = "pose: {position: [0, 0, 1], rpy: [0, 0, 0], frame: nowhere}\n"
    path.write_text(text, encoding="utf-8")
    given = {
        f"camera__static__{name}": str(path) if value == "POSE" else value
        for name, value in values.items()
    }
    graph = make_graph(**given)
    assert graph.node.trigger_configure() != TransitionCallbackReturn.SUCCESS
    listener = graph.listener
    graph.wait_for(lambda: message in listener.status.last_stop, listener.said)
