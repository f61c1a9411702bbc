"""Image files as videos: stills of one frame, and animated WebP and PNG with their frames' times.

Decoded by Pillow, HEIC by pillow-heif: FFmpeg supports neither orientation nor blending of images, and no animated
WebP. GIF is left to FFmpeg, which draws and times it as browsers do.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from vidqa.errors import PictureTooLarge, VideoTooDamaged, VideoUnreadable
from vidqa.types import Frame, VideoInfo
from vidqa.video.change_signal import Scan
from vidqa.video.container import REMEDY_FETCH
from vidqa.video.size_limits import REMEDY_SMALLER, check_picture_size, out_of_memory_error

if TYPE_CHECKING:
    import numpy

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "AVIF")
_ANIMATED = ("PNG", "WEBP")  # further pictures of other formats are pages, or another camera's
_TURNS = {3: 180, 4: 180, 5: 270, 6: 270, 7: 90, 8: 90}  # degrees to the left by EXIF's orientation
_ORIENTATION = 0x0112  # EXIF's tag
_STRIP_PIXELS = 2**20
_STILL_SECONDS = 1.0
_MIN_SECONDS, _BROWSER_SECONDS = 0.01, 0.1  # browsers show a frame of at most 10 ms for 100 ms
_REMEDY_CONVERT = "Check that it opens elsewhere, or convert it: ffmpeg -i IN OUT.png"
# What Pillow raises on damaged files; the warning only where warnings are errors.
_DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError,
    AttributeError, RuntimeError, struct.error, zlib.error,
)  # fmt: skip
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class ImageSource:
    """An opened image file: its facts and its frames. Raises VideoUnreadable and VideoTooDamaged."""

    def __init__(self, path: str) -> None:
        self.stopped = ""
        self._name = Path(path).name
        with self._as_video_errors(VideoUnreadable):
            self._file = open(path, "rb")  # noqa: SIM115
        try:
            with self._as_video_errors(VideoUnreadable):
                self._formats = _formats(self._file.read(12))
                self._image = self._reopened()
            check_picture_size(self._name, *self._image.size)
            with self._as_video_errors(VideoTooDamaged):
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
            with self._as_video_errors(VideoTooDamaged):
                self._image = self._reopened()
        for index in indices:
            try:
                if len(times) > 1:  # a still is not always the first of a file's pictures
                    self._image.seek(index)
                check_picture_size(self._name, *self._image.size)
                rgb = _as_rgb(self._image)
            except MemoryError as error:
                raise out_of_memory_error(self._name) from error
            except _DAMAGED as error:
                self.stopped = str(error) or type(error).__name__
                return
            except PictureTooLarge as error:
                self.stopped = error.what.removesuffix(".")
                return
            yield Frame(index, self.info.shown_seconds(index), rgb)

    def scan(self, limit_seconds: float) -> Scan:
        """Scan the whole video for change for about `limit_seconds` at most; moves the file."""
        from vidqa.video.picture_scan import scan_frames  # imported late: few questions need it

        return scan_frames(self.info, self.frames, limit_seconds)

    def abandon(self) -> None:
        """Do nothing: decoding in this process cannot be stopped before the current frame ends."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _reopened(self) -> Image.Image:
        """Return the image at its first frame: seeking back in an animated PNG fails in Pillow."""
        self._file.seek(0)
        return Image.open(self._file, formats=self._formats)

    @contextmanager
    def _as_video_errors(self, kind: type[VideoUnreadable] | type[VideoTooDamaged]) -> Iterator[None]:
        """Turn what Pillow raises into VideoError children."""
        remedy = _REMEDY_CONVERT if kind is VideoUnreadable else REMEDY_FETCH
        try:
            yield
        except MemoryError as error:
            raise out_of_memory_error(self._name) from error
        except _BOMBS as error:
            raise PictureTooLarge(f"{self._name} is too large: {error}", REMEDY_SMALLER) from error
        except _DAMAGED as error:
            unknown = isinstance(error, UnidentifiedImageError)  # its message shows a Python object
            reason = "damaged header" if unknown else str(error).removesuffix(".") or type(error).__name__
            raise kind(f"{self._name} cannot be read as an image: {reason}.", remedy) from error

    def _facts(self, path: str) -> VideoInfo:
        with self._as_video_errors(VideoTooDamaged):
            orientation = self._image.getexif().get(_ORIENTATION, 1)
            expected = getattr(self._image, "n_frames", 1) if self._image.format in _ANIMATED else 1
            notes = tuple(_others_note(self._image))
        turned = _TURNS.get(orientation, 0)
        wide, tall = self._image.size
        seconds = [_STILL_SECONDS]
        if expected > 1:
            seconds = list(self._durations(expected))
            notes = self._truncation_note(len(seconds), expected)
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
        """Yield the seconds of every frame that can be decoded; a frame's time is known after decoding."""
        for index in range(expected):
            try:
                self._image.seek(index)
                self._image.load()
            except _DAMAGED:
                return
            seconds = float(self._image.info.get("duration", 0)) / 1000
            yield seconds if seconds > _MIN_SECONDS else _BROWSER_SECONDS

    def _truncation_note(self, found: int, expected: int) -> tuple[str, ...]:
        """Return a note if frames are missing; raise VideoTooDamaged if more than half are."""
        if found == expected:
            return ()
        message = f"{self._name} looks truncated: {found} of {expected} frames are there."
        if found * 2 < expected:
            raise VideoTooDamaged(message, REMEDY_FETCH)
        return (message,)


def _formats(start: bytes) -> tuple[str, ...]:
    """Return Pillow's formats for a file's first 12 bytes; register HEIC only if it is needed: that takes time."""
    if start[4:8] != b"ftyp" or start[8:] == b"avif":
        return _FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return ("AVIF", "HEIF")  # one brand, mif1, is used by both


def _others_note(image: Image.Image) -> Iterator[str]:
    """Yield a note of which picture is taken if a HEIC file has several."""
    pictures = getattr(image, "n_frames", 1) if image.format == "HEIF" else 1
    if pictures > 1:
        yield f"The file has {pictures} pictures: its primary one, number {image.tell() + 1}, is taken."


def _as_rgb(image: Image.Image) -> "numpy.ndarray":
    """Return the picture (height, width, 3) uint8, upright and opaque.

    Transparent parts are white, as viewers and qwen-vl-utils show them. Converted in strips, so that a large picture
    is in memory twice at most: in Pillow and as the result.
    """
    import numpy as np  # a plan opens files and converts no picture

    image.load()
    turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    upright: Any = ImageOps.exif_transpose(image) if turned else image  # which copies even where nothing turns
    width, height = upright.size
    rows = max(_STRIP_PIXELS // width, 1)
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    low, high = _extremes(upright.crop(box) for box in boxes) if upright.mode in ("I", "F") else (0.0, 0.0)
    rgb: numpy.ndarray = np.empty((height, width, 3), np.uint8)
    for box in boxes:
        strip = upright.crop(box)
        rgb[box[1] : box[3]] = _stretched(strip, low, high) if upright.mode in ("I", "F") else _strip_as_rgb(strip)
    return rgb


def _strip_as_rgb(strip: Any) -> Image.Image:
    if strip.mode.startswith("I;16"):
        import numpy as np

        strip = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
    if strip.has_transparency_data:
        seen = strip.convert("RGBA")
        strip = Image.new("RGBA", seen.size, "white")
        strip.alpha_composite(seen)
    rgb: Image.Image = strip.convert("RGB")
    return rgb


def _finite(strip: Image.Image) -> "numpy.ndarray":
    import numpy as np

    finite: numpy.ndarray = np.nan_to_num(np.asarray(strip, np.float64), posinf=0.0, neginf=0.0)
    return finite


def _extremes(strips: Iterable[Image.Image]) -> tuple[float, float]:
    """Return the lowest and the highest finite value."""
    values = [(finite.min(), finite.max()) for finite in map(_finite, strips)]
    return float(min(low for low, _ in values)), float(max(high for _, high in values))


def _stretched(strip: Image.Image, low: float, high: float) -> "numpy.ndarray":
    """Scale values of unknown range to uint8 (height, width, 1): the lowest is black, the highest white."""
    import numpy as np

    shades: numpy.ndarray = ((_finite(strip) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return shades[:, :, None]
