"""Pictures as characters: the upper half block shows two pixels in a cell."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    import numpy

_UPPER = "▀"


@dataclass(frozen=True, slots=True)
class HalfBlockImage:
    """A small picture. `rgb` has 3 · width · height bytes, row by row from the top."""

    width: int
    height: int
    rgb: bytes


def shrink(rgb: "numpy.ndarray", width: int, height: int) -> HalfBlockImage:
    """Scale a uint8 array of shape (height, width, 3) to fit into width × height pixels."""
    from PIL import Image

    scale = min(width / rgb.shape[1], height / rgb.shape[0])
    size = (max(round(rgb.shape[1] * scale), 1), max(round(rgb.shape[0] * scale), 1))
    small = Image.fromarray(rgb).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
    return HalfBlockImage(*size, small.tobytes())


def fit(picture: HalfBlockImage, columns: int, rows: int) -> HalfBlockImage:
    """Scale the picture down to fit into columns × rows cells."""
    if picture.width <= columns and picture.height <= rows * 2:
        return picture
    from PIL import Image

    scale = min(columns / picture.width, rows * 2 / picture.height)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale / 2) * 2, 2))  # whole cells
    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    return HalfBlockImage(*size, image.resize(size, Image.Resampling.BOX).tobytes())


def half_blocks(picture: HalfBlockImage) -> list[list[Segment]]:
    """Return a line of segments for each two rows of pixels; below an odd last row the background shows."""
    return [[_cell(picture, x, y) for x in range(picture.width)] for y in range(0, picture.height, 2)]


def _cell(picture: HalfBlockImage, x: int, y: int) -> Segment:
    below = _color(picture, x, y + 1) if y + 1 < picture.height else None
    return Segment(_UPPER, Style(color=_color(picture, x, y), bgcolor=below))


def _color(picture: HalfBlockImage, x: int, y: int) -> Color:
    offset = 3 * (y * picture.width + x)
    return Color.from_rgb(*picture.rgb[offset : offset + 3])
