"""Atomic writing of files."""

import contextlib
import os
import stat
import threading
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file atomically and wait for the disk; raises OSError.

    Follows a symbolic link; keeps the permissions of an existing file.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}-{threading.get_ident()}"  # of two threads, neither may replace the other's half file
    replace_file(target, [text.encode()], target.with_name(f"{target.name}.{writer}.tmp"))
    sync_folder(target.parent)


def replace_file(target: Path, pieces: Iterable[bytes], temporary: Path) -> None:
    """Replace a file atomically by way of `temporary`, a path in the same folder; raises OSError.

    After a loss of power the file is the old or the new one; with `sync_folder` it is the new one. Replaces a symbolic
    link, not its target; keeps the permissions of an existing file. Removes a leftover of a killed process at
    `temporary` first.
    """
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # before the rename, so that a crash leaves the old text or the new
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISREG(mode := target.lstat().st_mode):
                temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, on POSIX systems; raises OSError."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
