"""What interlaced and HDR clips cost: the same 1080p pictures with and without the flag, read in alternating rounds."""

import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av

_FRAMES, _EVERY, _FPS = 60, 5, 25
_BT709, _PQ, _HLG, _BT2020 = 1, 16, 18, 9  # as libavutil/pixfmt.h numbers them
_CLIPS: dict[str, tuple[str, dict[str, str], int | None]] = {
    "8 bits": ("yuv420p", {}, None),
    "8 bits, interlaced": ("yuv420p", {"flags": "+ildct+ilme"}, None),
    "10 bits": ("yuv420p10le", {}, _BT709),
    "10 bits, PQ": ("yuv420p10le", {}, _PQ),
    "10 bits, HLG": ("yuv420p10le", {}, _HLG),
}


def render(path: Path, name: str, picture: Callable[[int], av.VideoFrame]) -> Path:
    """Encode the pictures as one of the kinds, in H.264."""
    pixels, options, transfer = _CLIPS[name]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=_FPS, options={"preset": "ultrafast", "g": "30"} | options)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, pixels
        if transfer is not None:
            context = stream.codec_context
            context.color_trc, context.color_primaries, context.colorspace = transfer, _BT2020, _BT2020
        for number in range(_FRAMES):
            frame = picture(number).reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def milliseconds(path: Path) -> tuple[float, float]:
    """Read every fifth picture in this process; return the time for each, and the processors' time."""
    from vidqa.video.reader import open_video

    indices = range(0, _FRAMES, _EVERY)
    with open_video(str(path), isolated=False) as reader:
        list(reader.frames(indices[:2]))
        began, busy = time.perf_counter(), time.process_time()
        count = sum(1 for _ in reader.frames(indices))
        return (time.perf_counter() - began) * 1000 / count, (time.process_time() - busy) * 1000 / count


def compare_conversions(picture: Callable[[int], av.VideoFrame], repeats: int) -> None:
    """Print the medians of each kind of clip and its fastest round, which other load changes less."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: render(Path(folder) / f"{number}.mp4", name, picture) for number, name in enumerate(_CLIPS)}
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
        for number in range(repeats):
            for name, path in paths.items():
                rounds[name].append(milliseconds(path))
                print(f"round {number + 1}, {name}: {rounds[name][-1]}", file=sys.stderr)
    for name, times in rounds.items():
        elapsed, busy = zip(*times, strict=True)
        print(
            f"{name:20} {median(elapsed):6.1f} ms a picture (least {min(elapsed):.1f}), "
            f"processors {median(busy):.1f} ms (least {min(busy):.1f})"
        )
