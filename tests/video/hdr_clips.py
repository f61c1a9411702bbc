"""Pictures and clips coded as PQ or HLG of BT.2020, from light in cd/m². The formulas are BT.2100's, written anew."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.clips import encode

PQ, HLG = 16, 18
BT2020, BT709 = 9, 1
RED, BLUE = 0.2627, 0.0593  # BT.2020's weights of luminance

# Linear BT.709 to BT.2020 (BT.2087).
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def pq_code(nits: Any) -> Any:
    """The PQ code from 0 to 1 of light in cd/m²."""
    power = (np.asarray(nits, float) / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg_code(nits: np.ndarray) -> np.ndarray:
    """The HLG codes from 0 to 1 of colours (n, 3) in cd/m² on a display of 1,000 cd/m²."""
    shown = np.asarray(nits, float) / 1000
    bright = np.maximum(shown @ [RED, 1 - RED - BLUE, BLUE], 1e-12)
    scene = shown * bright[:, None] ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-12)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


def limited(codes: np.ndarray) -> np.ndarray:
    """Y, Cb, Cr (n, 3) of 10 bits in limited range for R'G'B' of BT.2020 from 0 to 1."""
    luma = codes @ [RED, 1 - RED - BLUE, BLUE]
    blue, red = (codes[:, 2] - luma) / (2 - 2 * BLUE), (codes[:, 0] - luma) / (2 - 2 * RED)
    return np.rint(np.stack([64 + 876 * luma, 512 + 896 * blue, 512 + 896 * red], -1)).astype(np.uint16)


def columns(
    yuv: np.ndarray, transfer: int, *, pixels: str = "yuv444p10le", primaries: int = BT2020, height: int = 32
) -> av.VideoFrame:
    """A frame of 4:4:4 whose columns have these values (n, 3) of 10 bits."""
    frame = av.VideoFrame(len(yuv), height, pixels)
    for number, plane in enumerate(frame.planes):
        values = yuv[:, number] if number < 3 else np.full(len(yuv), 1023, np.uint16)
        lines = np.zeros((height, plane.line_size // 2), np.uint16)
        lines[:, : len(yuv)] = values
        plane.update(lines.tobytes())
    frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = transfer, primaries, BT2020, 1
    return frame


def hdr_clip(
    path: Path, frames: Sequence[av.VideoFrame], codec: str = "ffv1", *, options: dict[str, str] | None = None
) -> Path:
    """A clip of frames, tagged as the first one is; ffv1 keeps every value."""
    first = frames[0]
    tags = {name: getattr(first, name) for name in ("color_trc", "color_primaries", "colorspace", "color_range")}
    return encode(path, frames, codec, pixels=first.format.name, options=options, **tags)
