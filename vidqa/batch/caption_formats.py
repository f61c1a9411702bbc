"""Records as text: a sidecar for each clip, or one file for all. Pure: no file is opened, nothing is held in memory.

JSON keeps everything as it is, odd file names too (a byte that is no UTF-8 is the escape of a lone surrogate, which
`os.fsencode` turns back into the byte). The other formats are for people and for players: in them what a terminal, a
player or a spreadsheet would obey is made harmless, and characters that no UTF-8 can hold are shown as escapes.
"""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vidqa.batch.clip_record import ClipRecord, RunFingerprint, Segment
from vidqa.utils.safe_text import safe_json, safe_text
from vidqa.utils.units import format_timestamp

_COLUMNS = ("path", "caption", "model", "prompt", "seconds", "error")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # what a spreadsheet takes for one
_SUBRIP = str.maketrans({"<": "‹", ">": "›", "{": "(", "}": ")"})  # no escapes there, and players differ in tags
_WEBVTT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True)
class Decorate:
    """What stands before and after every caption, spaces included."""

    prefix: str = ""
    suffix: str = ""

    def __call__(self, caption: str) -> str:
        return f"{self.prefix}{caption}{self.suffix}"


def sidecar_text(format_name: str, record: ClipRecord, task: RunFingerprint, decorate: Decorate) -> str:
    """What stands in the sidecar of a clip, with `format_name` one of SIDECARS; lines end with a newline."""
    return SIDECARS[format_name](record, task, decorate)


def run_lines(format_name: str, rows: Iterable[tuple[ClipRecord, RunFingerprint]], decorate: Decorate) -> Iterator[str]:
    """What stands in the one file for all clips, piece by piece, with `format_name` one of RUN_FILES."""
    return RUN_FILES[format_name](rows, decorate)


def output_object(record: ClipRecord, task: RunFingerprint, decorate: Decorate) -> dict[str, Any]:
    """The output record of a clip; `caption` is None where it failed, `error` where it did not. Times in seconds."""
    error = record.error
    return {
        "path": record.name,
        "caption": None if record.status == "failed" else decorate(record.caption),
        "segments": [_segment_object(segment, decorate) for segment in record.segments],
        "model": _model(task),
        "prompt": record.prompt,
        "plan": dict(record.plan),
        "seconds": round(record.seconds, 3),
        "notes": list(record.notes),
        "error": error and {"stage": error.stage, "class": error.kind, "message": error.message, "hint": error.hint},
    }


def _segment_object(segment: Segment, decorate: Decorate) -> dict[str, Any]:
    span = segment.span
    times = {"start_s": round(span.start_seconds, 3), "end_s": round(span.end_seconds, 3)}
    return times | {"caption": decorate(segment.caption)}


def _model(task: RunFingerprint) -> str:
    return f"{task.model}@{task.revision}" if task.revision else task.model


def _plain(record: ClipRecord, task: RunFingerprint, decorate: Decorate) -> str:
    """The caption; of a clip in several segments, a line for each with its times."""
    if len(record.segments) < 2:
        return f"{_shown(decorate(record.caption))}\n"
    return "".join(f"[{_times(segment)}] {_one_line(decorate(segment.caption))}\n" for segment in record.segments)


def _times(segment: Segment) -> str:
    return f"{format_timestamp(segment.span.start_seconds)}–{format_timestamp(segment.span.end_seconds)}"


def _json(record: ClipRecord, task: RunFingerprint, decorate: Decorate) -> str:
    return safe_json(output_object(record, task, decorate), indent=2) + "\n"


def _subrip(record: ClipRecord, task: RunFingerprint, decorate: Decorate) -> str:
    cues = enumerate(_cues(record, decorate), 1)
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text.translate(_SUBRIP)}\n"
        for number, (start, end, text) in cues
    )


def _webvtt(record: ClipRecord, task: RunFingerprint, decorate: Decorate) -> str:
    cues = (
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{text.translate(_WEBVTT)}\n"
        for start, end, text in _cues(record, decorate)
    )
    return "WEBVTT\n" + "".join(cues)


def _cues(record: ClipRecord, decorate: Decorate) -> Iterator[tuple[int, int, str]]:
    """Beginning and end in milliseconds, and the text without empty lines, which would end the cue."""
    for segment in record.segments:
        start, end = (round(seconds * 1000) for seconds in (segment.span.start_seconds, segment.span.end_seconds))
        lines = (line.strip() for line in _shown(decorate(segment.caption)).split("\n"))
        if text := "\n".join(line for line in lines if line):
            yield start, max(end, start + 1), text  # a cue has to last, that of a still image too


def _clock(milliseconds: int, point: str) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _jsonl(rows: Iterable[tuple[ClipRecord, RunFingerprint]], decorate: Decorate) -> Iterator[str]:
    return (safe_json(output_object(record, task, decorate)) + "\n" for record, task in rows)


def _csv(rows: Iterable[tuple[ClipRecord, RunFingerprint]], decorate: Decorate) -> Iterator[str]:
    writer = csv.writer(_FormatField(), lineterminator="\n")
    yield writer.writerow(_COLUMNS)
    for record, task in rows:
        values = output_object(record, task, decorate)
        error = f"{record.error.kind}: {record.error.message}" if record.error else ""
        texts = [values["path"], values["caption"] or "", values["model"], values["prompt"]]
        yield writer.writerow([*map(_cell, texts), values["seconds"], _cell(error)])


class _FormatField:
    """A file for the csv module that hands each row back instead of keeping it."""

    def write(self, text: str) -> str:
        """The row."""
        return text


def _cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe before it makes it text."""
    shown = _shown(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _shown(text: str) -> str:
    return safe_text(text.replace("\r\n", "\n"))


def _one_line(text: str) -> str:
    return " ".join(_shown(text).split())


SIDECARS: dict[str, Callable[[ClipRecord, RunFingerprint, Decorate], str]] = {
    "txt": _plain,
    "json": _json,
    "srt": _subrip,
    "vtt": _webvtt,
}
RUN_FILES: dict[str, Callable[[Iterable[tuple[ClipRecord, RunFingerprint]], Decorate], Iterator[str]]] = {
    "jsonl": _jsonl,
    "csv": _csv,
}
