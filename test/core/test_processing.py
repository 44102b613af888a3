"""Images, rotations and the action pipeline.

- Preprocessing refuses what is no (H, W, 3) uint8 image and squashes the rest; constants come out where they should.
- Rotation vectors, quaternions, both Euler forms and matrices convert into each other and back; axes are as named.
- encode is the exact mirror of decode for every combination of normalisation, mask, mu-law, units and polarity.
- CALVIN and twice-normalised SimplerEnv profiles decode to the numbers computed by hand.
- Gripper rules: threshold, polarity, sticky and late close as state machines; their state is a value.
- NaN and wrong shapes are refused, naming step and dimension.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robovlms_ros.config.action import ActionConfig, GripperConfig, NormalizationConfig, UnitsConfig
from robovlms_ros.core import rotations as rot
from robovlms_ros.core.types import ObservationError
from robovlms_ros.inference.action_pipeline import ActionError, ActionPipeline, GripperState, gripper_step
from robovlms_ros.models.image_processor import SIGLIP_MEAN, SIGLIP_STD, ImageProcessor

FEW = settings(deadline=None, max_examples=30)
ANGLES = arrays(np.float64, (4, 3), elements=st.floats(-3.0, 3.0))


def action_config(**changes):
    given = {
        "space": "eef_delta",
        "frame": "base",
        "rotation": "rotation_vector",
        "composition": "chained",
        "step_duration": 0.05,
        "units": UnitsConfig(1.0, 1.0),
        "gripper": GripperConfig(1),
    }
    return ActionConfig(**{**given, **changes})


# Images ---------------------------------------------------------------------------------------------------------------


def test_black_and_white_images():
    processor = ImageProcessor(8, SIGLIP_MEAN, SIGLIP_STD)
    for value, expected in ((0, -1.0), (255, 1.0)):
        pixels = processor(np.full((20, 31, 3), value, np.uint8))
        assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.float32
        torch.testing.assert_close(pixels, torch.full_like(pixels, expected))


def test_channels_keep_their_order():
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 0] = 255
    assert ImageProcessor(2, (0.0,) * 3, (1.0,) * 3)(image).flatten(1).mean(1).tolist() == [1.0, 0.0, 0.0]


def test_views_are_read_as_they_are():
    image = np.random.RandomState(0).randint(0, 255, (9, 12, 4), dtype=np.uint8)[::-1, :, 2::-1]
    torch.testing.assert_close(ImageProcessor(5)(image), ImageProcessor(5)(np.ascontiguousarray(image)))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        None,
    ],
)
def test_what_is_no_image(image):
    with pytest.raises(ObservationError, match="wrist: an array of shape"):
        ImageProcessor(4)(image, "wrist")


# Rotations ------------------------------------------------------------------------------------------------------------


@FEW
@given(ANGLES)
def test_every_form_goes_to_a_matrix_and_back(values):
    for kind in ("rotation_vector", "euler_xyz_extrinsic", "euler_xyz_intrinsic"):
        matrix = rot.matrix_from(values, kind)
        np.testing.assert_allclose(
            matrix @ np.swapaxes(matrix, -1, -2), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(matrix), 1.0)
        np.testing.assert_allclose(rot.matrix_from(rot.values_from(matrix, kind), kind), matrix, atol=1e-7)
    np.testing.assert_allclose(rot.matrix_from_quaternion(rot.quaternion_from_matrix(matrix)), matrix, atol=1e-9)


@FEW
@given(arrays(np.float64, 3, elements=st.floats(-1.5, 1.5)))
def test_rotation_vector_round_trip(vector):
    np.testing.assert_allclose(rot.vector_from_matrix(rot.matrix_from_vector(vector)), vector, atol=1e-9)


def test_axes_and_order():
    quarter = np.pi / 2
    x, z = rot.matrix_from_vector([quarter, 0, 0]), rot.matrix_from_vector([0, 0, quarter])
    np.testing.assert_allclose(x @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(z @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rot.matrix_from_euler([quarter, 0, quarter]), z @ x, atol=1e-12)
    np.testing.assert_allclose(rot.matrix_from_euler([quarter, 0, quarter], intrinsic=True), x @ z, atol=1e-12)


def test_half_turns_and_gimbal_lock():
    for vector in ([np.pi, 0, 0], [0, np.pi, 0], [0, 0, -np.pi]):
        matrix = rot.matrix_from_vector(vector)
        np.testing.assert_allclose(rot.matrix_from_vector(rot.vector_from_matrix(matrix)), matrix, atol=1e-7)
    locked = rot.matrix_from_euler([0.3, np.pi / 2, 0.2])
    np.testing.assert_allclose(rot.matrix_from_euler(rot.euler_from_matrix(locked)), locked, atol=1e-7)


# The pipeline ---------------------------------------------------------------------------------------------------------

BOUND = tuple(np.linspace(-0.9, -0.3, 7))
NORMS = st.lists(
    st.sampled_from(
        [
            NormalizationConfig("min_max", (-0.65,), (0.65,), clip=False),
            NormalizationConfig("quantile", BOUND, tuple(-b for b in BOUND), clip=False),
            NormalizationConfig("min_max", (-2.0,), (1.0,), mask=(True, False) * 3 + (False,), clip=False),
            NormalizationConfig("mean_std", mean=(0.1,) * 7, std=(0.2, 0.5, 1.0, 2.0, 0.1, 3.0, 1.0)),
        ]
    ),
    max_size=3,
)


@FEW
@given(
    arrays(np.float64, (3, 6), elements=st.floats(-1, 1)),
    arrays(np.bool_, 3),
    NORMS,
    st.sampled_from([None, 31.0, 255.0]),
    st.sampled_from([0, 1]),
)
def test_encode_is_the_mirror_of_decode(arm, opened, norms, mu, open_value):
    config = action_config(
        units=UnitsConfig(0.02, 0.05), gripper=GripperConfig(open_value), normalization=tuple(norms), mu_law=mu
    )
    pipeline = ActionPipeline(config)
    logits = np.where(opened == (open_value == 1), 2.0, -2.0)
    decoded = pipeline.decode(arm, logits)
    np.testing.assert_array_equal(decoded.values[:, 6], opened)
    back, labels = pipeline.encode(decoded.values)
    np.testing.assert_allclose(back, arm, atol=1e-6)
    np.testing.assert_array_equal(labels, logits > 0)


def test_calvin_by_hand():
    norm = NormalizationConfig("min_max", (-0.65,), (0.65,), mask=(True,) * 6 + (False,))
    pipeline = ActionPipeline(action_config(units=UnitsConfig(0.02, 0.05), normalization=(norm,)))
    values = pipeline.decode([[1.0, -1.0, 0.5, 1.0, -1.0, 0.0]], [0.1]).values[0]
    np.testing.assert_allclose(values, [0.013, -0.013, 0.0065, 0.0325, -0.0325, 0.0, 1.0])


def test_simpler_normalises_twice_when_told_to():
    low, high = (-0.03,) * 7, (0.05,) * 7
    norms = (NormalizationConfig("min_max", (-0.65,), (0.65,)), NormalizationConfig("quantile", low, high))
    values = ActionPipeline(action_config(normalization=norms)).decode([[1.0] * 6], [0.0]).values[0]
    np.testing.assert_allclose(values[:6], 0.5 * (0.65 + 1) * 0.08 - 0.03)
    assert values[6] == 0.0


def test_encode_clips_to_the_bounds_unless_told_not_to():
    for clip, expected in ((True, 1.0), (False, 2.0)):
        norm = NormalizationConfig("min_max", (-0.5,), (0.5,), clip=clip)
        arm, _ = ActionPipeline(action_config(normalization=(norm,))).encode([[1.0] * 6 + [1.0]])
        np.testing.assert_allclose(arm, expected)


def test_joint_spaces_have_one_unit():
    names = (*(f"joint{i}" for i in range(7)), "gripper")
    config = action_config(space="joint_delta", units=UnitsConfig(joint=0.1), names=names)
    np.testing.assert_allclose(ActionPipeline(config).decode([[1.0] * 7], [1.0]).values[0], [0.1] * 7 + [1.0])


@pytest.mark.parametrize(
    ("arm", "logits", "words"),
    [
        ([[0.0, 0.0, np.nan, 0.0, 0.0, 0.0]], [0.0], ["step 0", "'z'", "not finite"]),
        ([[0.0] * 6], [np.inf], ["'gripper'"]),
        ([[0.0] * 5], [0.0], ["(1, 5)", "(n, 6)"]),
        ([[0.0] * 6], [0.0, 1.0], ["(2,)"]),
    ],
)
def test_unusable_numbers(arm, logits, words):
    with pytest.raises(ActionError) as error:
        ActionPipeline(action_config()).decode(arm, logits)
    assert all(word in str(error.value) for word in words), str(error.value)


# The gripper ----------------------------------------------------------------------------------------------------------


def run(config, labels, state=None):
    held, state = [], state or GripperState()
    for label in labels:
        acting, state = gripper_step(config, label, state)
        held.append(acting)
    return held, state


def test_threshold_and_polarity():
    for open_value, expected in ((1, [0.0, 1.0]), (0, [1.0, 0.0])):
        config = action_config(gripper=GripperConfig(open_value, threshold=0.9))
        logits = [np.log(0.89 / 0.11), np.log(0.91 / 0.09)]
        assert ActionPipeline(config).decode([[0.0] * 6] * 2, logits).values[:, 6].tolist() == expected


def test_late_close_waits():
    config = GripperConfig(1, rule="late_close", late_close_steps=3)
    assert run(config, [1, 1, 0, 1, 1, 1, 1, 0])[0] == [0, 0, 0, 0, 0, 1, 1, 0]


def test_sticky_does_not_see_a_change_during_a_change():
    config = GripperConfig(1, rule="sticky", sticky_steps=3)
    assert run(config, [1, 0, 1, 1, 1, 0, 1])[0] == [1, 0, 0, 0, 0, 0, 0]
    assert run(config, [1, 1, 0, 0, 0, 0, 1])[0] == [1, 1, 0, 0, 0, 0, 1]


def test_a_rule_goes_on_from_its_state():
    config = GripperConfig(1, rule="late_close", late_close_steps=2)
    labels = [1, 0, 1, 1, 1]
    whole, _ = run(config, labels)
    first, state = run(config, labels[:3])
    assert first + run(config, labels[3:], state)[0] == whole


def test_the_pipeline_hands_out_the_state_after_each_step():
    config = action_config(gripper=GripperConfig(1, rule="late_close", late_close_steps=2))
    pipeline = ActionPipeline(config)
    arm = np.zeros((3, 6))
    first = pipeline.decode(arm, [1.0, 1.0, -1.0])
    assert first.values[:, 6].tolist() == [0.0, 1.0, 0.0]
    after_one = pipeline.decode(arm, [1.0, 1.0, 1.0], first.gripper_states[0])
    assert after_one.values[:, 6].tolist() == [1.0, 1.0, 1.0]
