"""Rows of test_facts.py: how a file is made and its facts, computed by hand; those of geometry and colours."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.video import made_files as made


@dataclass(frozen=True)
class Range:
    """A question about `start` to `end`: the first and the last number that is seen, and their times in seconds."""

    start: float
    end: float | None
    numbers: tuple[int, int]
    seconds: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Row:
    """How a file is made, and what is true of it."""

    name: str
    make: Callable[[Path], Path]
    facts: dict[str, Any]
    ranges: tuple[Range, ...] = field(default=())
    seen: tuple[tuple[int, tuple[tuple[int, int, int], ...]], ...] = field(default=())  # colours near the four corners


def facts(frames: int, seconds: float, fps: float, constant: bool, **others: Any) -> dict[str, Any]:
    return {"frame_count": frames, "duration_seconds": seconds, "fps": fps, "constant_rate": constant} | others


R, G, B, W, K = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
MIRRORED = ("The file says that its pictures are shown mirrored, and so they are.",)
# The display matrix's a, b, c, d; the quarters as shown, row by row; degrees to the left, after any mirror.
TURNS = {
    "as-stored": ((1, 0, 0, 1), (R, G, B, W), 0, False),
    "left": ((0, -1, 1, 0), (G, W, R, B), 90, False),
    "over": ((-1, 0, 0, -1), (W, B, G, R), 180, False),
    "right": ((0, 1, -1, 0), (B, R, W, G), 270, False),
    "left-right": ((-1, 0, 0, 1), (G, R, W, B), 0, True),
    "top-bottom": ((1, 0, 0, -1), (B, W, R, G), 180, True),
    "transposed": ((0, 1, 1, 0), (R, B, G, W), 90, True),
    "anti-transposed": ((0, -1, -1, 0), (W, G, B, R), 270, True),
}


def turned(name: str) -> Row:
    matrix, quarters, degrees, mirrored = TURNS[name]
    width, height = (64, 128) if matrix[0] == 0 else (128, 64)
    return Row(
        f"{name}.mp4",
        lambda path: made.oriented(path, matrix),
        facts(3, 0.12, 25, constant=True, width=width, height=height, rotation_degrees=degrees)
        | {"notes": MIRRORED if mirrored else ()},
        seen=((0, quarters), (2, quarters)),
    )


def exif_turned(name: str, orientation: int, turn: str) -> Row:
    matrix, quarters, degrees, _ = TURNS[turn]
    width, height = (64, 128) if matrix[0] == 0 else (128, 64)
    return Row(
        name,
        lambda path: made.motion_jpeg(path, orientation),
        facts(3, 0.12, 25, constant=True, width=width, height=height, rotation_degrees=degrees, notes=()),
        seen=((0, quarters), (2, quarters)),
    )


GEOMETRY = [
    *map(turned, TURNS),
    exif_turned("exif-as-stored.mov", 1, "as-stored"),
    exif_turned("exif-over.avi", 3, "over"),
    exif_turned("exif-right.mov", 6, "right"),
    exif_turned("exif-left.mkv", 8, "left"),
    Row(
        "aperture.mp4", lambda path: made.with_aperture(path, (100, 1, 40, 1, 0, 1, 0, 1)),
        facts(3, 0.12, 25, constant=True, width=100, height=40, coded_width=128, coded_height=64, notes=()),
        seen=((0, (R, G, B, W)), (2, (R, G, B, W))),
    ),
    Row(  # its middle is 32 to the left of the picture's, and 16 above it
        "aperture-off.mov", lambda path: made.with_aperture(path, (64, 1, 32, 1, -32, 1, -16, 1)),
        facts(3, 0.12, 25, constant=True, width=64, height=32), seen=((0, (R, R, R, R)),),
    ),
    Row(  # 14 and 13.5 pixels beside 100.5: the half one stays
        "aperture-halves.mp4", lambda path: made.with_aperture(path, (201, 2, 80, 2, 1, 4, 0, 1)),
        facts(3, 0.12, 25, constant=True, width=101, height=40), seen=((0, (R, G, B, W)),),
    ),
    Row(
        "aperture-beyond.mp4", lambda path: made.with_aperture(path, (130, 1, 64, 1, 0, 1, 0, 1)),
        facts(3, 0.12, 25, constant=True, width=128, height=64), seen=((0, (R, G, B, W)),),
    ),
    Row(
        "aperture-of-nothing.mp4", lambda path: made.with_aperture(path, (0, 0, 64, 1, 0, 1, 0, 1)),
        facts(3, 0.12, 25, constant=True, width=128, height=64), seen=((0, (R, G, B, W)),),
    ),
    Row(
        "crop.mkv", lambda path: made.with_crop(path, top=24),
        facts(3, 0.12, 25, constant=True, width=128, height=40, coded_height=64, notes=()),
        seen=((0, (R, G, B, W)),),
    ),
    Row(
        "larger-later.h264", lambda path: made.resized(path, (128, 64), (256, 128)),
        facts(6, 0.24, 25, constant=True, width=128, height=64), seen=((0, (R, G, B, W)), (5, (R, G, B, W))),
    ),
    Row(  # 64×64 in 128×64: black beside it
        "square-later.h264", lambda path: made.resized(path, (128, 64), (64, 64)),
        facts(6, 0.24, 25, constant=True, width=128, height=64), seen=((0, (R, G, B, W)), (5, (K, K, K, K))),
    ),
]  # fmt: skip


def transparent(name: str, codec: str, pixels: str, frames: int = 3) -> Row:
    return Row(
        name,
        lambda path: made.half_transparent(path, codec, pixels, frames),
        facts(frames, frames / 25, 25, constant=True, notes=()),
        seen=((0, (R, W, R, W)), (frames - 1, (R, W, R, W))),
    )


# Red by the definitions of BT.601 and BT.709, in limited range.
RED_601, RED_709 = (81, 90, 240), (63, 102, 240)
UNTAGGED = ("The file does not say how its colours are coded: read as BT.709, as players do from 720 lines on.",)
COLOURS = [
    transparent("alpha.webm", "libvpx-vp9", "yuva420p", 40),  # 40: the last one is sought
    transparent("alpha-vp8.webm", "libvpx", "yuva420p", 40),
    transparent("alpha-vp8.mkv", "libvpx", "yuva420p"),
    transparent("animation.mov", "qtrle", "argb"),
    transparent("prores.mov", "prores_ks", "yuva444p10le"),
    transparent("png.mov", "png", "rgba"),
    transparent("ffv1.mkv", "ffv1", "yuva420p"),
    Row(
        "untagged-hd.mp4", lambda path: made.flat(path, (1280, 720), RED_709),
        facts(3, 0.12, 25, constant=True, notes=UNTAGGED), seen=((2, (R, R, R, R)),),
    ),
    Row(
        "untagged-sd.mp4", lambda path: made.flat(path, (1280, 704), RED_601),
        facts(3, 0.12, 25, constant=True, notes=()), seen=((2, (R, R, R, R)),),
    ),
    Row(  # 6 is AVCOL_SPC_SMPTE170M, BT.601's
        "tagged-hd.mp4", lambda path: made.flat(path, (1280, 720), RED_601, colorspace=6),
        facts(3, 0.12, 25, constant=True, notes=()), seen=((2, (R, R, R, R)),),
    ),
]  # fmt: skip
