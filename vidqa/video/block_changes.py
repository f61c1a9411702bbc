"""Comparison of pictures block by block: the share of blocks that changed, without noise. Needs numpy."""

from typing import Any

import numpy as np

GRID = 32  # blocks along the longer side
# A block changes when its mean in one plane moves by this many medians of its usual differences: 6 standard deviations
# of Gaussian noise. The limits, in levels of 255, are above the steps of a codec, and below those of a visible object.
_MEDIANS, _LEAST_LEVELS, _MOST_LEVELS = 9.0, 4.0, 14.0
_NOISE_STEP = 0.04  # levels by which a block's estimated median follows a difference
_REFERENCE_SHARE = 0.2  # of a new picture in the average that unchanged blocks are compared with


def grid_size(width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) in blocks of a picture's grid."""
    longest = max(width, height)
    return max(round(width * GRID / longest), 1), max(round(height * GRID / longest), 1)


class BlockChanges:
    """Compares each picture's blocks with an average of the ones before it, and learns each block's noise.

    The noise is a running median of a block's differences, which a short event does not move, or the median of all
    blocks in one picture, which rises where an encoder starts anew at a keyframe.
    """

    def __init__(self) -> None:
        self.reference: Any = None
        self._noise: Any = None

    def restart(self) -> None:
        """Compare the next picture with none; what was learned of the noise stays."""
        self.reference = None

    def add(self, means: "np.ndarray") -> float:
        """Return the share of blocks that changed in a picture, given its blocks' means (planes, rows, columns).

        It is 0 for the first picture. All pictures have one shape.
        """
        means = means.astype(np.float32)
        if self._noise is None:
            self._noise = np.zeros_like(means)
        if self.reference is None:
            self.reference = means
            return 0.0
        step = means - self.reference
        difference = np.abs(step)
        if difference.max() <= _LEAST_LEVELS:  # most pictures of a still video: no median is needed
            self.reference += _REFERENCE_SHARE * step
            changed_share = 0.0
        else:
            changed = self._changed(difference)
            self.reference += np.where(changed, 1.0, _REFERENCE_SHARE).astype(np.float32) * step
            changed_share = float(changed.mean())
        self._noise += _NOISE_STEP * np.sign(difference - self._noise)
        return changed_share

    def between(self, means: "np.ndarray", other: "np.ndarray") -> float:
        """Return the share of blocks that differ between two pictures; learns nothing."""
        return float(self._changed(np.abs(means.astype(np.float32) - other)).mean())

    def _changed(self, difference: "np.ndarray") -> "np.ndarray":
        """Return which blocks (rows, columns) differ by more than noise."""
        limit = np.clip(_MEDIANS * np.maximum(self._noise, _median(difference)), _LEAST_LEVELS, _MOST_LEVELS)
        changed: np.ndarray = (difference > limit).any(0)
        return changed


def _median(values: "np.ndarray") -> "np.ndarray":
    """Return the upper median of each plane, (planes, 1, 1)."""
    flat = values.reshape(len(values), -1)
    middle = flat.shape[1] // 2
    found: np.ndarray = np.partition(flat, middle, axis=1)[:, middle]
    return found[:, None, None]
