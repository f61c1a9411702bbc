"""A decoded picture to the RGB pixels that are shown: cropped, upright, in the shape of the stream's first one."""

from typing import TYPE_CHECKING, Any

from vidqa.video.geometry import Orientation, Shape, orientation

if TYPE_CHECKING:
    import numpy


def orientation_of(picture: Any) -> Orientation:
    """How a decoded picture is to be turned and mirrored."""
    matrix = picture.side_data.get("DISPLAYMATRIX")
    return Orientation() if matrix is None else orientation(bytes(matrix))


def as_shown(picture: Any, shape: Shape) -> "numpy.ndarray":
    """(height, width, 3) uint8, C-contiguous; a picture of another size is letterboxed."""
    import numpy as np  # late: a plan opens videos and converts no picture

    if differs(picture, shape):
        rgb = _letterboxed(picture, shape)
    else:
        crop, (width, height) = shape.crop, shape.cropped_size
        rgb = _rgb(picture)[crop.top : crop.top + height, crop.left : crop.left + width]
    turn = shape.orientation
    rgb = rgb.transpose(1, 0, 2) if turn.transposed else rgb
    rgb = rgb[:, ::-1] if turn.left_right else rgb
    return np.ascontiguousarray(rgb[::-1] if turn.top_bottom else rgb)


def differs(picture: Any, shape: Shape) -> bool:
    """Whether a picture has another size than the stream's first one."""
    return (picture.width, picture.height) != (shape.width, shape.height)


def _letterboxed(picture: Any, shape: Shape) -> "numpy.ndarray":
    """The whole picture in the middle of the first one's shape, the rest black."""
    import numpy as np

    wide, tall = shape.cropped_size
    width, height = shape.fitted_size(picture.width, picture.height)
    left, top = (wide - width) // 2, (tall - height) // 2
    rgb: numpy.ndarray = np.zeros((tall, wide, 3), np.uint8)
    rgb[top : top + height, left : left + width] = _rgb(picture, width=width, height=height)
    return rgb


def _rgb(picture: Any, **size: int) -> "numpy.ndarray":
    rgb: numpy.ndarray = picture.to_ndarray(format="rgb24", **size)
    return rgb
