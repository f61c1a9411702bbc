"""A folder of numbered pictures: their natural order, the file of their times, and the identity of them all.

Reads names and a text file, no picture.
"""

import math
import os
import re
from pathlib import Path

from vidqa.errors import VideoNotFound, VideoUnreadable
from vidqa.utils.safe_text import safe_line
from vidqa.video.path_completion import is_image_name, is_video_name

TIMESTAMPS_NAME = "timestamps.txt"
MAX_PICTURES = 100_000
_MAX_LINE_BYTES = 64
_SHOWN_CHARACTERS = 40
_REMEDY_TIMES = "Write one time in seconds on each line, ascending, in the order of the pictures' numbers."


def numbered_pictures(folder: str) -> tuple[str, ...]:
    """Return the paths of a folder's numbered pictures in natural order: 2 before 10.

    Hidden files, other files and pictures without a number do not count. Raises VideoNotFound where there is none or
    where videos lie beside them, VideoUnreadable where two have the same number or where there are too many.
    """
    names = _names(folder)
    pictures = [name for name in names if is_image_name(name) and _numbers(name)]
    shown = safe_line(folder)
    if videos := sum(map(is_video_name, names)):
        raise VideoNotFound(
            f"{shown} is a folder with {_count(videos, 'video')} and {_count(len(pictures), 'numbered picture')}.",
            "Give one of its videos, or a folder with the pictures of one video alone.",
        )
    if not pictures:
        raise VideoNotFound(
            f"{shown} is a folder without numbered pictures.",
            "Give one video file, or a folder of pictures such as 1.png, 2.png, 3.png.",
        )
    if len(pictures) > MAX_PICTURES:
        raise VideoUnreadable(
            f"{shown} has {len(pictures):,} numbered pictures; at most {MAX_PICTURES:,} are read as one video.",
            "Divide them into several folders.",
        )
    _check_numbers(pictures)
    return tuple(os.path.join(folder, name) for name in sorted(pictures, key=_natural_key))


def pictures_without_number(folder: str) -> int:
    """Return how many pictures of a folder are left out, since their names have no number."""
    return sum(is_image_name(name) and not _numbers(name) for name in _names(folder))


def is_picture_folder(path: str) -> bool:
    """Return whether a path is a folder that can be opened as a video."""
    try:
        return os.path.isdir(path) and bool(numbered_pictures(path))
    except (VideoNotFound, VideoUnreadable, ValueError):
        return False


def timestamps_file(folder: str, named: str | None) -> str | None:
    """Return the file that has the pictures' times: the named one, else the folder's `timestamps.txt` or None."""
    inside = os.path.join(folder, TIMESTAMPS_NAME)
    return named or (inside if os.path.lexists(inside) else None)


def read_timestamps(path: str, count: int) -> tuple[float, ...]:
    """Return `count` times in seconds, 0 or more and strictly ascending, one from each line that is not blank.

    Raises VideoNotFound where there is no such file, VideoUnreadable for anything else that is wrong with it.
    """
    name = safe_line(Path(path).name)
    if not os.path.isfile(path):
        raise VideoNotFound(f"There is no file {safe_line(path)} with the times of the pictures.", "Check the path.")
    try:
        with open(path, "rb") as file:
            text = file.read(_MAX_LINE_BYTES * MAX_PICTURES).decode("utf-8-sig", "replace")
    except OSError as error:
        raise VideoUnreadable(f"{name} cannot be read: {error.strerror}.", "Change its permissions.") from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    times = [_seconds(name, number, line) for number, line in lines]
    for (number, line), before, after in zip(lines[1:], times, times[1:], strict=False):
        if after <= before:
            raise VideoUnreadable(f"{name}, line {number}: {line} s is not after {before:g} s.", _REMEDY_TIMES)
    if len(times) != count:
        raise VideoUnreadable(f"{name} has {_count(len(times), 'time')} for {_count(count, 'picture')}.", _REMEDY_TIMES)
    return tuple(times)


def largest_picture_bytes(folder: str) -> int:
    """Return the size of a folder's largest picture; raises as `numbered_pictures`, and OSError."""
    return max(map(os.path.getsize, numbered_pictures(folder)))


def file_identity(path: str) -> tuple[int | str, ...]:
    """Return what differs between two files, or two folders of pictures, at the same path; raises OSError.

    Copies can keep a modification time, so the time of the last change of the file's metadata counts too.
    """
    status = os.stat(path)
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    if not os.path.isdir(path):
        return identity
    from hashlib import blake2b  # imported late: with OpenSSL

    digest = blake2b()
    for name in sorted(_names(path)):
        found = os.stat(os.path.join(path, name))
        values = (name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        digest.update(repr(values).encode("utf-8", "surrogateescape"))
    return (*identity, digest.hexdigest())


def _names(folder: str) -> list[str]:
    """Return the names of a folder's files that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file()]
    except OSError as error:
        raise VideoNotFound(f"{safe_line(folder)} cannot be read: {error.strerror}.", "Check the path.") from error


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", os.path.splitext(name)[0])))


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a key by which numbers compare as numbers and text as text, ignoring case."""
    parts = re.split(r"([0-9]+)", os.path.splitext(name)[0])
    return [(int(part), "") if place % 2 else (-1, part.casefold()) for place, part in enumerate(parts)]


def _check_numbers(names: list[str]) -> None:
    """Refuse two pictures of one number, as of two series, or of one series in two formats: their order is unclear."""
    seen: dict[tuple[int, ...], str] = {}
    for name in sorted(names):
        if (other := seen.setdefault(_numbers(name), name)) != name:
            raise VideoUnreadable(
                f"{safe_line(other)} and {safe_line(name)} have the same number, so their order is not known.",
                "Keep the pictures of one video in a folder without others.",
            )


def _seconds(name: str, number: int, line: str) -> float:
    try:
        seconds = float(line)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        shown = safe_line(line[:_SHOWN_CHARACTERS])
        raise VideoUnreadable(f"{name}, line {number}: '{shown}' is no time in seconds of 0 or more.", _REMEDY_TIMES)
    return seconds


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
