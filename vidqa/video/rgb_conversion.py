"""Conversion of decoded pictures to RGB: cropped, upright, opaque, in the shape of the stream's first picture.

Transparent parts are white, as in images. Untagged colours are BT.601 below 720 lines and BT.709 from 720 lines on. HDR
is mapped to BT.709.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vidqa.video.deinterlacing import is_interlaced
from vidqa.video.geometry import Orientation, Shape, orientation, quarter_turn
from vidqa.video.tone_mapping import PQ, ToneMapper, is_hdr

if TYPE_CHECKING:
    import numpy

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED of libavutil/pixfmt.h
_HD_LINES = 720
_STRIP_ROWS = 64
_MIN_ASPECT_CHANGE = 0.01  # DVB's two widths of a 4:3 picture, 12:11 and 16:15, differ by more


def orientation_of(picture: Any) -> Orientation:
    """Return how a decoded picture is to be turned and mirrored."""
    try:
        matrix = picture.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18.1 lists no side data if it does not know the type of one, such as EXIF of a JPEG
        return quarter_turn(picture.rotation)
    return Orientation() if matrix is None else orientation(bytes(matrix))


def conversion_notes(picture: Any) -> Iterator[str]:
    """Yield what is changed in a decoded picture by its flags, a sentence each."""
    if is_interlaced(picture):
        yield "The video is interlaced: deinterlaced, one picture for each two fields."
    if is_hdr(picture):
        yield f"The video is HDR ({'PQ' if picture.color_trc == PQ else 'HLG'}): tone-mapped to BT.709."


def as_shown(picture: Any, shape: Shape, tone_mapper: ToneMapper, pixel_aspect: float | None = None) -> "numpy.ndarray":
    """Return (height, width, 3) uint8, C-contiguous; letterbox a picture of another size or `pixel_aspect`."""
    import numpy as np  # a plan opens videos and converts no picture

    if differs(picture, shape, pixel_aspect):
        rgb = _letterboxed(picture, shape, tone_mapper, pixel_aspect)
    else:
        crop, (width, height) = shape.crop, shape.cropped_size
        rgb = _rgb(picture, shape, tone_mapper)[crop.top : crop.top + height, crop.left : crop.left + width]
    turn = shape.orientation
    rgb = rgb.transpose(1, 0, 2) if turn.transposed else rgb
    rgb = rgb[:, ::-1] if turn.left_right else rgb
    return np.ascontiguousarray(rgb[::-1] if turn.top_bottom else rgb)


def differs(picture: Any, shape: Shape, pixel_aspect: float | None = None) -> bool:
    """Return whether a picture's size or pixel aspect differ from the stream's first; None is the same aspect."""
    change = abs((pixel_aspect or shape.pixel_aspect) / shape.pixel_aspect - 1)
    return (picture.width, picture.height) != (shape.width, shape.height) or change > _MIN_ASPECT_CHANGE


def is_untagged_hd(picture: Any) -> bool:
    """Return whether a picture of 720 lines or more has no tag for its colours: players use BT.709."""
    untagged: bool = picture.colorspace == _UNSPECIFIED and not (picture.format.is_rgb or picture.format.has_palette)
    return untagged and picture.height >= _HD_LINES and len(picture.format.components) >= 3


def _letterboxed(picture: Any, shape: Shape, tone_mapper: ToneMapper, pixel_aspect: float | None) -> "numpy.ndarray":
    """Return the whole picture in the middle of the first one's shape, the rest black."""
    import numpy as np

    wide, tall = shape.cropped_size
    width, height = shape.fitted_size(picture.width, picture.height, pixel_aspect)
    left, top = (wide - width) // 2, (tall - height) // 2
    rgb: numpy.ndarray = np.zeros((tall, wide, 3), np.uint8)
    rgb[top : top + height, left : left + width] = _rgb(picture, shape, tone_mapper, width=width, height=height)
    return rgb


def _rgb(picture: Any, shape: Shape, tone_mapper: ToneMapper, **options: Any) -> "numpy.ndarray":
    """Return all of a picture, scaled to a `width` and `height` if given."""
    alpha = not shape.on_white and any(component.is_alpha for component in picture.format.components)
    if is_hdr(picture):
        mapped = tone_mapper.mapped(picture, alpha=alpha, **options)
        return _on_white(mapped) if alpha else mapped
    if is_untagged_hd(picture):
        options["src_colorspace"] = "itu709"
    if alpha:
        return _on_white(picture.to_ndarray(format="rgba", **options))
    rgb: numpy.ndarray = picture.to_ndarray(format="rgb24", **options)
    return rgb


def _on_white(rgba: "numpy.ndarray") -> "numpy.ndarray":
    """Return (height, width, 3) uint8: straight alpha over white, rounded. A few rows at a time, to save memory."""
    import numpy as np

    rgb: numpy.ndarray = np.empty((*rgba.shape[:2], 3), np.uint8)
    for top in range(0, len(rgba), _STRIP_ROWS):
        strip = rgba[top : top + _STRIP_ROWS].astype(np.uint16)
        alpha = strip[..., 3:]
        rgb[top : top + _STRIP_ROWS] = (strip[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return rgb
