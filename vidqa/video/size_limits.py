"""How large a picture may be, and how much memory reading a file may take: one rule for every container and codec.

A size is checked as the header says it, before anything is decoded, and again for every picture that comes out of a
decoder, since a stream can change its size. Plain arithmetic.
"""

from vidqa.errors import PictureTooLarge

MAX_PIXELS = 8192 * 4352
MAX_SIDE = 32_767  # the longest side that Chromium plays (media/base/limits.h) and that browsers draw
MAX_ASPECT = 200  # qwen-vl-utils 0.0.14, smart_resize

REMEDY_SMALLER = "Make them smaller or crop them: ffmpeg -i IN -vf scale=1920:-2 OUT, ffmpeg -i IN -vf crop=W:H OUT"

# A decoder may take this much for any file, and more for a larger one: a few kilobytes cannot buy gigabytes. 12 frames
# of 8K HEVC took 0.75 GiB with one thread and 1.1 GiB with eight; such a video has megabytes for every second.
_BASE_BYTES = 560 * 2**20
_BYTES_PER_FILE_BYTE = 64
_MOST_BYTES = 12 * 2**30
_BYTES_PER_THREAD_PIXEL = 9  # 8-bit 4:2:0 at twice the pictures that a thread was seen to hold; 10 bits take double


def check_picture_size(name: str, width: int, height: int, pixel_aspect: float = 1.0) -> None:
    """Refuse a picture that is too large or too long, as stored or as shown; raises PictureTooLarge.

    `width` and `height` are in pixels as stored; 0 is unknown and passes. `pixel_aspect` is the width of a pixel over
    its height. Rotation changes nothing here. An absurd pixel aspect is not ignored: FFmpeg's players stretch the
    picture by it and Chromium refuses the file, so no player shows another shape.
    """
    if width < 1 or height < 1:
        return
    stored = f"{width}×{height}"
    if width * height > MAX_PIXELS:
        found = f"{stored} = {width * height:,} pixels; at most {MAX_PIXELS:,} are decoded."
        raise PictureTooLarge(f"{name} has pictures of {found}", REMEDY_SMALLER)
    if fault := _shape_fault(width, height):
        raise PictureTooLarge(f"{name} has pictures of {stored}{fault}", REMEDY_SMALLER)
    if fault := _shape_fault(width * pixel_aspect, height):
        raise PictureTooLarge(
            f"{name} has pixels {pixel_aspect:,.6g} times as wide as high: its pictures of {stored} are shown at "
            f"{width * pixel_aspect:,.1f}×{height:,}{fault}",
            "Give it another aspect: ffmpeg -i IN -c copy -aspect 16:9 OUT",
        )


def _shape_fault(width: float, height: float) -> str:
    """The rule that a shape breaks, as the end of a sentence; empty where it breaks none."""
    short, long = sorted((width, height))
    if long > MAX_SIDE:
        return f"; a side of at most {MAX_SIDE:,} pixels is decoded."
    if long > short * MAX_ASPECT:
        return f", longer than {MAX_ASPECT}:1, which Qwen2-VL does not take."
    return ""


def decoding_limit_bytes(file_bytes: int) -> int:
    """How many bytes of memory a process may take to decode a file of this size."""
    return min(_BASE_BYTES + _BYTES_PER_FILE_BYTE * file_bytes, _MOST_BYTES)


def decoding_threads(file_bytes: int, width: int, height: int, most: int) -> int:
    """How many threads may decode pictures of a size at once, 1 to `most`: each holds pictures."""
    return min(max(decoding_limit_bytes(file_bytes) // (_BYTES_PER_THREAD_PIXEL * max(width * height, 1)), 1), most)
