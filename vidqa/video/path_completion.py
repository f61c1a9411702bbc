"""Completion of paths to videos and images, by file names alone."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vidqa.utils.safe_text import safe_line

# Usual names of the formats in vidqa.video.container.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".3gp", ".3g2", ".flv",
    ".ogv", ".ogg", ".wmv", ".asf", ".gif", ".mj2",
)  # fmt: skip

# Usual names of the formats in vidqa.video.image_source.
IMAGE_SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip


def is_image_name(name: str) -> bool:
    """Return whether a file of this name is probably an image, still or animated."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_video_name(name: str) -> bool:
    """Return whether a file of this name is probably a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def complete_path(typed: str, accept: Callable[[str], bool] = is_video_name) -> list[str]:
    """Return folders (ending in a slash) and accepted files whose path starts with `typed`, sorted by name.

    The folder part stays as typed, `~` too. Hidden names are listed after a typed dot; names with control characters
    are left out. A folder that cannot be read gives none.
    """
    head, start = typed[: typed.rfind("/") + 1], typed[typed.rfind("/") + 1 :]
    if typed == "~":
        return ["~/"]
    try:
        entries = sorted(_entries(Path(head or ".").expanduser(), start))
    except (OSError, RuntimeError):  # RuntimeError: there is no home to expand
        return []
    return [head + name + "/" * is_folder for name, is_folder in entries if is_folder or accept(name)]


def _entries(folder: Path, start: str) -> Iterator[tuple[str, bool]]:
    """Yield the name of each entry that begins with `start`, and whether it is a folder."""
    with os.scandir(folder) as found:
        for entry in found:
            hidden = entry.name.startswith(".") and not start.startswith(".")
            if entry.name.startswith(start) and not hidden and safe_line(entry.name) == entry.name:
                yield entry.name, entry.is_dir()
