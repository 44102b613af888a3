"""Images: every supported encoding becomes the RGB that OpenCV makes of it, without needless copies; what a message
claims wrongly is refused with its numbers: encodings, sizes, steps, truncation, JPEGs that do not decode.
"""

import io
import sys
from types import SimpleNamespace
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from robovlms_ros.core.types import ObservationError
from robovlms_ros.observations.images import (
    AS_SENT,
    PIXEL_BYTES,
    Encoding,
    convert_with_numpy,
    image_to_rgb,
    to_rgb,
)
from robovlms_ros.ros.observation_subscriber import pick_converter

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "yuv422_yuy2": 2, "yuyv": 2,
            "yuv422": 2, "uyvy": 2}
BAYER = {"bayer_rggb8": cv2.COLOR_BayerRGGB2RGB, "bayer_bggr8": cv2.COLOR_BayerBGGR2RGB,
         "bayer_gbrg8": cv2.COLOR_BayerGBRG2RGB, "bayer_grbg8": cv2.COLOR_BayerGRBG2RGB}


def make_image(encoding, width=8, height=6, padding=0, seed=0):
    rng = np.random.default_rng(seed)
    row = width * CHANNELS.get(encoding, 2)
    data = rng.integers(0, 256, (height, row + padding), dtype=np.uint8)
    message = SimpleNamespace(width=width, height=height, encoding=encoding, step=row + padding, is_bigendian=0,
                              data=data.tobytes())
    return message, data[:, :row].reshape(height, width, -1)


def compressed(data, format="jpeg"):
    return SimpleNamespace(format=format, data=data)


def jpeg(pixels, kind="JPEG"):
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_equals_opencv(encoding, padding):
    codes = {"bgr8": cv2.COLOR_BGR2RGB, "rgba8": cv2.COLOR_RGBA2RGB, "bgra8": cv2.COLOR_BGRA2RGB,
             "mono8": cv2.COLOR_GRAY2RGB, "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2, "yuyv": cv2.COLOR_YUV2RGB_YUY2,
             "yuv422": cv2.COLOR_YUV2RGB_UYVY, "uyvy": cv2.COLOR_YUV2RGB_UYVY}
    message, pixels = make_image(encoding, 64, 48, padding)
    wanted = pixels if encoding == "rgb8" else cv2.cvtColor(np.ascontiguousarray(pixels), codes[encoding])
    rgb = image_to_rgb(message)
    np.testing.assert_array_equal(rgb, wanted)
    assert rgb.flags.c_contiguous and not rgb.flags.writeable


@pytest.mark.parametrize("size", [(64, 48), (9, 7), (2, 2)])
@pytest.mark.parametrize("encoding", BAYER)
def test_bayer_equals_opencv_inside_the_border(encoding, size):
    width, height = size
    message, _ = make_image("mono8", width, height, padding=3)
    message.encoding = encoding
    mosaic = np.frombuffer(message.data, np.uint8).reshape(height, -1)[:, :width].copy()
    rgb = image_to_rgb(message)
    assert rgb.shape == (height, width, 3)
    if min(size) > 2:
        wanted = cv2.cvtColor(mosaic, BAYER[encoding])
        np.testing.assert_array_equal(rgb[1:-1, 1:-1], wanted[1:-1, 1:-1])


def test_bayer_border_by_hand():
    mosaic = np.array([[100, 10, 100, 10], [20, 200, 20, 200]] * 2, np.uint8)
    message = SimpleNamespace(width=4, height=4, encoding="bayer_rggb8", step=4, data=mosaic.tobytes())
    rgb = image_to_rgb(message)
    assert rgb[..., 0].tolist() == [[100] * 4] * 4 and rgb[..., 2].tolist() == [[200] * 4] * 4
    assert rgb[..., 1].tolist() == [[15, 10, 15, 10], [20, 15, 20, 15]] * 2


def test_the_encoding_of_the_parameter_stands_for_that_of_the_message():
    message, pixels = make_image("bgr8", 4, 2)
    message.encoding = "8UC3"
    np.testing.assert_array_equal(to_rgb(message, encoding="bgr8"), pixels[..., ::-1])
    np.testing.assert_array_equal(to_rgb(message, encoding="rgb8"), pixels)
    with pytest.raises(ObservationError, match="set `camera.NAME.encoding` to bgr8 or rgb8"):
        to_rgb(message)


def test_the_parameters_values_are_the_encodings():
    assert get_args(Encoding) == (AS_SENT, *PIXEL_BYTES)


def test_a_long_encoding_is_cut_and_escaped():
    message, _ = make_image("rgb8")
    message.encoding = "\x1b[2J\n" + "x" * 1_000_000
    with pytest.raises(ObservationError) as caught:
        to_rgb(message)
    text = str(caught.value)
    assert len(text) < 500 and "\x1b" not in text and "\n" not in text
    assert "(1000005 characters)" in text


def test_rgb8_without_padding_is_not_copied():
    message, _ = make_image("rgb8")
    assert np.shares_memory(image_to_rgb(message), np.frombuffer(message.data, np.uint8))


def test_a_node_converts_with_cv_bridge_where_it_works(monkeypatch):
    module = SimpleNamespace(cvtColor2=lambda pixels, *_: np.full((*pixels.shape[:2], 3), 7, np.uint8))
    for name in ("cv_bridge", "cv_bridge.boost"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cv_bridge.boost.cv_bridge_boost", module)
    convert = pick_converter.__wrapped__()
    assert (image_to_rgb(make_image("mono8")[0], convert) == 7).all()
    module.cvtColor2 = lambda *_: 1 / 0  # as an apt cv_bridge beside the wrong NumPy
    assert pick_converter.__wrapped__() is convert_with_numpy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoding": "16UC1"}, "depth image"),
        ({"encoding": "bayer_rggb16"}, "Allowed: rgb8"),
        ({"width": 0}, "empty"),
        ({"height": 0}, "empty"),
        ({"step": 8 * 3 - 1}, "shorter than a row"),
        ({"data": b"\0" * (8 * 3 * 6 - 1)}, "truncated"),
        ({"data": b""}, "truncated"),
        ({"encoding": "rgba8"}, "shorter than a row"),
    ],
)
def test_refused(change, says):
    message, _ = make_image("rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ObservationError, match=says):
        image_to_rgb(message)


LIES = [("mono8", "rgb8"), ("rgb8", "rgba8"), ("rgba8", "rgb8"), ("rgb8", "mono8")]


@pytest.mark.parametrize(("claimed", "is_really"), LIES)
def test_lying_encoding_is_refused(claimed, is_really):
    message, _ = make_image(is_really, 640, 480)
    message.encoding = claimed
    with pytest.raises(ObservationError, match=r"(?i)encoding"):
        image_to_rgb(message)


def test_compressed_png_is_exact_and_jpeg_is_what_opencv_decodes():
    smooth = np.add.outer(np.arange(48), np.arange(64))[..., None] * np.array([1, 2, 0]) % 256
    pixels = smooth.astype(np.uint8)
    np.testing.assert_array_equal(to_rgb(compressed(jpeg(pixels, "PNG"), "rgb8; png compressed bgr8")), pixels)
    data = jpeg(pixels)
    wanted = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert np.abs(to_rgb(compressed(data)).astype(int) - wanted).max() <= 2


def test_channels_that_were_stored_swapped_are_swapped_back():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[..., 0] = 200
    assert to_rgb(compressed(jpeg(pixels, "PNG"), "rgb8; png compressed rgb8"))[0, 0].tolist() == [0, 0, 200]


@pytest.mark.parametrize(
    ("data", "format", "says"),
    [
        (b"", "jpeg", "no data"),
        (b"not an image", "jpeg", "does not decode"),
        (jpeg(np.full((64, 64, 3), 99, np.uint8))[:200], "jpeg", "does not decode"),
        (jpeg(np.full((64, 64, 3), 99, np.uint8))[:-200], "jpeg", "does not decode"),
        (jpeg(np.full((64, 64), 99, np.uint16), "PNG"), "16UC1; png compressed", "16 bit"),
        (b"\0", "16UC1; compressedDepth png", "depth image"),
    ],
)
def test_compressed_refused(data, format, says):
    with pytest.raises(ObservationError, match=says):
        to_rgb(compressed(data, format))
