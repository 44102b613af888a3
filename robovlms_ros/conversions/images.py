"""sensor_msgs/Image and CompressedImage into (H, W, 3) uint8 RGB.

Messages are duck-typed: rclpy's and a bag reader's serve alike. A message is checked against its own claims before a
pixel is touched, and an image is copied at most once (rgb8 without padding: not at all). Only NumPy and Pillow are
needed; a node that has cv_bridge passes its colour conversion in.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from robovlms_ros.caps import MAX_IMAGE_PIXELS
from robovlms_ros.types import ObservationError

RGB = NDArray[np.uint8]
Converter = Callable[[str, RGB], RGB]

PIXEL_BYTES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "yuv422_yuy2": 2}

# Row padding is a few cache lines at most; from this width on, a row that is exactly another pixel size wide is not
# padding but another encoding.
LIE_WIDTH = 64

class ImageMessage(Protocol):
    """What is read of a sensor_msgs/Image."""

    width: int
    height: int
    encoding: str
    step: int
    data: Any


class CompressedImageMessage(Protocol):
    """What is read of a sensor_msgs/CompressedImage."""

    format: str
    data: Any


def to_rgb(message: Any, convert: Converter | None = None) -> RGB:
    """(H, W, 3) uint8 RGB, read-only, of an Image or a CompressedImage. Raises ObservationError with the reason."""
    return compressed_to_rgb(message) if hasattr(message, "format") else image_to_rgb(message, convert)


def image_to_rgb(message: ImageMessage, convert: Converter | None = None) -> RGB:
    """(H, W, 3) uint8 RGB of a raw image; may share the message's memory, hence read-only.

    convert: colour conversion in place of `convert_with_numpy`.

    Raises ObservationError for an unsupported encoding, a zero size, a `step` shorter than a row, truncated data, or a
    `step` that shows another encoding than the one named.
    """
    pixels = _pixels(message)
    if message.encoding != "rgb8":
        pixels = (convert or convert_with_numpy)(message.encoding, pixels)
    pixels = np.ascontiguousarray(pixels)
    pixels.flags.writeable = False
    return pixels


def compressed_to_rgb(message: CompressedImageMessage) -> RGB:
    """(H, W, 3) uint8 RGB of a JPEG or PNG. Raises ObservationError when it does not decode completely."""
    if "compressedDepth" in message.format:
        raise ObservationError(f"format '{message.format}' is a depth image; give a topic with a colour image.")
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
            f"the compressed image (format '{message.format}', {len(message.data)} bytes) does not decode as JPEG or "
            f"PNG: {error}."
        ) from error
    if "compressed rgb" in message.format:
        # image_transport names the channel order it handed to an encoder that takes BGR: `rgb` means stored swapped.
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    pixels.flags.writeable = False
    return pixels


def check_pixels(width: int, height: int) -> None:
    """Raise ObservationError for the header of an image that would decode to too many pixels."""
    if width * height > MAX_IMAGE_PIXELS:
        raise ObservationError(f"the image is {width} x {height} pixels by its header, at most {MAX_IMAGE_PIXELS} are "
                               "decoded (MAX_IMAGE_PIXELS).")


def _pixels(message: ImageMessage) -> RGB:
    """The message's bytes as (H, W, bytes per pixel), a view that skips row padding; checked against its claims."""
    encoding, width, height, step = message.encoding, message.width, message.height, message.step
    if encoding not in PIXEL_BYTES:
        hint = " It is a depth image; give the colour topic." if encoding in ("16UC1", "32FC1", "mono16") else ""
        raise ObservationError(f"encoding '{encoding}' is not supported.{hint} Allowed: {', '.join(PIXEL_BYTES)}.")
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


def convert_with_numpy(encoding: str, pixels: RGB) -> RGB:
    """(H, W, 3) RGB from (H, W, bytes per pixel) of any encoding of PIXEL_BYTES but rgb8."""
    height, width, _ = pixels.shape
    if encoding == "yuv422_yuy2":
        return _yuy2_to_rgb(pixels)
    rgb = np.empty((height, width, 3), np.uint8)
    channels = {"bgr8": (2, 1, 0), "bgra8": (2, 1, 0), "rgba8": (0, 1, 2), "mono8": (0, 0, 0)}[encoding]
    for target, source in enumerate(channels):  # one strided pass a channel: 4 times quicker than one reversed view
        rgb[..., target] = pixels[..., source]
    return rgb


def _yuy2_to_rgb(pixels: RGB) -> RGB:
    """(H, W, 3) RGB from (H, W, 2) bytes Y0 U Y1 V: ITU-R BT.601, limited range, in OpenCV's 20-bit fixed point."""
    height, width, _ = pixels.shape
    if width % 2:
        raise ObservationError(f"yuv422_yuy2 stores pixels in pairs, but the image is {width} pixels wide.")
    luma = 1220542 * np.maximum(pixels[..., 0].astype(np.int32) - 16, 0)  # (H, W)
    chroma = pixels[..., 1].astype(np.int32).reshape(height, width // 2, 2) - 128  # (H, W/2, [U, V])
    u, v = np.repeat(chroma[..., 0], 2, axis=1), np.repeat(chroma[..., 1], 2, axis=1)
    rgb = np.stack([luma + 1673527 * v, luma - 852492 * v - 409993 * u, luma + 2116026 * u], axis=-1)
    return np.clip((rgb + (1 << 19)) >> 20, 0, 255).astype(np.uint8)
