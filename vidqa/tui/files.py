"""Which files look like videos, and what a half-typed path may become. Reads folders, opens no file."""

import os
from pathlib import Path

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .mts .flv .wmv .ogv .3gp .gif".split()
)
_MOST_CANDIDATES = 50


def is_video(path: Path) -> bool:
    """Whether a regular file's name says that it is a video."""
    try:
        return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
    except (OSError, ValueError):
        return False


def completions(typed: str) -> list[str]:
    """What a half-typed path may become: folders (with a slash) and videos that begin so, folders first."""
    folder, _, begun = typed.rpartition("/")
    base = Path(folder + "/" if folder or typed.startswith("/") else ".").expanduser()
    found: list[tuple[bool, str]] = []
    try:
        with os.scandir(base) as entries:
            for entry in entries:
                if entry.name.startswith(begun) and (begun.startswith(".") or not entry.name.startswith(".")):
                    is_folder = entry.is_dir()
                    if is_folder or Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                        found.append((not is_folder, entry.name + "/" * is_folder))
    except (OSError, ValueError):
        return []
    prefix = typed[: len(typed) - len(begun)]
    return [prefix + name for _, name in sorted(found)[:_MOST_CANDIDATES]]
