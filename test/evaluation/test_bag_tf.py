"""Bags without joint states, and pictures with motions drawn into them: TF, static transforms and camera_info.

- the tool's motion comes from TF where there are no joint states: a policy that is the motion has no error, between the
  transforms as well; a frame that does not connect is said;
- the camera's place comes from its camera_info and TF, or from the evaluation's YAML: both motions of the worst moments
  lie where a pinhole camera sees them, also for a policy that answers in joints, and in the report's page;
- images of half the width of camera_info are drawn into rightly.
"""

import json

import numpy as np
import pytest

from robovlms_ros.core.rotations import quaternion_from_matrix, vector_from_matrix
from robovlms_ros.core.types import NANOSECONDS, ActionSpec
from robovlms_ros.evaluation.bags.mapping import TopicsConfig
from robovlms_ros.evaluation.metrics.errors import ErrorSums
from robovlms_ros.evaluation.replay.evaluate import evaluate_bag
from robovlms_ros.evaluation.replay.loop import Subject
from robovlms_ros.evaluation.report.build import EvaluationThresholds, build_report
from robovlms_ros.evaluation.report.html import render

TFMESSAGE, INFO = "tf2_msgs/msg/TFMessage", "sensor_msgs/msg/CameraInfo"
FOCAL = 200.0
# Half a metre in front of the base, a metre up, looking straight down, the image's top away from the base.
BASE_T_CAMERA = np.array([[0.0, -1.0, 0.0, 0.5], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0], [0.0, 0.0, 0.0, 1.0]])


def transform(bag, stamp, parent, child, pose):
    w, x, y, z = quaternion_from_matrix(pose[:3, :3])
    return bag.make(
        "geometry_msgs/msg/TransformStamped", header=bag.header(stamp, parent), child_frame_id=child,
        transform=bag.make("geometry_msgs/msg/Transform",
                           translation=bag.make("geometry_msgs/msg/Vector3", x=pose[0, 3], y=pose[1, 3], z=pose[2, 3]),
                           rotation=bag.make("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)))


def write_tf(bag, topic, stamp, *transforms):
    bag.write(topic, TFMESSAGE, stamp, bag.make(TFMESSAGE, transforms=list(transforms)))


def write_info(tools, bag, stamp, width):
    zero = np.zeros(5)
    k = np.array([FOCAL, 0, width / 2, 0, FOCAL, width / 2, 0, 0, 1.0])
    region = bag.make("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    bag.write("/static/camera_info", INFO, stamp, bag.make(
        INFO, header=bag.header(stamp, "camera"), height=width, width=width, distortion_model="plumb_bob", d=zero, k=k,
        r=np.eye(3).ravel(), p=np.zeros(12), binning_x=0, binning_y=0, roi=region))


def write(tools, robot, kinematics, path, joints=True, tool=False, info=32, connected=True):
    """3 s of the known motion: TF of a camera on a table beside the base, of the tool at 100 Hz where asked for."""
    table_T_camera = np.eye(4)
    table_T_camera[:3, 3] = 0.5, 0.0, 1.0
    camera_T_optical = np.linalg.inv(table_T_camera) @ BASE_T_CAMERA
    with tools.BagWriter(path) as bag:
        bag.instruction("go", tools.BEGIN_NS)
        write_tf(bag, "/tf_static", tools.BEGIN_NS,
                 transform(bag, 0, robot.base_frame if connected else "elsewhere", "table", np.eye(4)),
                 transform(bag, 0, "table", "camera_mount", table_T_camera),
                 transform(bag, 0, "camera_mount", "camera", camera_T_optical))
        for tick in range(300):
            now = tools.BEGIN_NS + tick * NANOSECONDS // 100
            if joints:
                bag.joints(now)
            if tool:
                write_tf(bag, "/tf", now, transform(bag, now, robot.base_frame, robot.eef_frame,
                                                    kinematics.forward(tools.motion(now))))
            if tick % 5 == 1:
                if info:
                    write_info(tools, bag, now, info)
                bag.image("/static/image_raw", now - 5_000_000, now)
    return path


def eef_follow(tools, kinematics, shift=0.0):
    spec = ActionSpec("eef_pose", "base", "rotation_vector", "chained", tools.STEP)

    def value(stamp, k):
        pose = kinematics.forward(tools.motion(stamp + round(((k + 1) * tools.STEP + shift) * NANOSECONDS)))
        return np.concatenate([pose[:3, 3], vector_from_matrix(pose[:3, :3]), [1.0]])

    return tools.FakeSession(value, spec)


def test_the_tool_moves_as_tf_says(tools, setting, robot, kinematics, tmp_path):
    path = write(tools, robot, kinematics, tmp_path / "bag", joints=False, tool=True, info=0)
    session = eef_follow(tools, kinematics)
    result = evaluate_bag(path, [Subject("same", lambda: session)], setting(("static",)))
    assert "no recorded commands: predictions are compared with the motion that followed (TF)" in result["topics"]
    part = result["results"]["same"]
    table = ErrorSums.from_json(part["sums"]).table(tuple(part["names"]))
    assert part["scored"] > 50 and table["distance"] < 2e-5 and table["angle"] < 2e-5
    for observation in session.seen:
        expected = kinematics.forward(tools.motion(observation.stamp_ns))
        np.testing.assert_allclose(observation.state.eef_pose, expected, atol=2e-5)


def test_a_tool_that_tf_does_not_know_is_said(tools, setting, robot, kinematics, tmp_path):
    path = write(tools, robot, kinematics, tmp_path / "bag", joints=False, info=0)
    session = eef_follow(tools, kinematics)
    result = evaluate_bag(path, [Subject("same", lambda: session)], setting(("static",)))
    words = f"TF has no transform from {robot.base_frame} to {robot.eef_frame} yet"
    assert result["images"] == 0 and any(words in note for note in result["notes"]), result["notes"]


def pixels(points):
    """(n, 2): where the camera above sees points of the base frame; written down anew."""
    along, across, height = points[:, 0] - 0.5, points[:, 1], 1.0 - points[:, 2]
    return np.column_stack([16.0 - FOCAL * across / height, 16.0 - FOCAL * along / height])


@pytest.mark.parametrize("source", ["bag", "half width", "yaml"])
@pytest.mark.parametrize("space", ["poses", "joints"])
def test_both_motions_are_drawn_where_the_camera_sees_them(tools, setting, robot, kinematics, tmp_path, source, space):
    path = write(tools, robot, kinematics, tmp_path / "bag", info={"bag": 32, "half width": 64, "yaml": 0}[source])
    given = {}
    if source == "yaml":
        camera = {"focal": (FOCAL, FOCAL), "centre": (16.0, 16.0), "base_T_camera": tuple(BASE_T_CAMERA.ravel())}
        given["calibration"] = {"static": calibration(camera)}
    session = eef_follow(tools, kinematics, 0.2) if space == "poses" else tools.FakeSession(tools.follow(4))
    result = evaluate_bag(path, [Subject("late", lambda: session)],
                          setting(("static",), topics=TopicsConfig(commands="motion"), **given))
    moment = json.loads(json.dumps(result["results"]["late"]["worst"][0]))
    assert moment["size"] == [32, 32]
    half = 0.5 if source == "half width" else 1.0
    for name, shift in (("recorded", 0.0), ("predicted", 0.2)):
        times = [moment["stamp_ns"] + round((k * tools.STEP + (shift if k else 0.0)) * NANOSECONDS)
                 for k in range(len(moment["pixels"][name]))]
        points = np.array([kinematics.forward(tools.motion(t))[:3, 3] for t in times])
        expected = 16.0 + (pixels(points) - 16.0) * half
        np.testing.assert_allclose(moment["pixels"][name], expected, atol=0.1)
    page = render(build_report([result], EvaluationThresholds()))
    assert page.count("<polyline") > 2 and 'viewBox="0 0 32 32"' in page


def calibration(values):
    from robovlms_ros.evaluation.replay.calibration import Calibration

    return Calibration(**values)


def test_a_camera_that_tf_does_not_place_is_not_drawn_into(tools, setting, robot, kinematics, tmp_path):
    path = write(tools, robot, kinematics, tmp_path / "bag", connected=False)
    result = evaluate_bag(path, [Subject("same", lambda: eef_follow(tools, kinematics, 0.2))], setting(("static",)))
    assert "pixels" not in result["results"]["same"]["worst"][0]
    assert any(f"TF does not connect {robot.base_frame} with the camera's frame 'camera'" in note
               for note in result["notes"]), result["notes"]
