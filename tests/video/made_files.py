"""Generated files with unusual times, streams or geometry."""

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from struct import pack
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.clips import add_sound, encode, numbered_picture

SIZE = (128, 64)


def frames_at(rate: float, frames: int, begin: float = 0.0) -> list[float]:
    """Times in seconds of frames at a constant rate."""
    return [begin + place / rate for place in range(frames)]


def ticks(seconds: float, base: Fraction) -> int:
    """Rounded as FFmpeg does, halves up."""
    return int(seconds / base + 0.5)


def timed(
    path: Path,
    times: Sequence[float],
    *,
    rate: int = 25,
    hold: float | None = None,
    base: Fraction = Fraction(1, 1000),
    first: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Numbered H.264 pictures at times in seconds; `rate` is what the header says, `hold` the last one's duration."""
    steps = [after - before for before, after in pairwise(times)]
    lasting = [*steps, hold if hold is not None else steps[-1] if steps else 1 / rate]
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"bf": "0", "g": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = *SIZE, "yuv420p", base
        pictures = [
            av.VideoFrame.from_ndarray(numbered_picture((first + place) % 256, *SIZE)) for place in range(len(times))
        ]
        packets = [packet for picture in pictures for packet in stream.encode(picture)] + stream.encode()
        for packet, time, seconds in zip(packets, times, lasting, strict=True):
            packet.time_base = base
            packet.pts = packet.dts = ticks(time, base)
            packet.duration = ticks(time + seconds, base) - packet.pts
            container.mux(packet)
    return path


def gif(path: Path, seconds: Sequence[float]) -> Path:
    """An animated GIF whose frames last so long each."""
    pictures = [Image.fromarray(numbered_picture(place, *SIZE)) for place in range(len(seconds))]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=[round(each * 1000) for each in seconds], loop=0
    )
    return path


def with_sound(path: Path, begin: float, frames: int) -> Path:
    """Numbered pictures from `begin` on, beside sound from 0 until they end."""
    silent = timed(path.with_name(f"silent{path.suffix}"), frames_at(25, frames, begin))
    return add_sound(silent, path, begin + frames / 25)


def several(path: Path, *parts: Path, default: int | None = None) -> Path:
    """The first stream of each file, side by side in one; only the `default` one is marked so."""
    mark = av.stream.Disposition.default
    with av.open(str(path), "w") as container:
        sources = [av.open(str(part)) for part in parts]
        for position, source in enumerate(sources):
            stream: Any = container.add_stream_from_template(source.streams.video[0])
            stream.disposition = mark if position == default else av.stream.Disposition(0)
        for position, source in enumerate(sources):
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = container.streams[position]
                    container.mux(packet)
            source.close()
    return path


def coloured(path: Path, *, size: tuple[int, int] = SIZE) -> Path:
    """Three pictures of coloured quarters."""
    return encode(path, [corners(*size)] * 3, options={"crf": "1"})


def oriented(path: Path, matrix: Sequence[int]) -> Path:
    """A track header with a, b, c, d of the display matrix, which sends (x, y) to (ax+cy, bx+dy)."""
    data, (a, b, c, d) = bytearray(coloured(path).read_bytes()), matrix
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def motion_jpeg(path: Path, orientation: int) -> Path:
    """Three JPEGs of coloured quarters with EXIF's orientation in each, as cameras write them."""
    exif, jpeg = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(corners(*SIZE)).save(jpeg, "JPEG", exif=exif, quality=95, subsampling=0)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuvj444p"
        for place in range(3):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 25), True
            packet.pts = packet.dts = place
            container.mux(packet)
    return path


def corners(width: int, height: int) -> np.ndarray:
    """A picture (height, width, 3) whose quarters are red, green; blue, white."""
    quarters = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]])
    return quarters.repeat(height // 2, 0).repeat(width // 2, 1)


def half_transparent(path: Path, codec: str, pixels: str, frames: int = 3) -> Path:
    """Pictures whose left half is red and whose right half is black and fully transparent."""
    rgba = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    rgba[:, : SIZE[0] // 2] = (255, 0, 0, 255)
    pictures = [av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pixels) for _ in range(frames)]
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}  # its hidden pictures have no alpha
    return encode(path, pictures, codec, pixels=pixels, options={"g": "10"} | options)


def flat(path: Path, size: tuple[int, int], yuv: tuple[int, int, int], colorspace: int | None = None) -> Path:
    """Three pictures of one stored colour, without or with a tag (AVCOL_SPC) of what it means."""
    pictures = [av.VideoFrame(*size, "yuv420p") for _ in range(3)]
    for picture in pictures:
        for plane, value in zip(picture.planes, yuv, strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        if colorspace is not None:
            picture.colorspace = colorspace
    tag = {} if colorspace is None else {"colorspace": colorspace}
    return encode(path, pictures, options={"crf": "1", "preset": "ultrafast"}, **tag)


def with_crop(path: Path, top: int) -> Path:
    """A Matroska file whose header crops rows (PixelCropTop), in place of a display unit of the same length."""
    data = coloured(path).read_bytes()
    assert data.count(b"\x54\xb2\x81") == 1
    place = data.index(b"\x54\xb2\x81")
    path.write_bytes(data[:place] + b"\x54\xbb\x81" + bytes([top]) + data[place + 4 :])
    return path


def with_aperture(path: Path, numbers: Sequence[int], *, size: tuple[int, int] = SIZE) -> Path:
    """A sample entry with a clean aperture (clap): fractions of width, height, and offsets to the right and down."""
    data = bytearray(coloured(path, size=size).read_bytes())
    box = pack(">I4s4I4i", 40, b"clap", *numbers)
    inner = data.index(b"avc1", data.index(b"stsd"))  # the first one after the header's
    end = inner - 4 + int.from_bytes(data[inner - 4 : inner], "big")
    for place in (inner, *(data.index(kind) for kind in (b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"))):
        data[place - 4 : place] = (int.from_bytes(data[place - 4 : place], "big") + len(box)).to_bytes(4, "big")
    assert data.index(b"mdat") < inner  # places of samples stay true
    path.write_bytes(data[:end] + box + data[end:])
    return path


def resized(path: Path, *sizes: tuple[int, int]) -> Path:
    """Three pictures of each size, one after the other in one raw H.264 stream."""
    parts = [coloured(path.with_name(f"size{place}.h264"), size=size) for place, size in enumerate(sizes)]
    return joined(path, *parts)


def widened(path: Path, codec: str, aspects: Sequence[Fraction]) -> Path:
    """40 pictures of coloured quarters for each pixel aspect, out of order, one after the other in one stream."""
    options = {"bf": "2", "g": "20", "x265-params": "bframes=2:keyint=20:log-level=none", "b": "4000000"}
    parts = [path.with_name(f"aspect{number}{path.suffix}") for number in range(len(aspects))]
    for part, aspect in zip(parts, aspects, strict=True):
        encode(part, [corners(*SIZE)] * 40, codec, options=options, sample_aspect_ratio=aspect)
    return joined(path, *parts)


def joined(path: Path, *parts: Path) -> Path:
    """Files one after the other, byte by byte, as transport and program streams are joined."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def decoded(path: Path, size: tuple[int, int]) -> list[tuple[float | None, np.ndarray]]:
    """Time in seconds and picture (height, width, 3) of a plain decode of the stream of a size, from start to end."""
    with av.open(str(path)) as container:
        stream = next(each for each in container.streams.video if (each.width, each.height) == size)
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
