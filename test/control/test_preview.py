"""The preview of a chunk, and cameras.

- The path equals forward kinematics by another implementation, along the commanded curve.
- A refused chunk shows its plan; one that could not be planned shows nothing.
- Every lens model projects as OpenCV does; points behind the camera and far outside are not drawn.
- The drawing marks the projected pixels in the verdict's colour, and no others.
- The shipped calibrations are those of the simulated cameras.
"""

import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

from robovlms_ros.control.executor import Decision
from robovlms_ros.control.kinematics import Kinematics
from robovlms_ros.control.preview import COLOURS, ToolPreview, draw_preview, preview_of
from robovlms_ros.control.robot import load_robot
from robovlms_ros.control.safety_gate import Verdict
from robovlms_ros.core.rotations import matrix_from_euler, matrix_from_vector
from robovlms_ros.core.schema import ConfigError
from robovlms_ros.core.types import JointPlan, TrajectoryCommand
from robovlms_ros.observations.camera_model import (
    CameraModel,
    load_calibration,
    model_from_info,
)

MATRIX = np.array([[300.0, 0.0, 160.0], [0.0, 310.0, 120.0], [0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def panda():
    return load_robot("panda")


@pytest.fixture(scope="module")
def kinematics(panda):
    return Kinematics.for_robot(panda)


def forward_by_urdf(panda, positions, frame=None):
    """(4, 4) base_T_frame by a walk along the URDF's joints."""
    joints = ElementTree.parse(panda.description_path).getroot().findall("joint")
    by_child = {joint.find("child").get("link"): joint for joint in joints}
    angles = dict(zip(panda.joints, positions, strict=True))
    link = frame or panda.eef_frame
    pose = np.eye(4)
    while link in by_child:
        joint = by_child[link]
        origin = joint.find("origin")
        local = np.eye(4)
        local[:3, 3] = [float(value) for value in origin.get("xyz").split()]
        local[:3, :3] = matrix_from_euler([float(value) for value in origin.get("rpy").split()])
        if joint.get("type") == "revolute":
            axis = np.array([float(value) for value in joint.find("axis").get("xyz").split()])
            local[:3, :3] = local[:3, :3] @ matrix_from_vector(axis * angles[joint.get("name")])
        pose = local @ pose
        link = joint.find("parent").get("link")
    return pose


def hermite(begin, end, first, last, seconds, t):
    """Position of a cubic segment at t seconds from its begin."""
    s = t / seconds
    return (
        (2 * s**3 - 3 * s**2 + 1) * begin
        + (s**3 - 2 * s**2 + s) * seconds * first
        + (3 * s**2 - 2 * s**3) * end
        + (s**3 - s**2) * seconds * last
    )


def chunk():
    return SimpleNamespace(stamp_ns=7)


def test_path_equals_forward_kinematics(panda, kinematics):
    rng = np.random.default_rng(0)
    home = np.array(panda.home)
    positions = home + np.cumsum(rng.normal(0, 0.05, (4, 7)), axis=0)
    velocities = rng.normal(0, 0.2, (4, 7))
    velocities[-1] = 0.0
    times = np.array([0.0, 0.1, 0.2, 0.3])
    command = TrajectoryCommand(10**9, panda.joints, times, positions, velocities)
    decision = Decision(command, None, Verdict("clamp", "slowed down", command), None)
    preview = preview_of(chunk(), decision, kinematics)
    assert (preview.stamp_ns, preview.verdict, preview.reason) == (7, "clamp", "slowed down")
    assert preview.colour == COLOURS["clamp"]
    expected = []
    for t in np.arange(13) * 0.025:
        i = min(int(t / 0.1 + 1e-9), 2)
        ends = (positions[i], positions[i + 1], velocities[i], velocities[i + 1])
        q = hermite(*ends, 0.1, t - times[i])
        expected.append(forward_by_urdf(panda, q)[:3, 3])
    np.testing.assert_allclose(preview.points, expected, atol=1e-6)


def test_refused_chunk_shows_its_plan(panda, kinematics):
    positions = np.array(panda.home) + np.linspace(0, 0.1, 5)[:, None]
    plan = JointPlan(np.arange(1, 6) * 10**8, positions, np.zeros_like(positions))
    refused = Verdict("refuse", "the tool would leave the workspace", None)
    preview = preview_of(chunk(), Decision(None, None, refused, plan), kinematics)
    expected = [forward_by_urdf(panda, q)[:3, 3] for q in positions]
    np.testing.assert_allclose(preview.points, expected, atol=1e-6)
    unplanned = preview_of(chunk(), Decision(None, None, refused, None), kinematics)
    assert unplanned.points.shape == (0, 3)


@pytest.mark.parametrize(("model", "coefficients"), [
    ("plumb_bob", ()),
    ("plumb_bob", (-0.28, 0.07, 0.001, -0.002, 0.01)),
    ("plumb_bob", (-0.28, 0.07, 0.001, -0.002)),
    ("rational_polynomial", (0.2, -0.1, 0.001, -0.0005, 0.02, 0.3, -0.08, 0.01)),
    ("equidistant", (0.02, -0.01, 0.003, -0.001)),
])
def test_projection_equals_opencv(model, coefficients):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    rng = np.random.default_rng(1)
    points = rng.uniform((-0.4, -0.3, 0.8), (0.4, 0.3, 2.0), (50, 3))
    pixels, seen = CameraModel(320, 240, MATRIX, model, coefficients).project(points)
    zero = np.zeros(3)
    if model == "equidistant":
        given = np.array(coefficients)
        expected, _ = cv2.fisheye.projectPoints(points[:, None], zero, zero, MATRIX, given)
    else:
        expected, _ = cv2.projectPoints(points, zero, zero, MATRIX, np.array(coefficients))
    assert seen.all()
    np.testing.assert_allclose(pixels, expected.reshape(-1, 2), atol=1e-6)


def test_points_behind_and_far_outside_are_not_seen():
    camera = CameraModel(320, 240, MATRIX, "plumb_bob", (-0.3, 0.1, 0.0, 0.0, 0.0))
    points = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [5.0, 0.0, 1.0]])
    assert camera.project(points)[1].tolist() == [True, False, False, False]


def test_scaled_image_keeps_the_ray():
    camera = CameraModel(320, 240, MATRIX)
    point = np.array([[0.1, -0.05, 1.0]])
    small = camera.project(point)[0]
    large = camera.scaled(640, 480).project(point)[0]
    np.testing.assert_allclose((large + 0.5) / 2, small + 0.5)
    with pytest.raises(ConfigError, match="320 x 320 pixels, the calibration 320 x 240"):
        camera.scaled(320, 320)


def test_drawing_marks_the_projected_path():
    camera = CameraModel(320, 240, MATRIX)
    image = np.full((240, 320, 3), 128, np.uint8)
    points = np.stack([np.linspace(-0.2, 0.2, 9), np.full(9, 0.1), np.full(9, 1.0)], axis=1)
    pose = np.eye(4)
    pose[:3, 3] = (0.3, 0.2, 0.1)
    preview = ToolPreview(0, "pass", "", points + pose[:3, 3])
    drawn = draw_preview(image, preview, camera, pose)
    assert (image == 128).all()
    coloured = np.argwhere((drawn == COLOURS["pass"]).all(axis=2) & (np.arange(240)[:, None] > 40))
    pixels = camera.project(points)[0]
    rows, columns = coloured.T
    assert abs(columns.min() - pixels[0, 0]) <= 2
    assert abs(columns.max() - pixels[-1, 0]) <= 8
    assert np.abs(rows - pixels[0, 1]).max() <= 8
    nothing = draw_preview(image, ToolPreview(0, "refuse", "why", np.empty((0, 3))), camera, pose)
    assert (nothing[40:] == 128).all()
    assert (nothing == COLOURS["refuse"]).all(axis=2).any()


def test_camera_info_and_errors(tmp_path):
    zeros = SimpleNamespace(
        width=320, height=240, k=[0.0] * 9, p=[0.0] * 12, d=[], distortion_model=""
    )
    with pytest.raises(ConfigError, match="calibrate the camera"):
        model_from_info(zeros, rectified=False)
    given = SimpleNamespace(
        width=320, height=240, k=MATRIX.ravel().tolist(), d=[0.1, 0.0, 0.0, 0.0, 0.0],
        p=np.hstack([2 * MATRIX, np.zeros((3, 1))]).ravel().tolist(), distortion_model="plumb_bob",
    )
    assert model_from_info(given, rectified=False).coefficients[0] == 0.1
    rectified = model_from_info(given, rectified=True)
    assert rectified.matrix[0, 0] == 600.0
    assert rectified.coefficients == ()
    path = tmp_path / "camera.yaml"
    pose = "pose: {position: [0, 0, 1], rpy: [0, 0, 0]}\n"
    for text, message in (
        ("image_width: 3\n", "'pose' is missing"),
        (pose + "image_widht: 3\n", "Did you mean 'image_width'"),
        (pose + "image_width: 3\n", "give all three or none"),
        ("pose: {position: [0, 0], rpy: [0, 0, 0]}\n", "3 finite numbers"),
        (pose + "image_width: 3\nimage_height: 2\ncamera_matrix: {rows: 3, cols: 3, data: [1]}\n",
         "rows x cols = 9 numbers"),
        (pose + "distortion_model: ideal\n", None),
    ):
        path.write_text(text, encoding="utf-8")
        if message is None:
            assert load_calibration(path).model() is None
            continue
        with pytest.raises(ConfigError, match=message) as error:
            load_calibration(path)
        assert str(error.value).startswith(str(path))
    with pytest.raises(Exception, match="panda_static, panda_wrist"):
        load_calibration("nowhere")


@pytest.mark.parametrize("name", ["static", "wrist"])
def test_shipped_calibrations_are_the_simulated_cameras(panda, name):
    mujoco = pytest.importorskip("mujoco", reason="the simulator is not installed")
    pytest.importorskip("robosuite", reason="the simulator is not installed")
    from robovlms_ros.sim.scene import BASE_POSITION
    from robovlms_ros.sim.world import CAMERAS, SimWorld

    world = SimWorld(3)
    model = world._model
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERAS[name])
    expected = np.eye(4)
    expected[:3, :3] = world._data.cam_xmat[number].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    expected[:3, 3] = world._data.cam_xpos[number] - BASE_POSITION
    calibration = load_calibration(f"panda_{name}")
    pose = calibration.pose.matrix()
    if calibration.pose.frame is not None:
        positions = world.joint_state().positions
        pose = forward_by_urdf(panda, positions, calibration.pose.frame) @ pose
    np.testing.assert_allclose(pose, expected, atol=1e-5)
    camera = calibration.model()
    field = 2 * np.degrees(np.arctan(camera.height / 2 / camera.matrix[1, 1]))
    assert field == pytest.approx(model.cam_fovy[number])
