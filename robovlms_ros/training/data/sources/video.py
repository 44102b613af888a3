"""Single frames out of video files, by time, and video files of frames, with PyAV (FFmpeg's
libraries in a wheel)."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robovlms_ros.core.caps import MAX_IMAGE_PIXELS, MAX_VIDEO_FRAMES_SOUGHT
from robovlms_ros.core.text_safety import printable
from robovlms_ros.training.data.episodes import DataError

OPEN_FILES = 8
AHEAD = 2.0  # s: a frame that is no further ahead is decoded up to, a further one is sought


_inherited: list[Any] = []
"""Open files of the process that this one was forked from. A decoder's threads do not exist here:
to close it would wait for them for ever."""


class VideoFrames:
    """Reads frames of many files and keeps a few of them open; a forked or unpickled copy begins
    with none.

    tolerance: s by which a frame's time may differ from the requested one.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._open: OrderedDict[Path, _Video] = OrderedDict()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"tolerance": self._tolerance}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["tolerance"])  # type: ignore[misc]

    def at(self, path: Path, times: Sequence[float]) -> NDArray[np.uint8]:
        """(n, H, W, 3) RGB, the frames shown at these times (s, as the file counts). Raises
        DataError."""
        if self._process != os.getpid():
            _inherited.append(self._open)
            self.__init__(self._tolerance)  # type: ignore[misc]
        order = np.argsort(times, kind="stable")
        frames: list[NDArray[np.uint8] | None] = [None] * len(times)
        video = self._video(path)
        for place in order:
            frames[place] = video.frame(float(times[place]), self._tolerance)
        return np.stack([frame for frame in frames if frame is not None])

    def _video(self, path: Path) -> "_Video":
        if path not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[path] = _Video(path)
        self._open.move_to_end(path)
        return self._open[path]


class _Video:
    """One open file and the last frame that was decoded."""

    def __init__(self, path: Path) -> None:
        try:
            import av
        except ImportError as error:
            raise DataError(f"{path}: video is decoded by PyAV, which is not installed: pip install av.") from error
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: no such video file. Download it.")
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            pixels = self._stream.width * self._stream.height
        except Exception as error:  # damaged bytes raise anything in a demuxer
            raise DataError(
                f"{path}: cannot be opened as a video ({printable(error)}). Is it a Git LFS pointer, or cut off?"
            ) from error
        if pixels > MAX_IMAGE_PIXELS:
            raise DataError(f"{path}: {self._stream.width} x {self._stream.height} pixels a frame by its header, at "
                            f"most {MAX_IMAGE_PIXELS} are decoded (MAX_IMAGE_PIXELS).")
        # One thread: the DataLoader's workers are the parallel ones. dav1d, which decodes AV1, goes
        # by the number alone.
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        self._frames: Any = None
        self._last: Any = None
        self._next: Any = None

    def close(self) -> None:
        self._container.close()

    def frame(self, time: float, tolerance: float) -> NDArray[np.uint8]:
        """The frame nearest to `time`. Raises DataError when none is within `tolerance`."""
        try:
            best = self._nearest(time)
            shown = None if best is None else float(best.time)
            if best is not None and abs(best.time - time) <= tolerance:
                return best.to_ndarray(format="rgb24")
        except DataError:
            raise
        except Exception as error:  # damaged bytes raise anything in a decoder
            self._frames = self._last = self._next = None
            raise DataError(f"{self.path}: does not decode at {time:.3f} s ({printable(error)}). Download the file "
                            "again.") from error
        near = "none" if shown is None else f"the nearest is at {shown:.3f} s"
        raise DataError(f"{self.path}: no frame at {time:.3f} s within {tolerance:.3f} s, {near}. The video and the "
                        "episode table do not belong together, or the file is cut off.")

    def _nearest(self, time: float) -> Any:
        behind = self._last is None or self._last.time > time
        if self._frames is None or behind or time - self._last.time > AHEAD:
            base = float(self._stream.time_base or 1)
            self._container.seek(max(int(time / base), 0), stream=self._stream, backward=True)
            self._frames = self._container.decode(self._stream)
            self._next = None
            self._last = next(self._frames, None)
        decoded = 0
        while self._last is not None and self._last.time < time:
            decoded += 1
            if decoded > MAX_VIDEO_FRAMES_SOUGHT:
                raise DataError(f"{self.path}: {MAX_VIDEO_FRAMES_SOUGHT} frames decoded without coming to {time:.3f} s "
                                "(MAX_VIDEO_FRAMES_SOUGHT).")
            self._next = self._next or next(self._frames, None)
            if self._next is None or self._next.time - time > time - self._last.time:
                break
            self._last = self._next
            self._next = None
        return self._last


class VideoWriter:
    """Writes the frames of one episode and camera as H.264, which any LeRobot decodes.

    A key frame comes every second frame: training reads single frames. Raises DataError for frames
    with an odd number of pixels, which H.264 cannot hold in 4:2:0.
    """

    def __init__(self, path: Path, rate_hz: Fraction, height: int, width: int) -> None:
        import av

        if height % 2 or width % 2:
            raise DataError(f"{path}: images of {width} x {height} pixels: a video needs even "
                            "numbers. Store the images in the tables instead: --images png.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(path), "w")
        options = {"crf": "18", "g": "2"}
        self._stream = self._container.add_stream("libx264", rate=rate_hz, options=options)
        self._stream.width = width
        self._stream.height = height
        self._stream.pix_fmt = "yuv420p"
        self._stream.thread_count = 1
        self._time_base = 1 / rate_hz
        self._count = 0

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Frames (n, H, W, 3) uint8 RGB, in order."""
        import av

        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = self._count
            frame.time_base = self._time_base
            self._container.mux(self._stream.encode(frame))
            self._count += 1

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode())
        self._container.close()
