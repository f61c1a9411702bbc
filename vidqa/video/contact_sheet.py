"""Contact sheets: one PNG of the frames that a model gets, at their true size, with a caption below each.

Frames that do not fit on one sheet are refused.
"""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vidqa.errors import UsageError
from vidqa.utils.atomic_write import replace_file
from vidqa.utils.units import format_timestamp
from vidqa.video.signal_strip import STRIP_HEIGHT, SignalStrip

if TYPE_CHECKING:
    import numpy

MAX_SHEET_SIDE = 16_384  # pixels: the most that common viewers and graphics cards show
MAX_SHEET_PIXELS = 178_000_000  # the most that Pillow opens without a decompression bomb error
_GAP, _STRIP = 6, 20  # pixels around each cell, and of each line of text
_FONT_SIZE = 14
_BACKGROUND, _TEXT_COLOUR = (24, 24, 24), (232, 232, 232)
_ASPECT = 1.6  # of the sheet, unless its columns are given


@dataclass(frozen=True, slots=True)
class SheetLayout:
    """The grid of pictures on a sheet, in pixels; a cell is at least as wide as its caption."""

    columns: int
    rows: int
    cell_width: int
    cell_height: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the sheet: the header line, then the cells."""
        width = self.columns * (self.cell_width + _GAP) + _GAP
        return width, self.rows * (self.cell_height + _GAP) + _STRIP + 2 * _GAP

    @property
    def fits(self) -> bool:
        """Whether the sheet is within the limits."""
        width, height = self.size
        return max(width, height) <= MAX_SHEET_SIDE and width * height <= MAX_SHEET_PIXELS

    def corner(self, index: int) -> tuple[int, int]:
        """Return (x, y) of a picture's upper left pixel; places count from 0."""
        row, column = divmod(index, self.columns)
        return _GAP + column * (self.cell_width + _GAP), _STRIP + 2 * _GAP + row * (self.cell_height + _GAP)


def write_sheet(
    pictures: Sequence["numpy.ndarray"],
    times_seconds: Sequence[float],
    path: str,
    *,
    columns: int | None = None,
    strip: SignalStrip | None = None,
    captions: Sequence[str] = (),
) -> tuple[int, int]:
    """Write pictures (height, width, 3) uint8 of one size as one PNG, in their order; return its (width, height).

    Below each is its caption, else its number and time. The video's change is drawn as a `strip` below all of them. If
    a damaged video gives fewer pictures than times, the last times are ignored. Raises UsageError for a sheet that
    would be too large or cannot be written, ValueError for pictures that differ in size.
    """
    from PIL import Image, ImageDraw, ImageFont

    check_target(path)
    height, width = _common_size(pictures)
    times = times_seconds[: len(pictures)]
    captions = captions or [f"#{index + 1}  {format_timestamp(time)}" for index, time in enumerate(times)]
    font = ImageFont.load_default(_FONT_SIZE)
    widest = math.ceil(max(font.getlength(caption) for caption in captions))
    layout = lay_out(len(pictures), max(width, widest), height + _STRIP, columns)
    sheet = Image.new("RGB", layout.size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    title = f"{len(pictures)} frame{'s' * (len(pictures) != 1)} of {width}x{height}"  # the font has no ×
    draw.text((_GAP, _GAP), title, _TEXT_COLOUR, font)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = layout.corner(index)
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.text((x, y + height + 2), caption, _TEXT_COLOUR, font)
    if strip is not None:
        grid, (wide, tall) = sheet, layout.size
        sheet = Image.new("RGB", (wide, tall + STRIP_HEIGHT), _BACKGROUND)
        sheet.paste(grid)
        sheet.paste(strip.draw(wide, times_seconds), (0, tall))
    png = io.BytesIO()
    sheet.save(png, "PNG")
    target = Path(path)
    try:
        replace_file(target, [png.getvalue()], target.with_name(f".vidqa-{os.getpid()}.part"))
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.", "Choose another place.") from error
    return sheet.size


def check_target(path: str) -> None:
    """Raise UsageError if a path cannot be written as a PNG."""
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise UsageError(f"{path} does not end in .png, and a sheet is a PNG.", f"Write to {target.stem}.png.")
    if os.path.isdir(target):
        raise UsageError(f"{path} is a folder.", "Give a file name.")
    if not (os.path.isdir(target.parent) and os.access(target.parent, os.W_OK)):
        what = "may not be written" if os.path.isdir(target.parent) else "does not exist"
        raise UsageError(f"The folder {target.parent} {what}.", "Choose another place with -o.")


def _common_size(pictures: Sequence["numpy.ndarray"]) -> tuple[int, int]:
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1 or any(picture.dtype != "uint8" for picture in pictures):
        raise ValueError(f"not pictures of one size in uint8: {sorted(shapes)}")
    height, width, _ = shapes.pop()
    return height, width


def lay_out(count: int, cell_width: int, cell_height: int, columns: int | None) -> SheetLayout:
    """Return a grid for `count` cells, about 16:10 unless `columns` is given; raise UsageError if it is too large."""
    if columns is not None and columns < 1:
        raise UsageError(f"A sheet of {columns} columns is empty.", "Use 1 or more.")
    choices = range(1, count + 1) if columns is None else (min(columns, count),)
    grids = [SheetLayout(wide, -(-count // wide), cell_width, cell_height) for wide in choices]
    best = min(grids, key=lambda grid: (not grid.fits, abs(math.log(grid.size[0] / grid.size[1] / _ASPECT))))
    if best.fits:
        return best
    width, height = best.size
    raise UsageError(
        f"{count} frames need a sheet of {width}×{height} pixels; it may have {MAX_SHEET_SIDE} on a side and "
        f"{MAX_SHEET_PIXELS // 10**6} million in all.",
        "Show fewer with --frames, --start and --end, or smaller ones with --size"
        + (", or leave out --columns." if columns else "."),
    )
