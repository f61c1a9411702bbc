"""Sparse frames from a long clip: vidqa's decoder against qwen-vl-utils' readers and naive seeking.

Each side runs in a process of its own, on the same clip, in turn; seconds are medians, memory
is the growth of the peak resident size (the decoder process of vidqa counted whole). Frames are
resized to the same size by all; vidqa's are checked against a linear decode. --json prints an object.

Example: python scripts/bench_video.py /tmp/long.mp4 --render --frames 64
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]


def render(path: Path, seconds: int) -> None:
    """A 1080p clip with moving content, a little noise, B-frames and a keyframe every 250 frames."""
    import av
    import av.filter

    graph = av.filter.Graph()
    source = graph.add("testsrc2", f"size=1920x1080:rate=25:duration={seconds}")
    noise = graph.add("noise", "alls=6:allf=t")
    form = graph.add("format", "pix_fmts=yuv420p")
    sink = graph.add("buffersink")
    source.link_to(noise)
    noise.link_to(form)
    form.link_to(sink)
    graph.configure()
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "26", "x264-params": "keyint=250:scenecut=0:bframes=3"}
        stream: Any = container.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        while True:
            try:
                frame: Any = sink.pull()
            except (av.EOFError, av.BlockingIOError):
                break
            frame.pict_type = 0
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def size_for(clip: str, frames: int) -> tuple[int, int]:
    """The height and width that Qwen2-VL's bounds give these frames."""
    from vidqa.models.specs import REFERENCE_BOUNDS
    from vidqa.video.decode import open_video
    from vidqa.video.sampling import frame_size

    with open_video(clip) as reader:
        return frame_size(reader.info.height, reader.info.width, frames, REFERENCE_BOUNDS, factor=28)


def with_vidqa(clip: str, frames: int, size: tuple[int, int]) -> Callable[[], int]:
    import torch  # noqa: F401  loaded before the clock starts, as for every side

    from vidqa.models.specs import REFERENCE_BOUNDS
    from vidqa.video.decode import open_video
    from vidqa.video.patches import resize_frame
    from vidqa.video.sampling import choose_indices

    def work() -> int:
        with open_video(clip) as reader:
            indices = choose_indices(
                reader.info, frames=frames, fps=None, start_seconds=None, end_seconds=None, bounds=REFERENCE_BOUNDS
            )
            resized = [resize_frame(frame.rgb, *size) for frame in reader.frames(indices)]
            decoder_peak_kib.append(peak_kib(reader.process_id))
            return len(resized)

    return work


def with_naive_pyav(clip: str, frames: int, size: tuple[int, int]) -> Callable[[], int]:
    import av
    import numpy as np

    from vidqa.video.patches import resize_frame

    def pictures() -> Iterator[Any]:
        with av.open(clip) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for index in np.linspace(0, stream.frames - 1, frames).round():
                target = float(index) / float(stream.average_rate or 25)
                container.seek(int(target / stream.time_base), stream=stream)
                for picture in container.decode(stream):
                    if picture.time >= target - 1e-6:
                        yield picture.to_ndarray(format="rgb24")
                        break

    return lambda: len([resize_frame(picture, *size) for picture in pictures()])


def with_qwen_vl_utils(clip: str, frames: int, reader: str) -> Callable[[], int]:
    os.environ["FORCE_QWENVL_VIDEO_READER"] = reader
    from qwen_vl_utils.vision_process import fetch_video

    return lambda: len(fetch_video({"video": clip, "nframes": frames}))


SIDES = ("vidqa", "torchcodec", "decord", "naive-pyav")


def run_side(side: str, clip: str, frames: int) -> None:
    """In a child: measure one side once and print one JSON line."""
    size = size_for(clip, frames)
    if side == "vidqa":
        work = with_vidqa(clip, frames, size)
    elif side == "naive-pyav":
        work = with_naive_pyav(clip, frames, size)
    else:
        work = with_qwen_vl_utils(clip, frames, side)
    before = resident_kib()
    began = time.perf_counter()
    count = work()
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "grown_mib": (grown + sum(decoder_peak_kib)) / 1024, "frames": count}))


decoder_peak_kib: list[int] = []


def peak_kib(process: int) -> int:
    """Peak resident size of another process since it was started, in KiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def resident_kib() -> int:
    """Resident size now, in KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def is_exact(clip: str, frames: int) -> bool:
    """Whether vidqa's frames are those of a decode from start to end."""
    import av
    import numpy as np

    from vidqa.video.decode import open_video

    with open_video(clip) as reader:
        indices = sorted({int(index) for index in np.linspace(0, reader.info.frame_count - 1, frames).round()})
        ours = [hashlib.sha256(frame.rgb.tobytes()).digest() for frame in reader.frames(indices)]
    wanted, expected = set(indices), []
    with av.open(clip) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, picture in enumerate(container.decode(video=0)):
            if index in wanted:
                expected.append(hashlib.sha256(picture.to_ndarray(format="rgb24").tobytes()).digest())
    return ours == expected


def measure(clip: str, frames: int, repeats: int) -> dict[str, dict[str, float]]:
    """Medians per side; sides take turns."""
    made: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side in SIDES:
            command = [sys.executable, __file__, clip, "--frames", str(frames), "--side", side]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made[side].append(json.loads(done.stdout.splitlines()[-1]))
            else:
                print(f"{side} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    keys = ("seconds", "grown_mib", "frames")
    return {side: {key: median(run[key] for run in runs) for key in keys} for side, runs in made.items() if runs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--render", action="store_true", help="make the clip first if it is not there")
    parser.add_argument("--seconds", type=int, default=300, help="length of the rendered clip")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.clip, arguments.frames)
        return 0
    if arguments.render and not Path(arguments.clip).exists():
        render(Path(arguments.clip), arguments.seconds)
    sides = measure(arguments.clip, arguments.frames, arguments.repeats)
    ours = sides["vidqa"]
    peers = {side: row for side, row in sides.items() if side != "vidqa"}
    fastest = min(row["seconds"] for row in peers.values())
    readers = [peers[name]["grown_mib"] for name in ("torchcodec", "decord") if name in peers]
    report = {
        "frames": arguments.frames,
        "exact": is_exact(arguments.clip, arguments.frames),
        "sides": sides,
        "time_over_fastest_peer": ours["seconds"] / fastest,
        "memory_over_qwen_vl_utils": ours["grown_mib"] / min(readers) if readers else None,
    }
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    for side, row in sides.items():
        print(f"{side:12} {row['seconds']:7.2f} s  +{row['grown_mib']:6.0f} MiB  {row['frames']:.0f} frames")
    print(f"time / fastest peer: {report['time_over_fastest_peer']:.2f} (bar <= 0.70)")
    if readers:
        print(f"memory / qwen-vl-utils: {report['memory_over_qwen_vl_utils']:.2f} (bar <= 0.20)")
    print(f"equal to a linear decode: {report['exact']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
