"""Tone mapping of HDR pictures, PQ or HLG, to BT.709 as players show it on a display of standard range.

The light of a picture is that of a display of 1,000 cd/m² (BT.2100). Its reference white of 203 cd/m² (BT.2408) is
what BT.709 shows as white: light below about 86 cd/m² keeps its value, light above is compressed by the curve of
BT.2390. All three colours of a pixel, in BT.709's primaries, get the gain of the largest one, which keeps the hue. What
is outside of BT.709's gamut is clipped. The result is coded for a display of BT.1886.

A cube of 64 values a side holds the map. FFmpeg's haldclut filter looks pixels up in it at 16 bits, between its points.
Pixels are packed for it: for planar ones the filter of FFmpeg 8.0 exchanges the colours.
"""

from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

# Transfer characteristics and primaries as ITU-T H.273 and libavutil/pixfmt.h number them.
PQ, HLG = 16, 18
_BT709, _BT2020, _DISPLAY_P3 = 1, 9, 12
_UNSPECIFIED_MATRIX = 2

PEAK_NITS = 1000.0
WHITE_NITS = 203.0
_PQ_NITS = 10_000.0
_PQ_M1, _PQ_M2 = 2610 / 16384, 2523 / 4096 * 128  # BT.2100, table 4
_PQ_C1, _PQ_C2, _PQ_C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
_HLG_A, _HLG_B, _HLG_C = 0.17883277, 0.28466892, 0.55991073  # BT.2100, table 5
_HLG_GAMMA = 1.2  # of a display of 1,000 cd/m²
_LUMINANCE = (0.2627, 0.6780, 0.0593)  # of BT.2020's primaries
_DISPLAY_GAMMA = 2.4  # BT.1886 with a black of 0

# Linear colours to BT.709's: BT.2407 for BT.2020, and the same from the primaries of Display P3 (SMPTE EG 432-1).
_TO_BT709 = {
    _BT709: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    _BT2020: ((1.6605, -0.5877, -0.0728), (-0.1246, 1.1330, -0.0084), (-0.0182, -0.1006, 1.1188)),
    _DISPLAY_P3: ((1.2249, -0.2249, 0.0), (-0.0421, 1.0421, 0.0), (-0.0196, -0.0786, 1.0982)),
}
_LEVEL = 8  # of the Hald image: 8³ = 512 pixels a side, for a cube of 8² = 64 values a side
_THREADS = 2  # 1080p took 32 ms with one
_TICK = Fraction(1, 1000)  # a filter graph needs one; it has no effect here


def is_hdr(picture: Any) -> bool:
    """Return whether a decoded picture, or the header that a codec's context holds, says that it is PQ or HLG."""
    return picture.color_trc in (PQ, HLG)


class ToneMapper:
    """Converter of decoded PQ or HLG pictures to RGB of BT.709. Keeps the filter graph of the latest kind."""

    def __init__(self) -> None:
        self._kind: tuple[object, ...] | None = None
        self._graph: Any = None
        self._reformatter: Any = None
        self._count = 0

    def mapped(
        self, picture: Any, *, alpha: bool, width: int | None = None, height: int | None = None
    ) -> "numpy.ndarray":
        """Return RGB, or RGBA if `alpha`, (height, width, 3 or 4) uint8; scaled to a size if one is given."""
        primaries = picture.color_primaries if picture.color_primaries in _TO_BT709 else _BT2020
        pixels = "rgba64le" if alpha else "rgb48le"
        kind = (picture.color_trc, primaries, pixels, width or picture.width, height or picture.height)
        if kind != self._kind:
            self._graph, self._kind = None, None  # freed before the next one is made
            self._graph, self._reformatter, self._kind = _graph(*kind), _reformatter(), kind
        matrix = "bt2020" if picture.colorspace == _UNSPECIFIED_MATRIX else None
        self._push(
            self._reformatter.reformat(
                picture, width=width, height=height, format=pixels, src_colorspace=matrix, threads=_THREADS
            )
        )
        return _high_bytes(self._graph.vpull(), 4 if alpha else 3)

    def _push(self, picture: Any) -> None:
        """Pass a picture to the filter, which works in place if nothing else refers to it."""
        self._count += 1
        before, picture.pts = picture.pts, self._count  # ascending, as the filter needs them
        self._graph.vpush(picture, at=0)
        picture.pts = before  # it is the decoder's own picture if that has this format


def _high_bytes(picture: Any, channels: int) -> "numpy.ndarray":
    """Return the upper 8 of 16 bits, little-endian, of a packed picture's values."""
    import numpy as np

    (plane,) = picture.planes
    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: picture.height, 1::2]
    values = picture.width * channels
    return np.ascontiguousarray(lines[:, :values]).reshape(picture.height, picture.width, channels)


def _reformatter() -> Any:
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def _graph(transfer: int, primaries: int, pixels: str, width: int, height: int) -> Any:
    """Return a filter graph that maps pictures of one size and pixel format."""
    import av

    side, form = _LEVEL**3, av.VideoFormat(pixels)
    graph = av.filter.Graph()
    graph.threads = _THREADS
    pictures = graph.add_buffer(width=width, height=height, format=form, time_base=_TICK)
    cubes = graph.add_buffer(width=side, height=side, format=form, time_base=_TICK)
    lookup, sink = graph.add("haldclut", "clut=first:interp=tetrahedral"), graph.add("buffersink")
    pictures.link_to(lookup, 0, 0)
    cubes.link_to(lookup, 0, 1)
    lookup.link_to(sink)
    graph.configure()
    cube = av.VideoFrame.from_ndarray(hald_image(transfer, primaries), format="rgb48le").reformat(format=pixels)
    cube.pts = 0
    graph.vpush(cube, at=1)
    graph.vpush(None, at=1)
    return graph


@lru_cache(maxsize=2 * len(_TO_BT709))
def hald_image(transfer: int, primaries: int) -> "numpy.ndarray":
    """Return the map of all colours (512, 512, 3) uint16, whose rows hold a cube with red varying fastest.

    The upper 8 bits of a value are its level from 0 to 255, rounded.
    """
    import numpy as np

    codes = np.linspace(0, 1, _LEVEL**2)
    blue, green, red = np.meshgrid(codes, codes, codes, indexing="ij")
    mapped = to_bt709(np.stack([red, green, blue], -1).reshape(-1, 3), transfer, primaries)
    image: numpy.ndarray = ((mapped * 255 + 0.5) * 256).astype(np.uint16).reshape(_LEVEL**3, _LEVEL**3, 3)
    return image


def to_bt709(codes: "numpy.ndarray", transfer: int, primaries: int) -> "numpy.ndarray":
    """Map R'G'B' (n, 3) from 0 to 1 of a transfer and primaries to R'G'B' of BT.709 from 0 to 1."""
    import numpy as np

    nits = pq_nits(codes) if transfer == PQ else hlg_nits(codes)
    light = nits @ np.array(_TO_BT709[primaries]).T
    largest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
    shown = light * compressed(largest) / largest / WHITE_NITS
    coded: numpy.ndarray = np.clip(shown, 0, 1) ** (1 / _DISPLAY_GAMMA)
    return coded


def pq_nits(codes: "numpy.ndarray") -> "numpy.ndarray":
    """Return the light in cd/m² of PQ codes from 0 to 1 (EOTF of SMPTE ST 2084 and BT.2100)."""
    import numpy as np

    power = codes ** (1 / _PQ_M2)
    nits: numpy.ndarray = _PQ_NITS * (np.maximum(power - _PQ_C1, 0) / (_PQ_C2 - _PQ_C3 * power)) ** (1 / _PQ_M1)
    return nits


def _pq_codes(nits: "numpy.ndarray | float") -> Any:
    """Return PQ codes from 0 to 1, the inverse of `pq_nits`."""
    power = (nits / _PQ_NITS) ** _PQ_M1
    return ((_PQ_C1 + _PQ_C2 * power) / (1 + _PQ_C3 * power)) ** _PQ_M2


def hlg_nits(codes: "numpy.ndarray") -> "numpy.ndarray":
    """Return the light in cd/m² that a display of 1,000 cd/m² gives HLG codes (n, 3) from 0 to 1 (BT.2100, table 5)."""
    import numpy as np

    scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - _HLG_C) / _HLG_A) + _HLG_B) / 12)
    nits: numpy.ndarray = PEAK_NITS * (scene @ np.array(_LUMINANCE))[:, None] ** (_HLG_GAMMA - 1) * scene
    return nits


def compressed(nits: "numpy.ndarray") -> "numpy.ndarray":
    """Return light in cd/m², at most reference white, for light up to the peak and above (EETF of BT.2390, 5.4.1)."""
    import numpy as np

    peak = _pq_codes(PEAK_NITS)
    white = _pq_codes(WHITE_NITS) / peak
    code = np.minimum(_pq_codes(nits) / peak, 1)
    knee = 1.5 * white - 0.5
    t = np.maximum(code - knee, 0) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * white
    return pq_nits(np.where(code < knee, code, spline) * peak)
