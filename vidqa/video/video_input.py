"""What a user names as a video, as a local path: a path, a `file://` address, or standard input.

Other addresses are refused with the command that fetches them.
"""

import errno
import os
import re
import select
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from vidqa.errors import UsageError
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes
from vidqa.video.path_completion import is_image_name, is_video_name

STDIN = "-"
MAX_STDIN_BYTES = 16 * 2**30
_LEFT_FREE_BYTES = 512 * 2**20  # on the disk of temporary files, for other programs
_BLOCK_BYTES = 2**20
_WAIT_SECONDS = 0.2
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FILE_ADDRESS = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)?", re.IGNORECASE | re.DOTALL)
_FETCHERS = {
    "rtsp": "ffmpeg -i {} -c copy -t 60 clip.mkv",
    "rtsps": "ffmpeg -i {} -c copy -t 60 clip.mkv",
    "rtmp": "ffmpeg -i {} -c copy -t 60 clip.mkv",
    "rtmps": "ffmpeg -i {} -c copy -t 60 clip.mkv",
    "s3": "aws s3 cp {} .",
    "gs": "gcloud storage cp {} .",
}
_NAME = "stdin"  # of the temporary file, as it is in messages about it


def local_path(typed: str) -> str:
    """Return the path that was typed, or that a `file://` address names.

    Raises UsageError for a file on another host, and for other addresses, with the command that fetches the video.
    """
    if typed.lower().startswith(("file://", "file:/")):
        return _path_of_address(typed)
    if found := _ADDRESS.match(typed):
        raise _not_local(typed, found[1].lower())
    return typed


def _path_of_address(address: str) -> str:
    """Return the decoded path of a `file:` address (RFC 8089); raises UsageError for another host or no path."""
    found = _FILE_ADDRESS.fullmatch(address)
    host, path = (found["host"] or "", found["path"] or "") if found else ("", "")
    if host.lower() not in ("", "localhost"):
        raise UsageError(
            f"{safe_line(address)} is a file on the host {safe_line(host)}.",
            "Copy it to this machine and give its path, or write file:///PATH.",
        )
    if not path:
        raise UsageError(f"{safe_line(address)} names no file.", "Write file:///PATH.")
    return os.fsdecode(unquote_to_bytes(os.fsencode(path)))


def _not_local(address: str, scheme: str) -> UsageError:
    quoted = safe_line(shlex.quote(address))
    what = f"{safe_line(address)} is an address; vidqa reads local files and downloads no video."
    if scheme in ("http", "https", "ftp", "ftps", "sftp"):
        try:
            name = PurePosixPath(urlsplit(address).path).name
        except ValueError:  # for example brackets around no IPv6 address
            return UsageError(what, "Check the address, download the video, and give the file.")
        if scheme not in ("http", "https") or is_video_name(name) or is_image_name(name):
            plain = "" if not re.search(r"[][{}]", address) else "--globoff "  # else curl expands them
            return UsageError(what, f"Run `curl {plain}-LO {quoted}` and give the file that it writes.")
        return UsageError(what, f'Run `yt-dlp -f "bv*[height<=720]" -o clip.mp4 {quoted}` and give clip.mp4.')
    if command := _FETCHERS.get(scheme):
        return UsageError(what, f"Run `{command.format(quoted)}` and give the file that it writes.")
    return UsageError(what, "Download the video and give the file.")


@contextmanager
def spooled(stream: BinaryIO, max_bytes: int = MAX_STDIN_BYTES) -> Iterator[str]:
    """Copy a stream into a temporary file that this user alone may read; yield its path, and remove it at the end.

    Raises UsageError where the stream is empty, or longer than `max_bytes` or what the disk has free.
    """
    try:
        folder = tempfile.mkdtemp(prefix="vidqa-stdin-")  # mode 0700
    except OSError as error:
        raise UsageError(
            f"No temporary file can be made for standard input: {error.strerror}.", "Set TMPDIR to another folder."
        ) from error
    try:
        path = os.path.join(folder, _NAME)
        if not _copy(stream, path, min(max_bytes, shutil.disk_usage(folder).free - _LEFT_FREE_BYTES), folder):
            raise UsageError(
                "Standard input is empty.", "Pipe a video into it, for example `cat clip.mp4 | vidqa ask - QUESTION`."
            )
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy(stream: BinaryIO, path: str, limit_bytes: int, folder: str) -> int:
    """Copy a stream into a new file and return its size in bytes; raises UsageError above the limit."""
    size, limit_bytes = 0, max(limit_bytes, 0)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            while block := _next_block(stream):
                size += len(block)
                if size > limit_bytes:
                    raise _too_long(limit_bytes, folder)
                file.write(block)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _too_long(size, folder) from error
        raise UsageError(
            f"Standard input cannot be copied to {safe_line(folder)}: {error.strerror}.", "Save it as a file first."
        ) from error
    return size


def _next_block(stream: BinaryIO) -> bytes:
    """Return the next bytes of a stream, none at its end.

    A signal that comes just before a read does not interrupt it, so a pipe is waited for in short steps.
    """
    try:
        descriptor = stream.fileno()
    except OSError:  # not a file, as io.BytesIO
        return stream.read(_BLOCK_BYTES)
    while not select.select([descriptor], [], [], _WAIT_SECONDS)[0]:
        pass
    return os.read(descriptor, _BLOCK_BYTES)


def _too_long(limit_bytes: int, folder: str) -> UsageError:
    place = safe_line(os.path.dirname(folder))
    return UsageError(
        f"Standard input has more than {format_bytes(limit_bytes)}, the most that is copied to {place}.",
        "Save it as a file and give that, or set TMPDIR to a folder with more room "
        f"(at most {format_bytes(MAX_STDIN_BYTES)} are copied).",
    )
