"""Reading of subtitles with FFmpeg, for the decoder's process: text streams of a container, and subtitle files."""

import io
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import av

from vidqa.errors import VideoError, VideoUnreadable
from vidqa.types import VideoInfo
from vidqa.utils.cues import Subtitles
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_timestamp
from vidqa.video.container import UNREADABLE, as_video_errors, discard_other_streams, open_container
from vidqa.video.subtitle_files import (
    AUTO,
    CHOICES,
    OFF,
    language_of,
    read_subtitle_file,
    sidecar_and_own,
)
from vidqa.video.subtitle_text import ShownLines, event_lines, joined_cues, plain_lines

_TEXT_CODECS = frozenset(("mov_text", "subrip", "srt", "ass", "ssa", "webvtt", "text"))
_MAX_EVENTS = 20_000
_MAX_CHARACTERS = 4 * 2**20
_READ_SECONDS = 20.0  # for a stream whose packets lie between the pictures of a long file
_Disposition = av.stream.Disposition
_PARTIAL = _Disposition.forced | _Disposition.comment  # not all that is said
_REMEDY = "Give a .srt, .vtt or .ass file with --subs, or use --subs off."


def with_subtitles(info: VideoInfo, path: str, subs: str, container: Any = None) -> VideoInfo:
    """Return a video's facts with its subtitles, as `subs` chooses (`Request.subs`), and with notes on them.

    `container` is the video's, open; None for pictures. Raises VideoError children for a file that was named.
    """
    if subs == OFF:
        return info
    if container is not None:
        info = replace(info, has_sound=bool(container.streams.audio))
    if subs not in CHOICES:
        found, notes = read_sidecar(subs)
        return replace(info, subtitles=found, notes=(*info.notes, *notes))
    if subs == AUTO and container is not None:
        sidecar, own = sidecar_and_own(path)
        info = replace(info, notes=(*info.notes, *map(_own_captions_note, own)))
        if sidecar is not None:
            try:
                found, notes = read_sidecar(sidecar)
                return replace(info, subtitles=found, notes=(*info.notes, *notes))
            except VideoError as error:
                info = replace(info, notes=(*info.notes, error.what))
    return info if container is None else _with_stream(info, path, container)


def _own_captions_note(path: str) -> str:
    name = safe_line(Path(path).name)
    return f"{name} has captions that vidqa wrote and is not read as subtitles; --subs FILE reads it"


def read_sidecar(path: str) -> tuple[Subtitles, tuple[str, ...]]:
    """Return the subtitles of a file, and notes on it; raise VideoError children."""
    text, notes = read_subtitle_file(path)
    name, more = safe_line(Path(path).name), list(notes)
    data = io.BytesIO(text.replace("\0", "").encode("utf-8", "replace"))
    kind = _format(text)
    with as_video_errors(path), av.open(data, format=kind, options={"protocol_whitelist": "file"}) as file:
        shown = list(_events(file, file.streams.subtitles[0], 0.0, more))
    if kind != "ass" and len(more) == len(notes):  # else the end was not read
        more += _empty_note(name, text, len(shown))
    cues = joined_cues(shown)
    if not cues:
        raise VideoUnreadable(f"{name} has no subtitle that can be read.", _REMEDY)
    return Subtitles(name, language_of(Path(path).name), cues), tuple(more)


def _empty_note(name: str, text: str, read: int) -> Iterator[str]:
    """Yield how many captions of a file, of which so many were `read`, show nothing.

    FFmpeg leaves out empty ones and equal ones, so both numbers are needed.
    """
    _, *captions = re.split(r"-->.*\n?", "\n".join(text.splitlines()))
    shown = (plain_lines("\n".join(takewhile(str.strip, caption.split("\n")))) for caption in captions)
    empty = min(sum(not lines for lines in shown), len(captions) - read)
    if read and empty > 0:
        yield f"{name}: {empty} of {len(captions)} captions {'is' if empty == 1 else 'are'} empty."


def _format(text: str) -> str:
    """Return FFmpeg's name of a subtitle file's format, by its content: names lie."""
    start = text.lstrip("\ufeff \r\n\t")[:4096]
    if start.startswith("WEBVTT"):
        return "webvtt"
    return "ass" if "[script info]" in start.lower() else "srt"


def _with_stream(info: VideoInfo, path: str, container: Any) -> VideoInfo:
    """Return the facts with the subtitles of the container's best text stream, if it has one."""
    streams = container.streams.subtitles
    readable = [one for one in streams if _codec(one) in _TEXT_CODECS]
    if not readable:
        return replace(info, notes=(*info.notes, *_bitmap_note(streams)))
    best = min(readable, key=_rank)
    zero, notes = info.start_seconds - info.lead_seconds, list(info.notes)
    shown: list[ShownLines] = []
    with suppress(VideoError), open_container(os.path.abspath(path), _READ_SECONDS) as again:
        stream = again.streams[best.index]
        discard_other_streams(again, stream)
        shown = list(_events(again, stream, zero, notes))
    if not (cues := joined_cues(shown)):
        return replace(info, notes=tuple(notes))
    found = Subtitles(f"stream {best.index}", safe_line(best.language or "")[:12].replace("und", ""), cues)
    return replace(info, subtitles=found, notes=tuple(notes))


def _codec(stream: Any) -> str:
    return stream.codec_context.name if stream.codec_context is not None else "of an unknown format"


def _rank(stream: Any) -> tuple[bool, bool, int]:
    return bool(stream.disposition & _PARTIAL), not stream.disposition & _Disposition.default, stream.index


def _bitmap_note(streams: Any) -> Iterator[str]:
    """Yield which subtitles are there and cannot be read."""
    if streams:
        kinds = ", ".join(sorted({safe_line(_codec(stream)) for stream in streams}))
        yield f"The file's subtitles are no text ({kinds}) and are not read; --subs FILE gives them as text."


def _events(container: Any, stream: Any, zero: float, notes: list[str]) -> Iterator[ShownLines]:
    """Yield what a text stream shows, in seconds from `zero`; events that cannot be decoded are left out.

    Ends at the limits on number, text and time, or at damage, and adds to `notes` up to where it came.
    """
    until, characters, count, tick, start = time.monotonic() + _READ_SECONDS, 0, 0, float(stream.time_base), 0.0
    with suppress(*UNREADABLE):
        for packet in container.demux(stream):
            if count >= _MAX_EVENTS or characters >= _MAX_CHARACTERS or time.monotonic() > until:
                break
            if packet.pts is None or not packet.size:
                continue
            start, lines = packet.pts * tick - zero, _lines(stream, packet)
            count, characters = count + 1, characters + sum(map(len, lines))
            if lines:
                yield ShownLines(round(start, 3), round(start + max(packet.duration or 0, 0) * tick, 3), lines)
        else:
            return
    notes.append(
        f"The subtitles are read until {format_timestamp(max(start, 0.0))} only: the rest is too long or damaged."
    )


def _lines(stream: Any, packet: Any) -> tuple[str, ...]:
    with suppress(*UNREADABLE):
        if (decoded := stream.decode2(packet)) is not None:
            events = (one.ass for one in decoded.rects if hasattr(one, "ass"))
            return tuple(line for event in events for line in event_lines(event.decode("utf-8", "replace")))
    return ()
