"""Output formats of captions: txt, json, srt and vtt sidecars; jsonl and csv files for a whole run.

JSON keeps every text exactly; bytes of a file name that are not UTF-8 appear as lone surrogates, which `os.fsencode`
turns back. In the other formats, text that a terminal, a player or a spreadsheet would interpret is escaped.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vidqa.batch.clip_record import ClipRecord, RunFingerprint, Segment
from vidqa.utils.safe_text import safe_json, safe_text
from vidqa.utils.units import format_cue_time, format_timestamp
from vidqa.video.subtitle_files import CAPTION_MARK

_COLUMNS = ("path", "caption", "model", "prompt", "seconds", "error")
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_SUBRIP = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")"})  # SubRip has no escapes, and players differ in tags
_WEBVTT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

RecordPairs = Iterable[tuple[ClipRecord, RunFingerprint]]


@dataclass(frozen=True, slots=True)
class CaptionAffixes:
    """Text put before and after every caption, without added spaces."""

    prefix: str = ""
    suffix: str = ""

    def __call__(self, caption: str) -> str:
        return f"{self.prefix}{caption}{self.suffix}"


def sidecar_text(format_name: str, record: ClipRecord, run: RunFingerprint, affixes: CaptionAffixes) -> str:
    """Return the content of a clip's sidecar in a format of SIDECARS; lines end with a newline."""
    return SIDECARS[format_name](record, run, affixes)


def run_lines(format_name: str, rows: RecordPairs, affixes: CaptionAffixes) -> Iterator[str]:
    """Yield the content of the file for all clips in a format of RUN_FILES, line by line."""
    return RUN_FILES[format_name](rows, affixes)


def output_object(record: ClipRecord, run: RunFingerprint, affixes: CaptionAffixes) -> dict[str, Any]:
    """Return a clip's output record; `caption` is None if it failed, else `error` is. Times are in seconds."""
    error = record.error
    return {
        "path": record.name,
        "caption": None if record.status == "failed" else affixes(record.caption),
        "segments": [_segment_object(segment, affixes) for segment in record.segments],
        "model": f"{run.model}@{run.revision}" if run.revision else run.model,
        "prompt": record.prompt,
        "plan": dict(record.plan),
        "seconds": round(record.seconds, 3),
        "notes": list(record.notes),
        "error": error and {"stage": error.stage, "class": error.kind, "message": error.message, "hint": error.hint},
    }


def _segment_object(segment: Segment, affixes: CaptionAffixes) -> dict[str, Any]:
    span = segment.span
    times = {"start_s": round(span.start_seconds, 3), "end_s": round(span.end_seconds, 3)}
    return times | {"caption": affixes(segment.caption)}


def _txt(record: ClipRecord, run: RunFingerprint, affixes: CaptionAffixes) -> str:
    """Return the caption; with several segments, one line with times for each."""
    if len(record.segments) < 2:
        return f"{_printable(affixes(record.caption))}\n"
    return "".join(
        f"[{format_timestamp(segment.span.start_seconds)}–{format_timestamp(segment.span.end_seconds)}] "
        f"{' '.join(_printable(affixes(segment.caption)).split())}\n"
        for segment in record.segments
    )


def _json(record: ClipRecord, run: RunFingerprint, affixes: CaptionAffixes) -> str:
    return safe_json(output_object(record, run, affixes), indent=2) + "\n"


def _subrip(record: ClipRecord, run: RunFingerprint, affixes: CaptionAffixes) -> str:
    mark = f" {CAPTION_MARK}"  # behind the first times, where FFmpeg and players take no notice of it
    return "\n".join(
        f"{number}\n{_times(start, end, ',')}{mark * (number == 1)}\n{text.translate(_SUBRIP)}\n"
        for number, (start, end, text) in enumerate(_cues(record, affixes), 1)
    )


def _webvtt(record: ClipRecord, run: RunFingerprint, affixes: CaptionAffixes) -> str:
    return f"WEBVTT - {CAPTION_MARK}\n" + "".join(
        f"\n{_times(start, end, '.')}\n{text.translate(_WEBVTT)}\n" for start, end, text in _cues(record, affixes)
    )


def _times(start: int, end: int, point: str) -> str:
    return f"{format_cue_time(start, point)} --> {format_cue_time(end, point)}"


def _cues(record: ClipRecord, affixes: CaptionAffixes) -> Iterator[tuple[int, int, str]]:
    """Yield start and end in milliseconds and the text without empty lines, which would end the cue."""
    for segment in record.segments:
        start, end = (round(seconds * 1000) for seconds in (segment.span.start_seconds, segment.span.end_seconds))
        lines = (line.strip() for line in _printable(affixes(segment.caption)).split("\n"))
        if text := "\n".join(line for line in lines if line):
            yield start, max(end, start + 1), text  # a cue of no length is invalid, also for a still image


def _jsonl(rows: RecordPairs, affixes: CaptionAffixes) -> Iterator[str]:
    return (safe_json(output_object(record, run, affixes)) + "\n" for record, run in rows)


def _csv(rows: RecordPairs, affixes: CaptionAffixes) -> Iterator[str]:
    writer = csv.writer(_ReturningFile(), lineterminator="\n")
    yield writer.writerow(_COLUMNS)
    for record, run in rows:
        values = output_object(record, run, affixes)
        error = f"{record.error.kind}: {record.error.message}" if record.error else ""
        texts = [values["path"], values["caption"] or "", values["model"], values["prompt"]]
        yield writer.writerow([*map(_cell, texts), values["seconds"], _cell(error)])


class _ReturningFile:
    """A file object for csv.writer whose `write` returns the row; `writerow` passes it on."""

    def write(self, text: str) -> str:
        """Return `text`."""
        return text


def _cell(text: str) -> str:
    """Return a cell's text, behind an apostrophe if a spreadsheet would read it as a formula."""
    shown = _printable(text)
    return f"'{shown}" if shown.startswith(_FORMULA_STARTS) else shown


def _printable(text: str) -> str:
    return safe_text(text.replace("\r\n", "\n"))


SIDECARS: dict[str, Callable[[ClipRecord, RunFingerprint, CaptionAffixes], str]] = {
    "txt": _txt,
    "json": _json,
    "srt": _subrip,
    "vtt": _webvtt,
}
RUN_FILES: dict[str, Callable[[RecordPairs, CaptionAffixes], Iterator[str]]] = {"jsonl": _jsonl, "csv": _csv}
