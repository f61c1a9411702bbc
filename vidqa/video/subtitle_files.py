"""Subtitle files: which one belongs to a video, and its bytes as text. Parses nothing; without FFmpeg."""

import codecs
import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vidqa.errors import VideoError, VideoNotFound, VideoUnreadable
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes
from vidqa.video.picture_folder import file_identity

AUTO, EMBEDDED, OFF = "auto", "embedded", "off"
CHOICES = (AUTO, EMBEDDED, OFF)  # anything else is the path of a file
SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
MAX_FILE_BYTES = 8 * 2**20
_MAX_LISTED = 2_000  # names of a folder that are searched for languages: captioning opens every clip of large folders
# In the first line with times of vidqa's captions as SubRip, where players ignore it, and in WebVTT's header.
CAPTION_MARK = "captions by vidqa"
_START_BYTES = 512  # of a file, in which the mark is
_REMEDY = "Give a .srt, .vtt or .ass file with --subs, or use --subs off."
# UTF-32 first: its mark begins like UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"), (codecs.BOM_UTF8, "utf-8-sig"),
)  # fmt: skip


def find_sidecar(video: str) -> str | None:
    """Return the subtitle file beside a video file: `NAME.srt`, else `NAME.LANGUAGE.srt`; None if there is none.

    Of several languages the system's is taken, then English, then the first by name. Languages are found in folders of
    up to 2,000 files. Captions that vidqa wrote are no subtitles.
    """
    return sidecar_and_own(video)[0]


def sidecar_and_own(video: str) -> tuple[str | None, list[str]]:
    """Return what `find_sidecar` finds, and the files with vidqa's own captions that it passed over."""
    own: list[str] = []
    for path in _beside(video):
        if not has_own_captions(path):
            return path, own
        own.append(path)
    return None, own


def has_own_captions(path: str) -> bool:
    """Return whether vidqa wrote the captions in a file; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            lines = decoded(file.read(_START_BYTES))[0].lstrip("\ufeff").splitlines()
    except OSError:
        return False
    marked = next((line for line in lines if line.startswith("WEBVTT") or "-->" in line), "")
    return marked.rstrip().endswith(CAPTION_MARK)


def _beside(video: str) -> Iterator[str]:
    """Yield the subtitle files beside a video file, the preferred first."""
    if os.path.isfile(video):
        stem = os.path.splitext(video)[0]
        yield from (path for suffix in SUFFIXES if os.path.isfile(path := stem + suffix))
        yield from _in_any_language(stem)


def _in_any_language(stem: str) -> Iterator[str]:
    folder, name = os.path.split(stem)
    system = (os.environ.get("LC_ALL") or os.environ.get("LANG") or "")[:2]
    found: list[tuple[int, str]] = []
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _MAX_LISTED + 1)]
    except OSError:
        return
    if len(names) > _MAX_LISTED:
        return
    for one in names:
        if one.startswith(f"{name}.") and one.endswith(SUFFIXES) and (language := language_of(one)):
            order = [system, "en"].index(language[:2]) if language[:2] in (system, "en") else 2
            found.append((order, one))
    paths = (os.path.join(folder, one) for _, one in sorted(found))
    yield from (path for path in paths if os.path.isfile(path))


def language_of(name: str) -> str:
    """Return the language in a subtitle file's name, `en` of `clip.en.srt`; empty if there is none."""
    parts = name.split(".")
    code = parts[-2] if len(parts) > 2 else ""
    main = code.split("-")[0].split("_")[0]
    return code if main.isascii() and main.isalpha() and 2 <= len(main) <= 3 and len(code) <= 12 else ""


def chosen_file(video: str, subs: str) -> str | None:
    """Return the subtitle file that a choice (`Request.subs`) names or finds; None where no file is read."""
    if subs == AUTO:
        return find_sidecar(video)
    return None if subs in CHOICES else subs


def subtitle_identity(video: str, subs: str) -> tuple[object, ...]:
    """Return what differs between two choices of subtitles, or two versions of the file that is read."""
    path = chosen_file(video, subs)
    try:
        return (subs,) if path is None else (subs, os.path.realpath(path), *file_identity(path))
    except (OSError, ValueError, VideoError):
        return subs, path  # gone: reading it says so


def read_subtitle_file(path: str) -> tuple[str, tuple[str, ...]]:
    """Return a file's text and notes on its encoding; raise VideoNotFound or VideoUnreadable."""
    name = safe_line(Path(path).name)
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise VideoUnreadable(f"The subtitles {name} are not a regular file.", _REMEDY)
        if status.st_size > MAX_FILE_BYTES:
            most = format_bytes(MAX_FILE_BYTES)
            raise VideoUnreadable(f"{name} has {format_bytes(status.st_size)}; subtitles have {most} at most.", _REMEDY)
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoNotFound(f"There is no subtitle file {safe_line(path)}: {reason}.", _REMEDY) from error
    text, encoding = decoded(data)
    return text, tuple(_encoding_note(name, encoding))


def decoded(data: bytes) -> tuple[str, str]:
    """Return the bytes of a subtitle file as text, and their encoding: Unicode, else Windows-1252."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "replace"), encoding
    if (order := _utf16_order(data)) is not None:
        return data.decode(order, "replace"), order
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace"), "cp1252"


def _utf16_order(data: bytes) -> str | None:
    """Return the byte order of UTF-16 without a mark: every other byte of a subtitle's digits and breaks is 0."""
    start = data[:512]
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = start[offset::2].count(0)
        if len(start) >= 8 and zeros > len(start) // 4 and start.count(0) == zeros:
            return encoding
    return None


def _encoding_note(name: str, encoding: str) -> Iterator[str]:
    if encoding == "cp1252":
        yield f"{name} is not UTF-8: it is read as Windows-1252."
