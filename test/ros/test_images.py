"""Images: every supported encoding becomes the RGB that OpenCV makes of it, without needless copies; what a message
claims wrongly is refused with its numbers: encodings, sizes, steps, truncation, JPEGs that do not decode.
"""

import io
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from robovlms_ros.conversions.images import convert_with_numpy, image_to_rgb, to_rgb
from robovlms_ros.ros.bridge import pick_converter
from robovlms_ros.types import ObservationError

CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "yuv422_yuy2": 2}


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
             "mono8": cv2.COLOR_GRAY2RGB, "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2}
    message, pixels = make_image(encoding, 64, 48, padding)
    wanted = pixels if encoding == "rgb8" else cv2.cvtColor(np.ascontiguousarray(pixels), codes[encoding])
    rgb = image_to_rgb(message)
    np.testing.assert_array_equal(rgb, wanted)
    assert rgb.flags.c_contiguous and not rgb.flags.writeable


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
        ({"encoding": "bayer_rggb8"}, "Allowed: rgb8"),
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
