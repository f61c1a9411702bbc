"""A HEIC picture of tiles, as phones write it: HEVC by FFmpeg, the boxes around it by hand (ISO 23008-12)."""

from collections.abc import Sequence
from pathlib import Path
from struct import pack

import av
import numpy as np

from tests.clips import encode

Colour = tuple[int, int, int]
_KINDS = (b"hvc1", b"hvc1", b"hvc1", b"hvc1", b"grid", b"Exif")  # of the items, which count from 1
_GRID, _EXIF = 5, 6
_BT601_LIMITED = pack(">4sHHHB", b"nclx", 6, 6, 6, 0)


def heic_grid(
    path: Path,
    colours: Sequence[Colour],
    *,
    tile: int = 64,
    size: tuple[int, int] | None = None,
    header_size: tuple[int, int] | None = None,
    quarters: int | None = None,
    exif: bytes = b"",
) -> Path:
    """Four square tiles of one colour each, row by row.

    `size` is the picture's (width, height), at most that of the tiles; `header_size` what its header says instead;
    `quarters` a rotation of so many times 90° to the left (irot); `exif` metadata as in a JPEG.
    """
    size = size or (2 * tile, 2 * tile)
    tiles, decoder = _hevc_pictures(path.with_suffix(".mp4"), colours, tile)
    parts = [*tiles, pack(">BBBBHH", 0, 0, 1, 1, *size), *([pack(">I", 6) + exif] if exif else [])]
    turn = () if quarters is None else (_box(b"irot", bytes([quarters])),)
    properties = (
        _box(b"hvcC", decoder), _full(b"ispe", pack(">II", tile, tile)), _box(b"colr", _BT601_LIMITED),
        _full(b"ispe", pack(">II", *(header_size or size))), *turn,
    )  # fmt: skip
    begin = _box(b"ftyp", b"heic" + pack(">I", 0) + b"mif1heic")
    at = len(begin) + len(_meta(properties, parts, 0)) + 8
    path.write_bytes(begin + _meta(properties, parts, at) + _box(b"mdat", b"".join(parts)))
    return path


def _hevc_pictures(path: Path, colours: Sequence[Colour], side: int) -> tuple[list[bytes], bytes]:
    """Packets of one picture each, and the decoder configuration (hvcC) that they share."""
    options = {"x265-params": "keyint=1:log-level=none:info=0"}
    encode(path, (np.full((side, side, 3), colour, np.uint8) for colour in colours), "libx265", options=options)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        extradata = container.streams.video[0].codec_context.extradata
    assert extradata is not None and len(packets) == len(colours)
    return packets, extradata


def _meta(properties: Sequence[bytes], parts: Sequence[bytes], at: int) -> bytes:
    """The items, whose data lie side by side from a place in the file on."""
    items = range(1, len(parts) + 1)
    kinds = list(zip(items, _KINDS, strict=False))
    entries = b"".join(_full(b"infe", pack(">HH4sx", item, 0, kind), 2, kind != b"grid") for item, kind in kinds)
    locations = b""
    for item, part in zip(items, parts, strict=True):
        locations += pack(">HHHII", item, 0, 1, at, len(part))
        at += len(part)
    used = {item: (1, 2, 3) for item in range(1, _GRID)} | {_GRID: (3, *range(4, len(properties) + 1))}
    uses = [pack(">HB", item, len(places)) + bytes(0x80 | place for place in places) for item, places in used.items()]
    tiles = _box(b"dimg", pack(">HH4H", _GRID, 4, *range(1, _GRID)))
    describes = _box(b"cdsc", pack(">HHH", _EXIF, 1, _GRID)) if len(parts) == _EXIF else b""
    return _full(
        b"meta",
        _full(b"hdlr", pack(">I4s12xx", 0, b"pict"))
        + _full(b"pitm", pack(">H", _GRID))
        + _full(b"iloc", pack(">HH", 0x4400, len(parts)) + locations)
        + _full(b"iinf", pack(">H", len(parts)) + entries)
        + _full(b"iref", tiles + describes)
        + _box(b"iprp", _box(b"ipco", b"".join(properties)) + _full(b"ipma", pack(">I", len(uses)) + b"".join(uses))),
    )


def _box(kind: bytes, content: bytes) -> bytes:
    return pack(">I4s", len(content) + 8, kind) + content


def _full(kind: bytes, content: bytes, version: int = 0, flags: int = 0) -> bytes:
    """A box with a version and 24 flags before its content."""
    return _box(kind, pack(">I", version << 24 | flags) + content)
