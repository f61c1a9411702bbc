"""The scan for change of pictures that are read one by one: image files, folders of them, and frames in memory."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
from PIL import Image

from vidqa.types import Frame, VideoInfo
from vidqa.video.block_changes import BlockChanges, grid_size
from vidqa.video.change_signal import Scan, make_signal

_TIMED_FRAMES = 8  # by which the time of a scan of all is predicted


def scan_frames(info: VideoInfo, frames: Callable[[Sequence[int]], Iterator[Frame]], limit_seconds: float) -> Scan:
    """Scan all frames, or evenly spread ones where that would take longer than `limit_seconds`.

    `frames` yields a Frame per ascending index, until the end or the damage.
    """
    changes, grid = BlockChanges(), grid_size(info.width, info.height)
    began, done, shares = time.monotonic(), list[int](), list[float]()
    chosen: Sequence[int] = range(info.frame_count)
    while chosen:
        rest: Sequence[int] = ()
        with closing(_iterator(frames(chosen))) as pictures:
            for frame in pictures:
                done.append(frame.index)
                shares.append(changes.add(block_means(frame.rgb, grid)))
                yield frame.index, info.frame_count
                spent = time.monotonic() - began
                if spent > limit_seconds:
                    break
                if len(done) == _TIMED_FRAMES:
                    step = int(spent / len(done) * info.frame_count / limit_seconds) + 1
                    if step > 1:
                        rest = range(done[-1] + step, info.frame_count, step)
                        break
        chosen = rest
    return make_signal(info, done, shares)


def _iterator(frames: Iterator[Frame]) -> Generator[Frame, None, None]:
    """Return an iterator that can be closed."""
    yield from frames


def block_means(rgb: "np.ndarray", grid: tuple[int, int]) -> "np.ndarray":
    """Return the means (3, rows, columns) uint8 of a picture's blocks in YCbCr, from (height, width, 3) uint8."""
    small = Image.fromarray(rgb).resize(grid, Image.Resampling.BOX).convert("YCbCr")
    means: np.ndarray = np.asarray(small).transpose(2, 0, 1)
    return means
