"""Pictures as characters: half and quarter blocks show 2×2 pixels in a cell, in the two colours that fit them best."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.color import Color
from rich.segment import Segment
from rich.style import Style

if TYPE_CHECKING:
    import numpy

# Pixels of a cell with the foreground's colour (upper left, upper right, lower left, lower right), and the character.
# Each division in two has one entry; the half block is first, so that cells of one colour are half blocks.
_BLOCKS = (
    ((1, 1, 0, 0), "▀"), ((1, 0, 1, 0), "▌"), ((1, 0, 0, 1), "▚"), ((1, 0, 0, 0), "▘"),
    ((0, 1, 0, 0), "▝"), ((0, 0, 1, 0), "▖"), ((0, 0, 0, 1), "▗"),
)  # fmt: skip


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
    """Scale the picture to fit into columns × rows cells of 2×2 pixels; a cell is twice as high as wide."""
    from PIL import Image

    scale = min(columns / picture.width, rows * 2 / picture.height)
    size = (2 * max(round(picture.width * scale), 1), 2 * max(round(picture.height * scale / 2), 1))
    image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)
    # Lanczos keeps edges sharp; enlarged pixels stay squares.
    kind = Image.Resampling.LANCZOS if size[0] <= picture.width else Image.Resampling.NEAREST
    return HalfBlockImage(*size, image.resize(size, kind).tobytes())


def half_blocks(picture: HalfBlockImage) -> list[list[Segment]]:
    """Return a line of segments for each two rows of pixels; width and height are even."""
    shapes, front, back = _two_colours(picture)
    return [
        [
            Segment(_BLOCKS[shape][1], Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below)))
            for shape, above, below in zip(*line, strict=True)
        ]
        for line in zip(shapes.tolist(), front.tolist(), back.tolist(), strict=True)
    ]


def _two_colours(picture: HalfBlockImage) -> tuple[Any, Any, Any]:
    """Return for each cell the index in _BLOCKS with the least squared error, and the mean colours of its two parts.

    Shapes (rows, columns), and (rows, columns, 3) for the colours of foreground and background.
    """
    import numpy

    rows, columns = picture.height // 2, picture.width // 2
    pixels = numpy.frombuffer(picture.rgb, numpy.uint8).reshape(rows, 2, columns, 2, 3)
    cells = pixels.transpose(0, 2, 1, 3, 4).reshape(rows, columns, 4, 3).astype(numpy.float32)
    masks = numpy.array([mask for mask, _ in _BLOCKS], numpy.float32)  # (blocks, 4)
    front = numpy.einsum("bp,rcpk->rcbk", masks / masks.sum(1, keepdims=True), cells)
    back = numpy.einsum("bp,rcpk->rcbk", (1 - masks) / (1 - masks).sum(1, keepdims=True), cells)
    # The squared error of a part is its sum of squares less its count times its mean squared: the first is the same
    # for every division.
    counts = masks.sum(1)
    kept = counts * (front**2).sum(-1) + (4 - counts) * (back**2).sum(-1)  # (rows, columns, blocks)
    best = numpy.round(kept, 1).argmax(-1)
    chosen = best[..., None, None]
    colours = [numpy.take_along_axis(part, chosen, 2)[:, :, 0].round().astype(int) for part in (front, back)]
    return best, *colours
