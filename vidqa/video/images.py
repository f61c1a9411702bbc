"""Image files as videos: a still is one of one frame, an animated WebP or PNG has its frames' own times.

Pillow decodes them, since FFmpeg knows neither orientation nor blending of
images, and no animated WebP. GIF is FFmpeg's: it draws and times those as browsers do.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from vidqa.errors import VideoTooDamaged, VideoUnreadable
from vidqa.types import Frame, VideoInfo
from vidqa.video.container import MAX_PIXELS, REMEDY_FETCH

if TYPE_CHECKING:
    import numpy

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_ANIMATED = ("PNG", "WEBP")  # further pictures of other formats are pages, or another camera's
_TURNS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}  # degrees to the left by EXIF's orientation
_STILL_SECONDS = 1.0
_LEAST_SECONDS, _BROWSER_SECONDS = 0.01, 0.1  # browsers show a frame of at most 10 ms for 100 ms
_REMEDY_CONVERT = "Check that it opens elsewhere, or convert it: ffmpeg -i IN OUT.png"
# What Pillow raises on damaged files; the warning only where warnings are errors.
_DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError,
    AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageSource:
    """An opened image file: its facts and its pictures. Raises VideoUnreadable and VideoTooDamaged."""

    def __init__(self, path: str, absolute: str) -> None:
        self.stopped = ""
        self._name = Path(path).name
        with self._reading(VideoUnreadable):
            self._file = open(absolute, "rb")  # noqa: SIM115
        try:
            with self._reading(VideoUnreadable):
                self._image = self._begin()
            self._check_size()
            with self._reading(VideoTooDamaged):
                self._image.load()
            self.info = self._facts(path)
        except BaseException:
            self.close()
            raise

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield a Frame per index (ascending, repeats allowed) until the end or the damage."""
        self.stopped = ""
        times = self.info.pts_seconds
        if len(times) > 1:
            with self._reading(VideoTooDamaged):
                self._image = self._begin()
        for index in indices:
            try:
                self._image.seek(index)
                rgb = _as_rgb(self._image)
            except _DAMAGED as error:
                self.stopped = str(error) or type(error).__name__
                return
            yield Frame(index, times[index] - times[0], rgb)

    def abandon(self) -> None:
        """Nothing can be stopped within a process: the reading ends with the frame that it is at."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _begin(self) -> Image.Image:
        """The image at its first frame: going back in an animated PNG fails in Pillow."""
        self._file.seek(0)
        return Image.open(self._file, formats=_FORMATS)

    @contextmanager
    def _reading(self, kind: type[VideoUnreadable] | type[VideoTooDamaged]) -> Iterator[None]:
        """Turn what Pillow raises into what can be told."""
        remedy = _REMEDY_CONVERT if kind is VideoUnreadable else REMEDY_FETCH
        try:
            yield
        except _BOMBS as error:
            raise VideoUnreadable(f"{self._name} is too large: {error}", _REMEDY_CONVERT) from error
        except _DAMAGED as error:
            reason = str(error).removesuffix(".") or type(error).__name__
            raise kind(f"{self._name} cannot be read as an image: {reason}.", remedy) from error

    def _check_size(self) -> None:
        width, height = self._image.size
        if width * height > MAX_PIXELS:
            raise VideoUnreadable(
                f"{self._name} has {width}×{height} = {width * height:,} pixels; at most {MAX_PIXELS:,} are decoded.",
                "Make it smaller: ffmpeg -i IN -vf scale=4096:-1 OUT.png",
            )

    def _facts(self, path: str) -> VideoInfo:
        with self._reading(VideoTooDamaged):
            orientation = self._image.getexif().get(0x0112, 1)
            expected = getattr(self._image, "n_frames", 1) if self._image.format in _ANIMATED else 1
        turned = _TURNS.get(orientation, 0)
        wide, tall = self._image.size
        seconds, notes = [_STILL_SECONDS], tuple[str, ...]()
        if expected > 1:
            seconds = list(self._durations(expected))
            notes = self._missing(len(seconds), expected)
        codec = (self._image.format or "").lower()
        return VideoInfo(
            path=path,
            container=codec,
            codec=codec,
            width=tall if turned % 180 else wide,
            height=wide if turned % 180 else tall,
            coded_width=wide,
            coded_height=tall,
            rotation_degrees=turned,
            pixel_aspect=1.0,
            fps=len(seconds) / sum(seconds),
            frame_count=len(seconds),
            duration_seconds=sum(seconds),
            start_seconds=0.0,
            constant_rate=len(set(seconds)) == 1,
            pts_seconds=tuple(accumulate(seconds[:-1], initial=0.0)),
            sources={
                "duration": "frames" if expected > 1 else "default",
                "fps": "derived" if expected > 1 else "default",
                "frames": "decoding" if expected > 1 else "header",
                "rotation": "header" if turned else "default",
                "pixel_aspect": "default",
                "size": "header",
            },
            notes=notes,
        )

    def _durations(self, expected: int) -> Iterator[float]:
        """Seconds of every frame that can be decoded; a frame's time is known once it is."""
        for index in range(expected):
            try:
                self._image.seek(index)
                self._image.load()
            except _DAMAGED:
                return
            seconds = float(self._image.info.get("duration", 0)) / 1000
            yield seconds if seconds > _LEAST_SECONDS else _BROWSER_SECONDS

    def _missing(self, there: int, expected: int) -> tuple[str, ...]:
        """A note where frames are missing; raises VideoTooDamaged where less than half are there."""
        if there == expected:
            return ()
        told = f"{self._name} looks truncated: {there} of {expected} frames are there."
        if there * 2 < expected:
            raise VideoTooDamaged(told, REMEDY_FETCH)
        return (told,)


def _as_rgb(image: Image.Image) -> "numpy.ndarray":
    """The picture (height, width, 3) uint8 as it is meant to be seen.

    Transparent parts are white, as viewers and qwen-vl-utils show them.
    """
    import numpy as np  # late: a plan opens files and converts no picture

    upright: Any = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    elif upright.mode in ("I", "F"):
        upright = Image.fromarray(_stretched(np.asarray(upright, np.float64)))
    if upright.has_transparency_data:
        seen = upright.convert("RGBA")
        upright = Image.new("RGBA", seen.size, "white")
        upright.alpha_composite(seen)
    rgb: numpy.ndarray = np.array(upright.convert("RGB"))
    return rgb


def _stretched(values: "numpy.ndarray") -> "numpy.ndarray":
    """Numbers of no known range as uint8: from the lowest, black, to the highest, white."""
    import numpy as np

    finite = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = finite.min(), finite.max()
    shades: numpy.ndarray = ((finite - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return shades
