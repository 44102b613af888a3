"""sensor_msgs/Image and CompressedImage into (H, W, 3) uint8 RGB.

Messages are duck-typed: rclpy's and a bag reader's serve alike. A message is checked against its
own claims before a pixel is touched, and an image is copied at most once (rgb8 without padding: not
at all). Only NumPy and Pillow are needed; a node that has cv_bridge passes its colour conversion
in.

The conversions follow sensor_msgs/image_encodings: `yuv422` and `uyvy` are bytes U Y0 V Y1,
`yuv422_yuy2` and `yuyv` are Y0 U Y1 V; a Bayer pattern is named by its first four pixels, row by
row.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from robovlms_ros.core.caps import MAX_IMAGE_PIXELS
from robovlms_ros.core.text_safety import printable
from robovlms_ros.core.types import ObservationError

RGB = NDArray[np.uint8]
Converter = Callable[[str, RGB], RGB]

Encoding = Literal[
    "auto", "rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuv422_yuy2", "yuyv", "yuv422", "uyvy",
    "bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8",
]
"""The values of `camera.NAME.encoding`: AS_SENT, or a key of PIXEL_BYTES."""

AS_SENT: Encoding = "auto"
"""The encoding that the messages name."""

BAYER = {"bayer_rggb8": "rggb", "bayer_bggr8": "bggr", "bayer_gbrg8": "gbrg", "bayer_grbg8": "grbg"}
LUMA_FIRST = ("yuv422_yuy2", "yuyv")
CHROMA_FIRST = ("yuv422", "uyvy")

PIXEL_BYTES = {
    "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1,
    **dict.fromkeys((*LUMA_FIRST, *CHROMA_FIRST), 2),
    **dict.fromkeys(BAYER, 1),
}

# Encodings without the order of the channels, and those that they may stand for.
UNNAMED = {"8UC1": ("mono8", *BAYER), "8UC2": (*LUMA_FIRST, *CHROMA_FIRST), "8UC3": ("bgr8", "rgb8"),
           "8UC4": ("bgra8", "rgba8")}

# Row padding is a few cache lines at most; from this width on, a row that is exactly another pixel
# size wide is not padding but another encoding.
LIE_WIDTH = 64


class ImageMessage(Protocol):
    """Fields read from a sensor_msgs/Image."""

    width: int
    height: int
    encoding: str
    step: int
    data: Any


class CompressedImageMessage(Protocol):
    """Fields read from a sensor_msgs/CompressedImage."""

    format: str
    data: Any


def only_raw(place: str, encoding: str, remedy: str) -> str:
    """The text of the error for an encoding that is given for compressed images.

    place: the camera's key, `parameter camera.static`. remedy: continues "Set it to auto, or".
    """
    rule = "only raw images have an encoding"
    return f"{place}.encoding = '{encoding}': {rule}. Set it to {AS_SENT}, or {remedy}."


def to_rgb(message: Any, convert: Converter | None = None, encoding: str | None = None) -> RGB:
    """(H, W, 3) uint8 RGB, read-only, of an Image or a CompressedImage. Raises ObservationError
    with the reason."""
    return compressed_to_rgb(message) if hasattr(message, "format") else image_to_rgb(message, convert, encoding)


def image_to_rgb(message: ImageMessage, convert: Converter | None = None, encoding: str | None = None) -> RGB:
    """(H, W, 3) uint8 RGB of a raw image; may share the message's memory, hence read-only.

    convert: colour conversion in place of `convert_with_numpy`.
    encoding: the image's true encoding, in place of the message's; None is the message's.

    Raises ObservationError for an unsupported encoding, a zero size, a `step` shorter than a row,
    truncated data, or a `step` that shows another encoding than the one named.
    """
    encoding = encoding or message.encoding
    pixels = _pixels(message, encoding)
    if encoding != "rgb8":
        pixels = (convert or convert_with_numpy)(encoding, pixels)
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    return pixels


def compressed_to_rgb(message: CompressedImageMessage) -> RGB:
    """(H, W, 3) uint8 RGB of a JPEG or PNG. Raises ObservationError when it does not decode
    completely."""
    if "compressedDepth" in message.format:
        raise ObservationError(
            f"format '{printable(message.format)}' is a depth image; give a topic with a colour image."
        )
    if len(message.data) == 0:
        raise ObservationError("the compressed image has no data.")
    try:
        with PillowImage.open(io.BytesIO(bytes(message.data)), formats=("JPEG", "PNG")) as image:
            check_pixels(*image.size)
            if image.mode.startswith(("I", "F")):
                raise ObservationError(f"the {image.format} has mode {image.mode}, 16 bit or more; give 8-bit colour.")
            pixels = np.asarray(image.convert("RGB"))
    except PillowImage.DecompressionBombError as error:
        raise ObservationError(f"{error} At most {MAX_IMAGE_PIXELS} pixels are decoded (MAX_IMAGE_PIXELS).") from error
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, IndexError, TypeError, KeyError,
            struct.error, zlib.error) as error:
        raise ObservationError(
            f"the compressed image (format '{printable(message.format)}', {len(message.data)} bytes) does not decode "
            f"as JPEG or PNG: {printable(error)}."
        ) from error
    if "compressed rgb" in message.format:
        # image_transport names the channel order it handed to an encoder that takes BGR: `rgb`
        # means stored swapped.
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    pixels.flags.writeable = False
    return pixels


def check_pixels(width: int, height: int) -> None:
    """Raise ObservationError for the header of an image that would decode to too many pixels."""
    if width * height > MAX_IMAGE_PIXELS:
        raise ObservationError(f"the image is {width} x {height} pixels by its header, at most {MAX_IMAGE_PIXELS} are "
                               "decoded (MAX_IMAGE_PIXELS).")


def _pixels(message: ImageMessage, encoding: str) -> RGB:
    """The message's bytes as (H, W, bytes per pixel), a view that skips row padding; checked
    against its claims."""
    width = message.width
    height = message.height
    step = message.step
    if encoding not in PIXEL_BYTES:
        raise ObservationError(
            f"encoding '{printable(encoding)}' is not supported.{_hint(encoding)} Allowed: {', '.join(PIXEL_BYTES)}."
        )
    if width <= 0 or height <= 0:
        raise ObservationError(f"the image is {width} x {height} pixels: it is empty.")
    pixel = PIXEL_BYTES[encoding]
    row = width * pixel
    if step < row:
        raise ObservationError(
            f"step = {step} bytes is shorter than a row: {width} pixels of {encoding} take {row} bytes. "
            "Encoding, width or step is wrong."
        )
    if width >= LIE_WIDTH and step != row and step in (width * size for size in PIXEL_BYTES.values()):
        raise ObservationError(
            f"encoding '{encoding}' has {pixel} bytes per pixel but step = {step} is exactly {step // width} for each "
            f"of {width} pixels: the encoding or the step is wrong."
        )
    needed = step * (height - 1) + row
    if len(message.data) < needed:
        raise ObservationError(
            f"the image is truncated: {width} x {height} {encoding} with step {step} needs {needed} bytes, "
            f"{len(message.data)} came."
        )
    return np.ndarray((height, width, pixel), np.uint8, buffer=message.data, strides=(step, pixel, 1))


def _hint(encoding: str) -> str:
    if encoding in ("16UC1", "32FC1", "mono16"):
        return " It is a depth image; give the colour topic."
    if encoding in UNNAMED:
        choices = " or ".join(UNNAMED[encoding])
        return f" It leaves the channels' order open: set `camera.NAME.encoding` to {choices}."
    return ""


def convert_with_numpy(encoding: str, pixels: RGB) -> RGB:
    """(H, W, 3) RGB from (H, W, bytes per pixel) of any encoding of PIXEL_BYTES but rgb8."""
    height, width, _ = pixels.shape
    if encoding in LUMA_FIRST:
        return _yuv422_to_rgb(pixels, luma=0)
    if encoding in CHROMA_FIRST:
        return _yuv422_to_rgb(pixels, luma=1)
    if encoding in BAYER:
        return _bayer_to_rgb(pixels[..., 0], BAYER[encoding])
    rgb = np.empty((height, width, 3), np.uint8)
    channels = {"bgr8": (2, 1, 0), "bgra8": (2, 1, 0), "rgba8": (0, 1, 2), "mono8": (0, 0, 0)}[encoding]
    # one strided pass a channel: 4 times quicker than one reversed view
    for target, source in enumerate(channels):
        rgb[..., target] = pixels[..., source]
    return rgb


def _yuv422_to_rgb(pixels: RGB, luma: int) -> RGB:
    """(H, W, 3) RGB from (H, W, 2) bytes: ITU-R BT.601, limited range, in OpenCV's 20-bit fixed
    point.

    luma: the place of Y among a pixel's two bytes; the other place alternates between U and V.
    """
    height, width, _ = pixels.shape
    if width % 2:
        raise ObservationError(f"yuv422 stores pixels in pairs, but the image is {width} pixels wide.")
    brightness = 1220542 * np.maximum(pixels[..., luma].astype(np.int32) - 16, 0)  # (H, W)
    # (H, W/2, [U, V])
    chroma = pixels[..., 1 - luma].astype(np.int32).reshape(height, width // 2, 2) - 128
    u = np.repeat(chroma[..., 0], 2, axis=1)
    v = np.repeat(chroma[..., 1], 2, axis=1)
    red = brightness + 1673527 * v
    green = brightness - 852492 * v - 409993 * u
    blue = brightness + 2116026 * u
    rgb = np.stack([red, green, blue], axis=-1)
    return np.clip((rgb + (1 << 19)) >> 20, 0, 255).astype(np.uint8)


def _bayer_to_rgb(mosaic: NDArray[np.uint8], pattern: str) -> RGB:
    """(H, W, 3) RGB from a (H, W) Bayer mosaic by bilinear interpolation.

    pattern: the colours of the first 2 x 2 pixels, row by row. The border is mirrored, which keeps
        the pattern.
    """
    height, width = mosaic.shape
    if height < 2 or width < 2:
        raise ObservationError(f"a Bayer pattern has 2 x 2 pixels, but the image is {width} x {height} pixels.")
    wide = np.pad(mosaic, 1, mode="reflect").astype(np.uint16)  # (H + 2, W + 2)
    across = (wide[1:-1, :-2] + wide[1:-1, 2:] + 1) >> 1  # (H, W) mean of left and right
    down = (wide[:-2, 1:-1] + wide[2:, 1:-1] + 1) >> 1
    cross = (wide[1:-1, :-2] + wide[1:-1, 2:] + wide[:-2, 1:-1] + wide[2:, 1:-1] + 2) >> 2
    diagonal = (wide[:-2, :-2] + wide[:-2, 2:] + wide[2:, :-2] + wide[2:, 2:] + 2) >> 2
    rgb = np.empty((height, width, 3), np.uint8)
    source: Any
    for place, own in enumerate(pattern):
        row = place // 2
        column = place % 2
        for channel, colour in enumerate("rgb"):
            if colour == own:
                source = mosaic
            elif own != "g":
                source = cross if colour == "g" else diagonal
            else:  # a green pixel has one colour beside it and the other one above and below
                source = across if pattern[2 * row + 1 - column] == colour else down
            rgb[row::2, column::2, channel] = source[row::2, column::2]
    return rgb
