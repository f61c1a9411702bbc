"""Small generated clips whose frames tell their own number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """A gray picture (height, width, 3) with the number in eight black or white bars."""
    picture = np.full((height, width, 3), 96, np.uint8)
    for bit in range(8):
        shade = 235 if number >> bit & 1 else 20
        picture[height // 4 : 3 * height // 4, bit * width // 8 : (bit + 1) * width // 8] = shade
    return picture


def read_number(rgb: np.ndarray) -> int:
    """The number in a picture, after any codec."""
    height, width, _ = rgb.shape
    middles = [rgb[height // 2, bit * width // 8 + width // 16].mean() for bit in range(8)]
    return sum(1 << bit for bit, shade in enumerate(middles) if shade > 128)


def write_clip(
    path: Path,
    frames: int,
    *,
    size: tuple[int, int] = (128, 64),
    fps: int = 25,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
) -> Path:
    """Encode numbered frames; `pts` in milliseconds makes the rate variable."""
    width, height = size
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_picture(number, width, height), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
