"""Writing a file whole or not at all. Knows paths and bytes, not what is in them."""

import contextlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, so that nobody ever reads half of it; raises OSError.

    What a symbolic link points to is replaced, not the link, and a file keeps its permissions.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, [text.encode()], target.with_name(f"{target.name}.{os.getpid()}.tmp"))
    sync_folder(target.parent)


def replace_file(target: Path, pieces: Iterable[bytes], temporary: Path) -> None:
    """Put pieces in a file's place at once, by way of another name in its folder; raises OSError.

    After a loss of power there is the old file or the new one; `sync_folder` makes it the new one. A symbolic link is
    replaced itself, what it points to stays; a file keeps its permissions. What a killed process left at `temporary`
    is removed first.
    """
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # before the name changes hands: a crash leaves the old text or the new
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(mode := target.lstat().st_mode):
                temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, where the system has a way to; raises OSError."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
