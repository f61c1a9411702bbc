"""Sparse frames out of a long clip: vidqa against qwen-vl-utils (torchcodec, decord) and naive PyAV seeking.

Every measurement runs in a separate process; rounds alternate between the peers and the median counts. Seconds run
from the unopened file to the last resized frame, imports excluded. Memory is the peak of the process and its children
above what it held before. All keep the resized frames. The bars: vidqa at most 0.7x the fastest peer's time and 1/5 of
qwen-vl-utils' memory growth, with frames equal to a linear decode's.

`--index` measures instead how long the packet times of 100,000 frames take from a container's index and by demuxing,
`--conversions` what interlaced and HDR pictures take.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]
import av
import numpy as np

VIDQA, NAIVE, REFERENCES = "vidqa", "pyav-seek", ("qwen-torchcodec", "qwen-decord")
TIME_BAR, MEMORY_BAR = 0.7, 0.2
FPS, GOP, UNIQUE_GOPS, SECONDS = 25, 250, 3, 300
INDEXED_FRAMES = 100_000


def render(path: Path, seconds: int) -> None:
    """1080p H.264, GOP 250, B-frames: 30 s are encoded and their packets repeated, so that it takes a minute."""
    shown, unique = seconds * FPS, UNIQUE_GOPS * GOP
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.codec_context.options = {"preset": "veryfast", "bf": "3", "g": str(GOP), "sc_threshold": "0"}
        packets = [repeatable(packet) for number in range(unique) for packet in stream.encode(picture(number))]
        packets += [repeatable(packet) for packet in stream.encode(None)]
        for start in range(0, shown, unique):
            container.mux([shifted(packet, start, stream) for packet in packets if start + packet[1] < shown])


def shifted(repeated: tuple[bytes, int, int, bool], start: int, stream: Any) -> Any:
    """A repetition of an encoded packet, `start` frames later."""
    data, pts, dts, key = repeated
    packet: Any = av.Packet(data)
    packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, FPS), key
    packet.pts, packet.dts, packet.duration = start + pts, start + dts, 1
    return packet


def repeatable(packet: Any) -> tuple[bytes, int, int, bool]:
    """What a repetition needs of an encoded packet; times in frames."""
    tick = packet.time_base * FPS
    return bytes(packet), round(packet.pts * tick), round(packet.dts * tick), packet.is_keyframe


def picture(number: int) -> av.VideoFrame:
    """A panned texture, a drifting gradient, film grain and two moving boxes (yuv420p, 1920x1080)."""
    texture, grain = scenery()
    luma = texture[number % 400 : number % 400 + 1080, number * 3 % 800 : number * 3 % 800 + 1920].copy()
    luma += grain[number * 37 % 199 : number * 37 % 199 + 1080]
    left, top = number * 11 % 1700, 400 + int(300 * np.sin(number / 20))
    luma[top : top + 180, left : left + 200] = 210
    luma[100:300, 1700 - left : 1860 - left] //= 2
    planes = np.empty((1620, 1920), np.uint8)
    planes[:1080] = luma
    planes[1080:1350] = (110 + (np.arange(1920) + number) % 960 // 32).astype(np.uint8)
    planes[1350:] = (140 - (np.arange(1920) + 2 * number) % 960 // 32).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
    frame.pts, frame.time_base = number, Fraction(1, FPS)
    return frame


def scenery(made: list[tuple[np.ndarray, np.ndarray]] = []) -> tuple[np.ndarray, np.ndarray]:  # noqa: B006
    """The texture (1480, 2720) and the grain (1279, 1920), drawn once."""
    if not made:
        random = np.random.default_rng(0)
        coarse = np.kron(random.integers(0, 60, (93, 170)), np.ones((16, 16), int))[:1480, :2720]
        fine = np.kron(random.integers(0, 40, (370, 680)), np.ones((4, 4), int))
        texture = 50 + coarse + fine + np.linspace(0, 60, 2720).astype(int)
        made.append((texture.astype(np.uint8), random.integers(0, 14, (1279, 1920), dtype=np.uint8)))
    return made[0]


def resized(rgb: np.ndarray, size: tuple[int, int]) -> Any:
    from vidqa.models.families.qwen2_vl.runtime import resize_frame

    return resize_frame(rgb, *size)


def by_vidqa(clip: str, indices: Sequence[int], size: tuple[int, int]) -> list[Any]:
    from vidqa.video.reader import open_video

    with open_video(clip) as reader:
        return [resized(frame.rgb, size) for frame in reader.frames(indices)]


def by_naive_seeking(clip: str, indices: Sequence[int], size: tuple[int, int]) -> list[Any]:
    """Seek to the keyframe before each frame and decode on from there, with frame threads."""
    frames = []
    with av.open(clip) as container:
        stream: Any = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index in indices:
            seconds = index / float(stream.average_rate or FPS)
            target = round(seconds / float(stream.time_base)) + (stream.start_time or 0)
            container.seek(target, stream=stream, backward=True)
            shown = next(frame for frame in container.decode(stream) if frame.pts is not None and frame.pts >= target)
            frames.append(resized(shown.to_ndarray(format="rgb24"), size))
    return frames


def by_qwen(clip: str, indices: Sequence[int], size: tuple[int, int]) -> Any:
    from qwen_vl_utils.vision_process import fetch_video

    height, width = size
    return fetch_video({"video": clip, "nframes": len(indices), "resized_height": height, "resized_width": width})


PEERS: dict[str, Callable[[str, Sequence[int], tuple[int, int]], Any]] = {
    VIDQA: by_vidqa,
    NAIVE: by_naive_seeking,
    **dict.fromkeys(REFERENCES, by_qwen),
}


class PeakMemory:
    """Samples the resident bytes of this process and its children until it is left."""

    def __init__(self) -> None:
        import psutil

        self._process, self._gone = psutil.Process(), psutil.Error
        self._own = self._process.cmdline()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._before = self._now()
        self._peak = self._before

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def growth_bytes(self) -> int:
        return self._peak - self._before

    def _now(self) -> int:
        total: int = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                # Between fork and exec a child is still this process and shares its pages.
                total += child.memory_info().rss if child.cmdline() != self._own else 0
            except self._gone:
                continue
        return total

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self._peak = max(self._peak, self._now())


def measure(peer: str, clip: str, indices: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    """Run one peer here; its libraries are imported and warm before the clock starts."""
    import torch  # noqa: F401

    if peer in REFERENCES:
        import qwen_vl_utils.vision_process as reference

        backend = peer.removeprefix("qwen-")
        __import__(backend)
        # Its reader hides an error by falling back to another backend: fail instead.
        reference.VIDEO_READER_BACKENDS = {backend: reference.VIDEO_READER_BACKENDS[backend]}
        reference.get_video_reader_backend = lambda: backend
    resized(np.zeros((1080, 1920, 3), np.uint8), size)
    with PeakMemory() as memory:
        began = time.perf_counter()
        frames = PEERS[peer](clip, indices, size)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "growth_bytes": memory.growth_bytes, "frames": len(frames)}


def in_subprocess(peer: str, clip: str, indices: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    task = json.dumps({"peer": peer, "clip": clip, "indices": list(indices), "size": size})
    environment = os.environ | {"FORCE_QWENVL_VIDEO_READER": peer.removeprefix("qwen-")}
    run = subprocess.run(
        (sys.executable, __file__, "--task", task), env=environment, capture_output=True, text=True, check=False
    )
    if run.returncode:
        return {"error": (run.stderr.strip().splitlines() or ["no message"])[-1]}
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def differing_frames(clip: str, indices: Sequence[int]) -> int:
    """How many of vidqa's pictures are not, byte for byte, those of one decode from start to end."""
    from vidqa.video.reader import open_video

    wanted, expected = set(indices), {}
    with av.open(clip) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                rgb = frame.to_ndarray(format="rgb24", src_colorspace="itu709")  # as the untagged 1080p is read
                expected[number] = hashlib.sha256(rgb.tobytes()).digest()
    with open_video(clip) as reader:
        found = {frame.index: hashlib.sha256(frame.rgb.tobytes()).digest() for frame in reader.frames(indices)}
    return sum(found.get(number) != digest for number, digest in expected.items()) + len(wanted - expected.keys())


def plan(clip: str, count: int) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The frames and the size that vidqa takes by Qwen's rule."""
    from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
    from vidqa.video.frame_sampling import choose_indices, frame_size
    from vidqa.video.reader import open_video

    with open_video(clip) as reader:
        info = reader.info
    indices = choose_indices(
        info, frames=count, fps=None, start_seconds=None, end_seconds=None, bounds=REFERENCE_BOUNDS
    )
    return indices, frame_size(info.height, info.width, len(indices), REFERENCE_BOUNDS, factor=28)


def compare(clip: str, count: int, repeats: int) -> dict[str, Any]:
    """All peers in alternating rounds; a peer that cannot run is reported, not hidden."""
    indices, size = plan(clip, count)
    runs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in PEERS}
    for number in range(repeats):
        for peer in PEERS:
            runs[peer].append(in_subprocess(peer, clip, indices, size))
            print(f"round {number + 1}, {peer}: {runs[peer][-1]}", file=sys.stderr)
    failed = {peer: made[0]["error"] for peer, made in runs.items() if "error" in made[0]}
    peers = {
        peer: {key: median(run[key] for run in made) for key in ("seconds", "growth_bytes")}
        for peer, made in runs.items()
        if peer not in failed
    }
    ours = peers[VIDQA]
    references = [peers[peer]["growth_bytes"] for peer in REFERENCES if peer in peers]
    others = [measured["seconds"] for peer, measured in peers.items() if peer != VIDQA]
    return {
        "clip": Path(clip).name, "frames": len(indices), "size": size, "repeats": repeats,
        "peers": peers, "failed": failed,
        "differing_frames": differing_frames(clip, indices),
        "time_ratio": ours["seconds"] / min(others),
        "memory_ratio": ours["growth_bytes"] / min(references) if references else None,
    }  # fmt: skip


def render_indexed(folder: Path) -> list[Path]:
    """An MP4 and a Matroska file of 100,000 frames, 360p H.264 with B-frames, about 5 kB a packet."""
    group, targets = folder / "group.mp4", [folder / "index.mp4", folder / "index.mkv"]
    with av.open(str(group), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.codec_context.options = {"preset": "veryfast", "bf": "3", "g": str(GOP), "crf": "17"}
        for number in range(GOP):
            container.mux(stream.encode(picture(number).reformat(width=640, height=360)))
        container.mux(stream.encode(None))
    with av.open(str(group)) as source:
        template = source.streams.video[0]
        packets = [repeatable(packet) for packet in source.demux(template) if packet.size]
        for target in targets:
            with av.open(str(target), "w") as container:
                stream = container.add_stream_from_template(template)
                for start in range(0, INDEXED_FRAMES, GOP):
                    container.mux([shifted(packet, start, stream) for packet in packets])
    return targets


def time_packets(path: Path, *, by_index: bool, cached: bool) -> float:
    """Seconds to find all packet times of an open file; without `cached` the system has to read it from disk."""
    from vidqa.video.container import discard_other_streams, open_container
    from vidqa.video.packets import demux_packets, packets_from_index
    from vidqa.video.stream_selection import select_stream

    with open_container(str(path)) as container:
        stream = select_stream(container, str(path))
        discard_other_streams(container, stream)
        if not cached:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        began = time.perf_counter()
        table = packets_from_index(str(path), container, stream) if by_index else demux_packets(container, stream)
        seconds = time.perf_counter() - began
    assert table is not None and len(table.pts) == INDEXED_FRAMES
    return seconds


def compare_index(repeats: int) -> None:
    """Print the medians of alternating rounds, a line a file and a state of the system's cache."""
    with tempfile.TemporaryDirectory() as folder:
        for path in render_indexed(Path(folder)):
            for cached in (True, False):
                rounds = [
                    [time_packets(path, by_index=by_index, cached=cached) for by_index in (True, False)]
                    for _ in range(repeats)
                ]
                index, demuxed = (median(times) for times in zip(*rounds, strict=True))
                where = "cached" if cached else "from disk"
                size = path.stat().st_size / 2**20
                print(f"{path.name} ({size:.0f} MiB, {where}): index {index:.2f} s, demuxed {demuxed:.2f} s")


def show(report: dict[str, Any]) -> None:
    height, width = report["size"]
    print(f"{report['frames']} frames of {report['clip']} at {width}x{height}, medians of {report['repeats']} rounds")
    ours = report["peers"][VIDQA]
    for peer, measured in report["peers"].items():
        seconds, mebibytes = measured["seconds"], measured["growth_bytes"] / 2**20
        ratios = (
            f"{seconds / ours['seconds']:5.2f}x time, {measured['growth_bytes'] / ours['growth_bytes']:5.2f}x memory"
        )
        print(f"{peer:16} {seconds:7.2f} s  +{mebibytes:6.0f} MiB   {ratios} of vidqa's")
    for peer, error in report["failed"].items():
        print(f"{peer:16} did not run: {error}")
    print(f"time: {report['time_ratio']:.2f}x the fastest peer (bar <= {TIME_BAR})")
    if report["memory_ratio"] is not None:
        print(f"memory growth: {report['memory_ratio']:.2f}x qwen-vl-utils' smaller one (bar <= {MEMORY_BAR})")
    print(f"frames that differ from a linear decode: {report['differing_frames']} (bar 0)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", nargs="?", help="the video; rendered there first if it does not exist")
    parser.add_argument("--render", metavar="PATH", help="only render the clip of the bars")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="length of a rendered clip")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--index", action="store_true", help="compare container indexes with demuxing instead")
    parser.add_argument(
        "--conversions", action="store_true", help="compare interlaced and HDR clips with others instead"
    )
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        task = json.loads(arguments.task)
        print(json.dumps(measure(task["peer"], task["clip"], task["indices"], tuple(task["size"]))))
        return 0
    if arguments.index:
        compare_index(arguments.repeats)
        return 0
    if arguments.conversions:
        from benchlib.conversions import compare_conversions

        compare_conversions(picture, arguments.repeats)
        return 0
    target = arguments.render or arguments.clip
    if target is None:
        parser.error("give a CLIP or --render PATH")
    if arguments.render or not Path(target).exists():
        render(Path(target), arguments.seconds)
    if arguments.render:
        return 0
    report = compare(os.path.abspath(target), arguments.frames, arguments.repeats)
    print(json.dumps(report, indent=1)) if arguments.json else show(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
