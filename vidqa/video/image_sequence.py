"""A folder of numbered pictures as one video: each picture is a frame, at a given rate or at given times.

Every picture is read by ImageSource, so turns, transparency, limits and formats are those of single images. A picture
of another size than the first is letterboxed into the first one's.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image

from vidqa.errors import VideoError, VideoUnreadable
from vidqa.types import Frame, PictureTimes, VideoInfo
from vidqa.video.change_signal import Scan
from vidqa.video.frame_times import timing
from vidqa.video.geometry import Crop, Orientation, Shape
from vidqa.video.image_source import ImageSource
from vidqa.video.picture_folder import numbered_pictures, pictures_without_number, read_timestamps, timestamps_file

if TYPE_CHECKING:
    import numpy

DEFAULT_FPS = 25.0  # of FFmpeg's image2 demuxer
_SIZE_NOTE = "The pictures' sizes differ: they are letterboxed to the first one's."


class ImageSequence:
    """An opened folder of numbered pictures: its facts and its frames. Raises VideoError children."""

    def __init__(self, path: str, absolute: str, times: PictureTimes) -> None:
        self.stopped = ""
        self._pictures = numbered_pictures(absolute)
        self._latest: tuple[int, Frame] | None = None  # a single frame is asked for twice
        with closing(ImageSource(self._pictures[0])) as first:
            self.info = self._facts(path, absolute, first.info, times)

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield a Frame per index (ascending, repeats allowed) until the end or the first picture that is damaged."""
        self.stopped = ""
        for index in indices:
            try:
                frame = self._frame(index)
            except VideoError as error:
                self.stopped = error.what.removesuffix(".")
                return
            if frame is None:
                return
            yield frame

    def scan(self, limit_seconds: float) -> Scan:
        """Scan the whole video for change for about `limit_seconds` at most; moves the file."""
        from vidqa.video.picture_scan import scan_frames  # imported late: few questions need it

        return scan_frames(self.info, self.frames, limit_seconds)

    def abandon(self) -> None:
        """Do nothing: within a process, reading ends after the current picture."""

    def close(self) -> None:
        """Let go of the last picture; no file stays open."""
        self._latest = None

    def _frame(self, index: int) -> Frame | None:
        """Return the frame at an index; None, and `stopped` has the reason, where its picture cannot be converted."""
        if self._latest is not None and self._latest[0] == index:
            return self._latest[1]
        self._latest = None
        path = self._pictures[index]
        with closing(ImageSource(path)) as source:
            picture = next(source.frames([0]), None)
            if picture is None:
                self.stopped = source.stopped
                return None
        width, height = self.info.width, self.info.height
        same = picture.rgb.shape[:2] == (height, width)
        rgb = picture.rgb if same else _letterbox(picture.rgb, width, height)
        frame = Frame(index, self.info.shown_seconds(index), rgb, "" if same else _SIZE_NOTE)
        self._latest = (index, frame)
        return frame

    def _facts(self, path: str, absolute: str, first: VideoInfo, times: PictureTimes) -> VideoInfo:
        """Return the folder's facts: size and turn are its first picture's, times those of a file or of a rate."""
        count = len(self._pictures)
        notes = list(_left_out_note(pictures_without_number(absolute)))
        file = timestamps_file(absolute, times.file) if times.fps is None or times.file else None
        if file is not None:
            seconds: tuple[float, ...] = read_timestamps(file, count)
            found = timing(seconds, (), 0.0, None, 0.0)
            fps, constant, duration, source = found.fps, found.constant, found.duration_seconds, "timestamps"
        else:
            fps, source = (DEFAULT_FPS, "default") if times.fps is None else (times.fps, "option")
            _check_rate(fps)
            seconds = tuple(index / fps for index in range(count))
            constant, duration = True, count / fps
        if source == "default":
            notes.append(f"The pictures' rate is not known: {DEFAULT_FPS:g} per second are assumed (--fps gives it).")
        return replace(
            first,
            path=path,
            container="image2",
            fps=fps,
            frame_count=count,
            duration_seconds=seconds[0] + duration,
            start_seconds=seconds[0],
            constant_rate=constant,
            pts_seconds=seconds,
            sources={**first.sources, "duration": source, "fps": source, "frames": "files"},
            notes=tuple(notes),
            lead_seconds=seconds[0],
        )


def _check_rate(fps: float) -> None:
    if not 0 < fps < math.inf:
        raise VideoUnreadable(f"A rate of {fps:g} pictures per second is not above 0.", "Give for example --fps 10.")


def _left_out_note(count: int) -> Iterator[str]:
    if count:
        subject = "1 picture has" if count == 1 else f"{count:,} pictures have"
        yield f"{subject} no number in the file name and {'is' if count == 1 else 'are'} left out."


def _letterbox(rgb: "numpy.ndarray", width: int, height: int) -> "numpy.ndarray":
    """Return a picture in the middle of another size, as large as it fits, on black: (height, width, 3) uint8."""
    import numpy as np

    tall, wide, _ = rgb.shape
    shape = Shape(width, height, Crop(), 1.0, Orientation())
    inner = shape.fitted_size(wide, tall)
    whole = Image.new("RGB", (width, height))
    resized = Image.fromarray(rgb).resize(inner, Image.Resampling.BICUBIC)
    whole.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.asarray(whole)
