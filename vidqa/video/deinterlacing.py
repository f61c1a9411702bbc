"""Deinterlacing of decoded pictures by FFmpeg's bwdif filter: one picture for each, at the time of its first field."""

from fractions import Fraction
from typing import Any

import av

_TICK = Fraction(1, 1000)  # a filter graph needs one; it has no effect here
_MIN_SIDE = 16  # the filter needs 4 lines, also of colours that are stored for every fourth one
_UNSPECIFIED, _BT601 = 2, 5  # AVCOL_SPC_UNSPECIFIED and AVCOL_SPC_BT470BG of libavutil/pixfmt.h


def is_interlaced(picture: Any) -> bool:
    """Return whether a decoded picture says that its two fields are of different times, and can be deinterlaced."""
    flagged: bool = picture.interlaced_frame
    return flagged and min(picture.width, picture.height) >= _MIN_SIDE


def deinterlaced(picture: Any, before: Any | None, after: Any | None) -> Any:
    """Return an interlaced picture with the lines of its second field made anew, for the time of its first.

    `before` and `after` are the pictures beside it, None where there is none: the first picture of a video is
    interpolated within itself, as the filter does. One of another size or pixel format is not used. The result depends
    on these three alone: a filter that has seen no other picture makes it.
    """
    usable = [each if each is not None and _alike(each, picture) else None for each in (before, after)]
    graph = _graph(picture)
    pictures = [each for each in (usable[0], picture, usable[1] or picture) if each is not None]
    for each in pictures:
        graph.vpush(each)
    if len(pictures) > 2:
        graph.vpull()  # the picture before, which is not asked for
    made = graph.vpull()
    if made.format.name != picture.format.name and picture.colorspace != _UNSPECIFIED:
        made.colorspace = _BT601  # the graph has converted a format that the filter does not take
    return made


def _alike(other: Any, picture: Any) -> bool:
    sizes = (other.width, other.height) == (picture.width, picture.height)
    return sizes and bool(other.format.name == picture.format.name)


def _graph(picture: Any) -> Any:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=picture.width, height=picture.height, format=picture.format, time_base=_TICK)
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:parity=auto:deint=all"), graph.add("buffersink"))
    graph.configure()
    return graph
