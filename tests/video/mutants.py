"""Small clips of every container that vidqa reads, and seeded mutations of their bytes."""

import io
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from tests.clips import numbered_picture, write_clip
from tests.video.heic_files import heic_grid

FRAMES, WIDTH, HEIGHT = 12, 128, 64
_PQ = "colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
_VIDEOS = {
    "mp4": ("libx264", {"g": "6", "bf": "2"}),
    "mov": ("mpeg4", {"g": "6"}),
    "mkv": ("libx265", {"x265-params": f"keyint=6:log-level=none:{_PQ}"}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "6"}),
    "ts": ("mpeg2video", {"g": "6", "bf": "2", "flags": "+ildct+ilme"}),
    "avi": ("mjpeg", {}),
    "mpg": ("mpeg2video", {"g": "6"}),
    "flv": ("flv", {"g": "6"}),
    "ogv": ("libvpx", {"deadline": "realtime", "cpu-used": "8", "g": "6"}),
    "wmv": ("wmv2", {"g": "6"}),
    "3gp": ("libx264", {"g": "6"}),
    "h264": ("libx264", {"g": "6"}),
    "ivf": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
}
_PIXELS = {"mjpeg": "yuvj420p", "libx265": "yuv420p10le"}
_EXTREMES = (0, 1, 2, 127, 255, *(2**bits - 1 for bits in (15, 16, 31, 32, 63, 64)), 2**16, 7 * 2**16, 2**31)
_SIDES = (1, 16, 320, 1080, 4096, 4400, 8000, 8191, 16_383, 30_000, 65_535, 458_752, 0x7FFFFFFF)
_LARGE = ((8000, 4400), (4400, 8000), (8192, 4352), (16_383, 2176), (1089, 32_700), (32_767, 1080), (3000, 3000))
_COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90))
_WIDTHS = (1, 2, 3, 4, 8)
_ENCODINGS: tuple[tuple[int, Literal["big", "little"]], ...] = (
    (2, "big"), (2, "little"), (3, "little"), (4, "big"), (4, "little"),
)  # fmt: skip


def whole_clips(folder: Path) -> dict[str, bytes]:
    """The bytes of an undamaged clip per file extension."""
    clips = {}
    for extension, (codec, options) in _VIDEOS.items():
        pixels = _PIXELS.get(codec, "yuv420p")
        path, size = folder / f"whole.{extension}", (WIDTH, HEIGHT)
        clips[extension] = write_clip(path, FRAMES, size=size, codec=codec, options=options, pixels=pixels).read_bytes()
    clips["heic"] = heic_grid(folder / "whole.heic", _COLOURS, size=(WIDTH, HEIGHT)).read_bytes()
    return clips | _images()


def _images() -> dict[str, bytes]:
    first, *others = [Image.fromarray(numbered_picture(number, WIDTH, HEIGHT)) for number in range(6)]
    exif = Image.Exif()
    exif[0x0112] = 6
    animated = {"save_all": True, "append_images": others, "duration": 100}
    ramp = Image.fromarray(np.linspace(0, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH))
    return {
        "gif": _saved(first, "GIF", **animated),
        "avif": _saved(Image.fromarray(numbered_picture(5, WIDTH, HEIGHT)), "AVIF", speed=10),
        "webp": _saved(first, "WEBP", lossless=True, **animated),
        "apng": _saved(first, "PNG", **animated),
        "png": _saved(first.convert("RGBA"), "PNG"),
        "jpg": _saved(first, "JPEG", exif=exif, progressive=True),
        "bmp": _saved(first, "BMP"),
        "tif": _saved(ramp, "TIFF", compression="tiff_lzw"),
    }


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def mutant(draw: random.Random, whole: bytes, other: bytes) -> bytes:
    """One to four mutations of `whole`; `other` is a clip to splice in."""
    data = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 4))):
        mutation = draw.choice(_MUTATIONS)
        data = mutation(draw, data, other)
        if len(data) < 16:
            return bytes(whole[:16])
    return bytes(data)


def _place(draw: random.Random, data: bytearray) -> int:
    """Anywhere; half the time near the start or the end, where headers are."""
    near = min(len(data), 1024)
    return draw.choice(
        (draw.randrange(len(data)), draw.choice((draw.randrange(near), len(data) - 1 - draw.randrange(near))))
    )


def _flip_bits(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    for _ in range(draw.choice((1, 8, 64))):
        data[_place(draw, data)] ^= 1 << draw.randrange(8)
    return data


def _overwrite(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    """An extreme integer, at an aligned place, in either byte order."""
    for _ in range(draw.choice((1, 2, 8))):
        width = draw.choice(_WIDTHS)
        at = _place(draw, data) // width * width if draw.random() < 0.7 else _place(draw, data)
        value = draw.choice(_EXTREMES) if draw.random() < 0.7 else draw.choice(_SIDES)
        field = (value & (1 << 8 * width) - 1).to_bytes(width, draw.choice(("big", "little")))
        data[at : at + width] = field[: len(data) - at]
    return data


def _resize(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Another number where the width or the height may stand."""
    for _ in range(draw.choice((1, 1, 2))):
        width, order = draw.choice(_ENCODINGS)
        known = draw.choice((WIDTH, HEIGHT, WIDTH - 1, HEIGHT - 1)).to_bytes(width, order)
        places = [at for at in range(len(data) - width + 1) if data[at : at + width] == known]
        if places:
            at = draw.choice(places)
            data[at : at + width] = (draw.choice(_SIDES) & (1 << 8 * width) - 1).to_bytes(width, order)
    return data


def _enlarge(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Two other numbers where width and height stand side by side: pictures about as large as are allowed."""
    sides = draw.choice(_LARGE)
    for width, order in _ENCODINGS:
        for less in (0, 1):
            known = b"".join((side - less).to_bytes(width, order) for side in (WIDTH, HEIGHT))
            wanted = b"".join((side - less).to_bytes(width, order) for side in sides)
            data[:] = data.replace(known, wanted)
    return data


def _double(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin, end = _range(draw, data)
    return data[:end] + data[begin:end] * draw.choice((1, 1, 10)) + data[end:]


def _remove(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin, end = _range(draw, data)
    return data[:begin] + data[end:]


def _cut(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    return data[: draw.randrange(1, len(data) + 1)]


def _splice(draw: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin, end = _range(draw, data)
    start = draw.randrange(len(other))
    return data[:begin] + other[start : start + end - begin] + data[end:]


def _range(draw: random.Random, data: bytearray) -> tuple[int, int]:
    begin = draw.randrange(len(data))
    return begin, min(begin + draw.choice((1, 4, 16, 256, len(data) // 3 + 1)), len(data))


_MUTATIONS = (
    _flip_bits, _flip_bits, _overwrite, _overwrite, _resize, _resize, _enlarge, _enlarge,
    _double, _remove, _cut, _splice,
)  # fmt: skip
