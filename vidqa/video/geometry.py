"""Crop, orientation and pixel aspect of decoded pictures. Arithmetic on plain numbers."""

from dataclasses import dataclass
from struct import unpack


@dataclass(frozen=True, slots=True)
class Crop:
    """Pixels to cut off each side of a picture as it is stored."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0


@dataclass(frozen=True, slots=True)
class Orientation:
    """A right-angled turn or mirror: rows become columns first (`transposed`), then sides are swapped."""

    transposed: bool = False
    left_right: bool = False
    top_bottom: bool = False

    @property
    def mirrored(self) -> bool:
        """Whether text would be mirrored without this."""
        return self.transposed ^ self.left_right ^ self.top_bottom

    @property
    def degrees(self) -> int:
        """Degrees to the left, after mirroring left and right if `mirrored`."""
        if not self.transposed:
            return 180 if self.top_bottom else 0
        return 90 if self.top_bottom == (not self.mirrored) else 270


def orientation(matrix: bytes) -> Orientation:
    """Return the nearest right-angled orientation of a display matrix (ISO 14496-12, 6.2.2), nine 32-bit numbers.

    The matrix sends (x, y) to (ax + cy, bx + dy).
    """
    if len(matrix) != 36:
        return Orientation()
    a, b, _, c, d, *_ = unpack("=9i", matrix)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def quarter_turn(degrees: float) -> Orientation:
    """Return the nearest right-angled orientation of a turn to the left, without a mirror."""
    quarters = round(degrees / 90) % 4
    return Orientation(quarters in (1, 3), quarters in (2, 3), quarters in (1, 2))


@dataclass(frozen=True, slots=True)
class Shape:
    """The stored size in pixels of a stream's first picture, and how it is shown.

    `on_white`: the decoder has drawn it on white already.
    """

    width: int
    height: int
    crop: Crop
    pixel_aspect: float
    orientation: Orientation
    on_white: bool = False

    @property
    def cropped_size(self) -> tuple[int, int]:
        """(width, height) after the crop."""
        crop = self.crop
        return self.width - crop.left - crop.right, self.height - crop.top - crop.bottom

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) in square pixels, upright."""
        width, height = self.cropped_size
        wide = max(round(width * self.pixel_aspect), 1)
        return (height, wide) if self.orientation.transposed else (wide, height)

    def fitted_size(self, width: int, height: int, pixel_aspect: float | None = None) -> tuple[int, int]:
        """Return (width, height) of another picture scaled to fit into the cropped size, its aspect unchanged.

        The result is in pixels of the stream's first picture, whose pixel aspect it has unless another is given.
        """
        wide, tall = self.cropped_size
        width = max(round(width * (pixel_aspect or self.pixel_aspect) / self.pixel_aspect), 1)
        scale = min(wide / width, tall / height)
        return min(max(round(width * scale), 1), wide), min(max(round(height * scale), 1), tall)


def usable_crop(crop: Crop, width: int, height: int) -> Crop:
    """Return the crop, or no crop if nothing would be left."""
    return crop if crop.left + crop.right < width and crop.top + crop.bottom < height else Crop()
