"""Packet sizes as a sign of change: a codec spends more bytes where a picture differs from those before it."""

from collections.abc import Sequence

import numpy as np

_NEIGHBOURS = 60  # packets on each side whose median a size is compared with
_ALIKE = 3  # groups whose packets' sizes are most similar
_STEP = 15  # packets that share a median
_LEAST_BYTES, _LEAST_SHARE, _DEVIATIONS = 8.0, 0.05, 3.0  # the usual deviation is at least 8 bytes and 5 %


def size_peaks(sizes: Sequence[int], keyframes: Sequence[bool]) -> list[float]:
    """Return the largest rise of a packet's size within each group, in usual deviations above the median nearby.

    `sizes` are the bytes of packets in the order of decoding; a group begins with each packet that is in `keyframes`,
    whose own size does not count. Empty without keyframes.
    """
    starts = np.flatnonzero(np.asarray(keyframes, bool))
    if not len(starts):
        return []
    others = np.flatnonzero(~np.asarray(keyframes, bool))
    rises = _rises(np.asarray(sizes, np.float64)[others])
    peaks = np.zeros(len(starts))
    groups = np.maximum(np.searchsorted(starts, others, side="right") - 1, 0)
    np.maximum.at(peaks, groups, rises)
    found: list[float] = peaks.tolist()
    return found


def mean_sizes(sizes: Sequence[int], keyframes: Sequence[bool]) -> list[float]:
    """Return the mean bytes of each group's packets but for its keyframe; 0 for a group without others."""
    starts = np.flatnonzero(np.asarray(keyframes, bool))
    ends = [*starts[1:].tolist(), len(sizes)]
    sums = np.cumsum([0, *sizes])
    return [
        float(sums[end] - sums[start + 1]) / max(end - start - 1, 1)
        for start, end in zip(starts.tolist(), ends, strict=True)
    ]


def alike(values: Sequence[float], sizes: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return for each size in `others` the median of the `values` that belong to the three most similar `sizes`.

    Sizes are similar by their ratio; of equal ones the earlier count.
    """
    known, middle = np.log(np.asarray(sizes, np.float64) + 1), min(_ALIKE, len(values)) // 2
    found = []
    for size in others:
        nearest = np.argsort(np.abs(known - np.log(size + 1)), kind="stable")[:_ALIKE]
        found.append(float(np.sort(np.asarray(values, np.float64)[nearest])[middle]))
    return found


def _rises(sizes: "np.ndarray") -> "np.ndarray":
    """Return each size's distance above the median of its neighbours, in usual deviations; 0 below it."""
    median = _running_median(sizes)
    usual = _DEVIATIONS * _running_median(np.abs(sizes - median)) + _LEAST_BYTES + _LEAST_SHARE * median
    rises: np.ndarray = np.maximum(sizes - median, 0.0) / usual
    return rises


def _running_median(values: "np.ndarray") -> "np.ndarray":
    median = np.empty_like(values)
    for first in range(0, len(values), _STEP):
        near = values[max(first - _NEIGHBOURS, 0) : first + _STEP + _NEIGHBOURS]
        median[first : first + _STEP] = np.median(near)
    return median
