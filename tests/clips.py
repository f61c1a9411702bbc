"""Small generated clips whose pictures encode their own number, and copies of packets from file to file."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def numbered_picture(number: int, width: int, height: int) -> np.ndarray:
    """A gray picture (height, width, 3) with the number in eight black or white bars."""
    picture = np.full((height, width, 3), 96, np.uint8)
    for bit in range(8):
        shade = 235 if number >> bit & 1 else 20
        picture[height // 4 : 3 * height // 4, bit * width // 8 : (bit + 1) * width // 8] = shade
    return picture


def read_number(rgb: np.ndarray) -> int:
    """The number in a picture, after any codec."""
    height, width, _ = rgb.shape
    middles = [rgb[height // 2, bit * width // 8 + width // 16].mean() for bit in range(8)]
    return sum(1 << bit for bit, shade in enumerate(middles) if shade > 128)


def encode(
    path: Path,
    pictures: Iterable[np.ndarray | av.VideoFrame],
    codec: str = "libx264",
    *,
    fps: int = 25,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    **context: Any,
) -> Path:
    """Encode RGB pictures (height, width, 3) or frames; `context` holds further attributes of the codec context."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options or {})
        stream.pix_fmt = pixels
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for number, picture in enumerate(pictures):
            frame = picture if isinstance(picture, av.VideoFrame) else av.VideoFrame.from_ndarray(picture)
            if number == 0:
                stream.width, stream.height = frame.width, frame.height
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_clip(
    path: Path,
    frames: int,
    *,
    size: tuple[int, int] = (128, 64),
    fps: int = 25,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pts: Sequence[int] | None = None,
    pixels: str = "yuv420p",
) -> Path:
    """Encode numbered frames; `pts` in milliseconds makes the rate variable."""
    pictures = [av.VideoFrame.from_ndarray(numbered_picture(number, *size)) for number in range(frames)]
    if pts is None:
        return encode(path, pictures, codec, fps=fps, pixels=pixels, options=options)
    for picture, milliseconds in zip(pictures, pts, strict=True):
        picture.pts, picture.time_base = milliseconds, Fraction(1, 1000)
    return encode(path, pictures, codec, fps=fps, pixels=pixels, options=options, time_base=Fraction(1, 1000))


def remux(
    source: Path,
    target: Path,
    *,
    shift_frames: int = 0,
    drop: Callable[[int], bool] = lambda _: False,
    options: dict[str, str] | None = None,
) -> Path:
    """Copy packets with shifted times, without those whose position is dropped; `options` are the muxer's."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=options or {}) as out:
        stream: Any = out.add_stream_from_template(container.streams.video[0])
        shift = round(shift_frames / 25 / float(container.streams.video[0].time_base or 1))
        for position, packet in enumerate(container.demux(video=0)):
            if packet.size and packet.pts is not None and packet.dts is not None and not drop(position):
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                out.mux(packet)
    return target


def add_sound(silent: Path, target: Path, seconds: float, *, options: dict[str, str] | None = None) -> Path:
    """Copy a clip's packets beside silence from 0 on; `options` are the muxer's."""
    with av.open(str(silent)) as source, av.open(str(target), "w", options=options or {}) as out:
        picture: Any = out.add_stream_from_template(source.streams.video[0])
        sound: Any = out.add_stream("libopus", rate=48_000)
        for _ in range(round(seconds * 50)):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 960), np.int16), format="s16", layout="stereo")
            samples.sample_rate = 48_000
            out.mux(sound.encode(samples))
        out.mux(sound.encode(None))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                out.mux(packet)
    return target
