"""Does a video look like the clips that a model was trained on? Statistics of its pictures, compared with limits.

For models that were trained on drawn clips alone: one flat shape of a few paints before a gray background, which may
be graded, noisy or moving. A picture is reduced to cells of a few pixels, in which noise averages out. The limits come
from the model's folder, so a model without them is never checked.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import pi

import numpy as np

from vidqa.models.training_domain import TrainingDomain

Array = np.ndarray
_CELLS = 20  # along the shorter side of a picture
_MOST_CELLS = 64  # along the longer side
_COLORED = 40.0  # levels of distance from the background's color
_HUE_RADIANS = np.radians(30)  # between a cell's color and a paint's, seen from the background's color
_COLORED_PIXEL = 60  # levels between its red and green, or green and blue
_HARD = 60.0  # levels between neighboring cells
_MOST_PICTURES = 5
_FEWEST_CELLS = 4  # of a shape whose form can be judged


@dataclass(frozen=True, slots=True)
class PictureStatistics:
    """What is measured of a picture; colors in levels of 255, shares from 0 to 1.

    `background_color`: the median color's distance from gray. `stray_color`: cells that are colored otherwise than the
    paint that most colored cells have. `shape_share`: cells of this paint. `spread`: how much further they lie apart
    than the cells of a disk, which has 1. `roughness`: 95th percentile of the difference in brightness of neighboring
    cells away from color; `hard_edges`: share of these differences that are above 60 levels.
    `sharpness`: 95th percentile less four medians of the difference in brightness of neighboring pixels; noise has less
    than 0, letters and the outlines of things have more.
    """

    background_color: float
    stray_color: float
    shape_share: float
    spread: float
    roughness: float
    hard_edges: float
    sharpness: float


def measure(picture: Array, paints: Array) -> PictureStatistics:
    """Measure a picture (height, width, 3) uint8; `paints` (n, 3) are the colors of shapes, in levels of 255."""
    cells = _cells(picture)
    opponent = _opponent(cells)
    background = np.median(opponent.reshape(-1, 2), axis=0)
    offset = opponent - background
    colored = np.hypot(offset[..., 0], offset[..., 1]) > _COLORED
    alike = colored[..., None] & (_angles(offset, _opponent(paints) - background) < _HUE_RADIANS)
    shape = alike[..., alike.sum((0, 1)).argmax()]
    steps = _brightness_steps(cells.mean(-1), colored)
    return PictureStatistics(
        background_color=float(np.hypot(*background)),
        stray_color=float((colored & ~shape).mean()),
        shape_share=float(shape.mean()),
        spread=_spread(shape),
        roughness=float(np.percentile(steps, 95)) if len(steps) else 0.0,
        hard_edges=float((steps > _HARD).mean()) if len(steps) else 0.0,
        sharpness=_sharpness(picture),
    )


def _cells(picture: Array) -> Array:
    """Return the means (rows, columns, 3) of square cells; pixels that fill no cell at the end are left out."""
    height, width, _ = picture.shape
    side = max(min(height, width) // _CELLS, -(-max(height, width) // _MOST_CELLS), 1)
    rows, columns = max(height // side, 1), max(width // side, 1)
    whole = picture[: rows * side, : columns * side].reshape(rows, -1, min(columns * side, width) * 3)
    bands = whole.sum(1, dtype=np.uint32).reshape(rows, columns, -1, 3)  # whole rows first: three times as fast
    means: Array = bands.sum(2) / np.float32(whole.shape[1] * bands.shape[2])
    return means


def _opponent(colors: Array) -> Array:
    """Return red against green, and yellow against blue (..., 2): both are 0 for gray."""
    red, green, blue = colors[..., 0], colors[..., 1], colors[..., 2]
    return np.stack([red - green, (red + green) / 2 - blue], -1)


def _angles(offsets: Array, rays: Array) -> Array:
    """Return the angles (rows, columns, n) in radians between offsets (rows, columns, 2) and rays (n, 2)."""
    turn = np.arctan2(offsets[..., 1], offsets[..., 0])[..., None] - np.arctan2(rays[:, 1], rays[:, 0])
    angles: Array = np.abs((turn + pi) % (2 * pi) - pi)
    return angles


def _spread(shape: Array) -> float:
    """Return the area of the ellipse with the cells' second moments over the cells' own; 1 for too few cells."""
    rows, columns = np.nonzero(shape)
    if len(rows) < _FEWEST_CELLS:
        return 1.0
    moments = np.cov(np.stack([rows, columns]), bias=True) + np.eye(2) / 12  # of a cell itself
    return float(4 * pi * np.sqrt(np.linalg.det(moments)) / len(rows))


def _brightness_steps(brightness: Array, colored: Array) -> Array:
    """Return differences between neighbors away from colored cells.

    The roughest row and column of differences are left out: a background that moves out of the picture and comes back
    in on the other side has an edge there.
    """
    near = np.pad(colored, 1)
    near = near[1:-1] | near[:-2] | near[2:]
    away = ~(near[:, 1:-1] | near[:, :-2] | near[:, 2:])
    down = np.where(away[1:] & away[:-1], np.abs(np.diff(brightness, axis=0)), np.nan)
    across = np.where(away[:, 1:] & away[:, :-1], np.abs(np.diff(brightness, axis=1)), np.nan).T
    kept = [np.delete(one, np.nansum(one, axis=1).argmax(), axis=0).ravel() for one in (down, across) if len(one)]
    steps = np.concatenate(kept) if kept else np.empty(0)
    known: Array = steps[~np.isnan(steps)]
    return known


def _sharpness(picture: Array) -> float:
    """Return the sharpness of every third row, without colored pixels."""
    rows = picture[::3].astype(np.int16)
    red, green, blue = rows[..., 0], rows[..., 1], rows[..., 2]
    gray = (np.abs(red - green) < _COLORED_PIXEL) & (np.abs(green - blue) < _COLORED_PIXEL)
    steps = np.abs(np.diff(red + green + blue, axis=1))[gray[:, 1:] & gray[:, :-1]]
    if not len(steps):
        return 0.0
    middle, high = np.percentile(steps, (50, 95)) / 3
    return float(high - 4 * middle)


class DomainCheck:
    """Judges a video of `total` pictures, one after the other, by at most 5 of them, less than a millisecond each."""

    def __init__(self, domain: TrainingDomain, total: int) -> None:
        self._domain, self._paints = domain, np.array(domain.paints, dtype=np.float32)
        self._total, self._most = max(total, 1), min(_MOST_PICTURES, max(total, 1))
        self._passed = self._seen = self._unlike = 0

    def add(self, picture: Array) -> None:
        """Take the next picture (height, width, 3) uint8."""
        self._passed += 1
        if self._passed * self._most // self._total > (self._passed - 1) * self._most // self._total:  # evenly
            self._seen += 1
            self._unlike += self._domain.exceeded(asdict(measure(picture, self._paints)))

    @property
    def out_of_domain(self) -> bool:
        """Whether more pictures than the domain allows are unlike it."""
        return self._unlike > self._domain.unlike_share * self._seen


def is_out_of_domain(domain: TrainingDomain, pictures: Sequence[Array]) -> bool:
    """Return whether pictures (height, width, 3) uint8 of a video are unlike those that a model knows."""
    check = DomainCheck(domain, len(pictures))
    for picture in pictures:
        check.add(picture)
    return check.out_of_domain
