"""The pixel aspect of every decoded picture, which PyAV does not give: it can change where a container has none.

FFmpeg's scale filter knows it, and makes a tiny copy of the picture as wide as it says.
"""

from fractions import Fraction
from typing import Any

import av
from av.video.reformatter import VideoReformatter

# Where FFmpeg has no pixel aspect but the stream's own; elsewhere the container's holds for all pictures.
_BARE = {"mpegts", "mpeg", "mpegvideo", "m4v", "h264", "hevc", "obu"}
_TICK = Fraction(1, 1000)  # a graph needs one; no picture is placed by it here
_SIDE, _UNIT, _WIDEST = 16, 2048, 32_000  # pixels; an aspect of 1 is a width of _UNIT
_NARROWEST = 100  # below that rounding shows
_WIDTH = rf"clip(round({_UNIT}*sar)\,1\,{_WIDEST})"


class PixelAspects:
    """Reads the pixel aspect (width over height) of one picture after the other, in some 40 microseconds each."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._graph = av.filter.Graph()
        self._graph.threads = 1
        source = self._graph.add_buffer(width=_SIDE, height=_SIDE, format=av.VideoFormat("gray"), time_base=_TICK)
        scale = self._graph.add("scale", f"w={_WIDTH}:h={_SIDE}:flags=neighbor:eval=frame")
        sink = self._graph.add("buffersink")
        self._graph.link_nodes(source, scale, sink).configure()

    def of(self, picture: Any) -> float | None:
        """A picture's own pixel aspect; None for one so narrow or wide that this cannot tell."""
        tiny = self._reformatter.reformat(
            picture, width=_SIDE, height=_SIDE, format="gray", interpolation="POINT", threads=1
        )
        self._graph.vpush(tiny)
        width = self._graph.vpull().width
        return width / _UNIT if _NARROWEST <= width < _WIDEST else None


def changing_aspects(container: Any) -> PixelAspects | None:
    """Reads pixel aspects where they can change within the stream; None where the container gives one for all."""
    return PixelAspects() if container.format.name in _BARE else None
