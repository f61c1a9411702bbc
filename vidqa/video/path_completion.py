"""Which file names are offered as videos, and which as images. Looks at names alone, never into a file."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vidqa.utils.safe_text import safe_line

# What vidqa.video.container opens, by the names that such files usually have.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".3gp", ".3g2", ".flv",
    ".ogv", ".ogg", ".wmv", ".asf", ".gif", ".mj2",
)  # fmt: skip

# What vidqa.video.image_source opens.
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip


def is_image_name(name: str) -> bool:
    """Whether a file of this name is probably an image; an animated one may be."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_video_name(name: str) -> bool:
    """Whether a file of this name is probably a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def complete_path(typed: str, wanted: Callable[[str], bool] = is_video_name) -> list[str]:
    """Folders (with a slash at their end) and wanted files whose path starts with what was typed, by name.

    The folder part stays as it was typed, `~` too. Hidden names come where a dot was typed; names
    that a terminal would obey are left out, and a folder that cannot be read has nothing to offer.
    """
    head, start = typed[: typed.rfind("/") + 1], typed[typed.rfind("/") + 1 :]
    if typed == "~":
        return ["~/"]
    try:
        entries = sorted(_entries(Path(head or ".").expanduser(), start))
    except (OSError, RuntimeError):  # RuntimeError: there is no home to expand
        return []
    return [head + name + "/" * is_folder for name, is_folder in entries if is_folder or wanted(name)]


def _entries(folder: Path, start: str) -> Iterator[tuple[str, bool]]:
    """Name and whether it is a folder, of what begins with `start`."""
    with os.scandir(folder) as found:
        for entry in found:
            hidden = entry.name.startswith(".") and not start.startswith(".")
            if entry.name.startswith(start) and not hidden and safe_line(entry.name) == entry.name:
                yield entry.name, entry.is_dir()
