"""Generated interlaced clips, and FFmpeg's own deinterlacing of them."""

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.clips import encode

SIZE = (128, 96)
MPEG2 = {"flags": "+ildct+ilme", "b": "20000000", "g": "15", "bf": "2"}


def moving_bar(time: float, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A bright bar on grey (height, width, 3), 5 pixels further to the right for each unit of time."""
    width, height = size
    picture = np.full((height, width, 3), 60, np.uint8)
    left = int(time * 5) % (width - 24)
    picture[height // 8 : -height // 8, left : left + 24] = 220
    return picture


def woven(number: int, *, top_first: bool = True, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Two fields of different times as one picture, the first at `number`, the second half a picture later."""
    first, second = moving_bar(number, size), moving_bar(number + 0.5, size)
    lines = 1 if top_first else 0
    first[lines::2] = second[lines::2]
    return first


def interlaced(path: Path, frames: int, *, top_first: bool = True, codec: str = "libx264") -> Path:
    """A moving bar in H.264 with a keyframe every 20 pictures, in MPEG-2 every 15, out of order in both."""
    x264 = MPEG2 | {"g": "20", "x264-params": "scenecut=0"}
    pictures = (woven(number, top_first=top_first) for number in range(frames))
    return encode(path, flagged(pictures, top_first), codec, options=x264 if codec == "libx264" else MPEG2)


def flagged(pictures: Iterable[np.ndarray], top_first: bool) -> Iterator[av.VideoFrame]:
    """Frames (yuv420p) that say which field comes first, from RGB."""
    graph: av.filter.Graph | None = None
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture).reformat(format="yuv420p")
        if graph is None:
            graph, tick = av.filter.Graph(), Fraction(1, 25)
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=tick)
            setfield = graph.add("setfield", "tff" if top_first else "bff")
            graph.link_nodes(source, setfield, graph.add("buffersink")).configure()
        frame.pts = number
        graph.vpush(frame)
        yield graph.vpull()


def switching(path: Path, parts: Sequence[tuple[bool, int]]) -> Path:
    """One MPEG-2 stream whose parts are interlaced or not, each of so many pictures."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        begin = 0
        for is_interlaced, count in parts:
            encoder: Any = av.CodecContext.create("mpeg2video", "w")
            encoder.width, encoder.height, encoder.pix_fmt = *SIZE, "yuv420p"
            encoder.time_base = encoder.framerate = Fraction(1, 25)
            encoder.framerate = Fraction(25)
            encoder.options = (MPEG2 if is_interlaced else {"b": "20000000", "g": "15"}) | {"bf": "0"}
            for number in [*range(begin, begin + count), None]:
                frame = None
                if number is not None:
                    frame = av.VideoFrame.from_ndarray(woven(number) if is_interlaced else moving_bar(number))
                    frame = frame.reformat(format="yuv420p")
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
            begin += count
    return path


def decoded_frames(path: Path) -> list[av.VideoFrame]:
    """Every picture of a plain decode from start to end."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def linearly_deinterlaced(frames: Sequence[av.VideoFrame]) -> list[np.ndarray]:
    """RGB of FFmpeg's bwdif over a whole clip for pictures that are flagged, and of the rest as they are."""
    graph, first = av.filter.Graph(), frames[0]
    source = graph.add_buffer(width=first.width, height=first.height, format=first.format, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=all"), graph.add("buffersink")).configure()
    flags = [frame.interlaced_frame for frame in frames]
    for frame in frames:
        graph.vpush(frame)
    graph.vpush(None)
    made = [graph.vpull() for _ in frames]
    return [
        (new if flagged else old).to_ndarray(format="rgb24")
        for old, new, flagged in zip(frames, made, flags, strict=True)
    ]


def combing(rgb: np.ndarray) -> float:
    """How much lines differ from both of their neighbours, on average, without the ends of the bar."""
    lines = rgb[24:-24].mean(axis=-1)
    return float(np.abs(2 * lines[1:-1] - lines[:-2] - lines[2:]).mean())
