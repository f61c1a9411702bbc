"""Scene detection in a video: decodes sampled frames and compares their color histograms."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vidqa.batch.clip_record import Span
from vidqa.batch.segmentation import Signature, cut_at_scenes, measure_changes, sample_indices
from vidqa.video.reader import VideoReader

if TYPE_CHECKING:
    import numpy

_FRAMES_PER_SECOND = 12.0  # at lower rates motion between two frames is as large as a cut
_PIXELS = 64  # of a side, enough to count colors
_GRID = 4  # cells of a side, so that the same colors in other places differ
_LEVELS = 8  # of each channel


def find_scenes(reader: VideoReader) -> list[Span]:
    """Return the scenes of a video, up to where it can be decoded; raises VideoError children."""
    indices = sample_indices(reader.info.pts_seconds, _FRAMES_PER_SECOND)
    changes = measure_changes(_signatures(reader, indices))
    reader.check_coverage(indices)
    is_whole = len(changes.times) == len(indices)
    return cut_at_scenes(changes, reader.info.duration_seconds if is_whole else changes.times[-1])


def _signatures(reader: VideoReader, indices: Sequence[int]) -> Iterator[tuple[float, Signature]]:
    for frame in reader.frames(indices):
        yield frame.timestamp_seconds, signature(frame.rgb)


def signature(rgb: "numpy.ndarray") -> Signature:
    """Return the histogram of each channel in each cell of a frame (height, width, 3) uint8; it sums to 1."""
    import numpy as np

    height, width, _ = rgb.shape
    small = rgb[:: max(1, height // _PIXELS), :: max(1, width // _PIXELS)]
    rows, columns, channels = (np.arange(count) for count in small.shape)
    cells = rows[:, None] * _GRID // len(rows) * _GRID + columns * _GRID // len(columns)
    bins = (cells[:, :, None] * 3 + channels) * _LEVELS + small // (256 // _LEVELS)
    counts = np.bincount(bins.ravel(), minlength=_GRID**2 * 3 * _LEVELS)
    shares: list[float] = (counts / small.size).tolist()
    return shares
