"""Export of a session as Markdown, JSON or subtitles (SRT) into a new file.

Answers and names are untrusted: control characters, HTML, images and subtitle tags are escaped.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

from vidqa.errors import UsageError
from vidqa.history.records import SavedSession, SavedTurn
from vidqa.history.timestamps import code_spans, find_timestamps, open_fence
from vidqa.messages import duration_text, memory_text
from vidqa.utils.safe_text import safe_json, safe_line, safe_text
from vidqa.utils.units import format_cue_time, format_timestamp

SCHEMA_VERSION = 1
EXPORT_NOTE = "A file that is there already is kept: the new one gets a number."
_SHORTEST_SECONDS, _SPOKEN_SECONDS = 1.0, 4.0
_LONGEST_STEM_BYTES = 100
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!<>|~&])|^(\s*(?:\d+(?=[.)])|[-=](?=\s|[-=])))", re.MULTILINE)
_ACTIVE = re.compile(r"<|!(?=\[)")
_LIST_MARK = re.compile(r"\s*(?:(?:[-*+>#]+|\d{1,3}[.)])\s+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")
_NO_NAME = re.compile(r'[\s/\\:*?"<>|]+')


def to_markdown(session: SavedSession, turns: Sequence[SavedTurn]) -> str:
    """Return a session as Markdown: questions quoted, and one line of figures under each answer."""
    facts = [
        f"- Video: {_escaped(session.video_name)}, {format_timestamp(session.video_seconds)}, "
        f"{session.video_width}×{session.video_height}",
        f"- Model: {_escaped(session.model)}",
        f"- {_utc(session.created)} to {_utc(session.updated)}",
    ]
    parts = [f"# {_escaped(session.video_name)}", "\n".join(facts)]
    for number, turn in enumerate(turns, 1):
        parts += _markdown_turn(number, session, turn)
    return "\n\n".join(parts) + "\n"


def _markdown_turn(number: int, session: SavedSession, turn: SavedTurn) -> Iterator[str]:
    start, end = _range(session, turn)
    yield f"## {number}. {format_timestamp(start)} – {format_timestamp(end)}"
    yield "\n".join(f"> {_escaped(line)}" for line in turn.question.splitlines() or [""])
    if turn.answer.strip():
        yield _markdown_answer(turn.answer)
    if turn.state != "answered":
        yield f"**{turn.state.capitalize()}.** {_escaped(turn.error)}".rstrip()
    if remarks := [*turn.notes, *turn.degraded]:
        yield "\n".join(f"- {_escaped(remark)}" for remark in remarks)
    if figures := describe_figures(turn.plan, turn.usage):
        yield f"*{_escaped(figures)}*"


def describe_figures(plan: Mapping[str, Any], usage: Mapping[str, Any]) -> str:
    """Return one line from `plan_figures` and `usage_figures`; empty without them."""
    if not plan or not usage:
        return ""
    parts = [
        f"{plan['frames']} frames of {plan['width']}×{plan['height']}",
        f"{plan['visual_tokens']:,} visual tokens",
        str(plan["weights"]),
        duration_text(answer_seconds(usage), usage.get("load_s", 0.0), usage["first_token_s"]),
        f"{usage['tokens']} tokens at {usage['tokens_per_s']:.1f}/s",
        memory_text(plan, usage),
    ]
    return " · ".join(parts)


def answer_seconds(usage: Mapping[str, Any]) -> float:
    """Return how long an answer took with loading; older records have only the time without."""
    seconds: float = usage.get("answer_s", usage.get("load_s", 0.0) + usage.get("total_s", usage["first_token_s"]))
    return seconds


def _markdown_answer(text: str) -> str:
    """Return Markdown without HTML and without images, which a viewer would fetch; closes an open code block."""
    text = safe_text(text).strip("\n")
    out, position = [], 0
    for start, end in code_spans(text):
        out += [_ACTIVE.sub(_escaped_active, text[position:start]), text[start:end]]
        position = end
    out.append(_ACTIVE.sub(_escaped_active, text[position:]))
    fence = open_fence(text)
    return "".join(out) + (f"\n{fence}" if fence else "")


def _escaped_active(match: re.Match[str]) -> str:
    return "&lt;" if match[0] == "<" else "\\!"


def _escaped(text: str) -> str:
    """Return text on one line with Markdown's characters escaped."""
    return _MARKDOWN.sub(lambda match: "\\" + match[1] if match[1] else _escaped_mark(match[2]), safe_line(text))


def _escaped_mark(mark: str) -> str:
    """Escape the beginning of a list or a rule; of `1.` the dot, since a digit cannot be escaped."""
    return f"{mark}\\" if mark.strip().isdigit() else f"\\{mark.strip()}"


def to_json(session: SavedSession, turns: Sequence[SavedTurn]) -> str:
    """Return a session as JSON; times in seconds, dates as ISO 8601 in UTC."""
    whole = {
        "schema_version": SCHEMA_VERSION,
        "session": {
            "id": session.id,
            "title": session.title,
            "model": session.model,
            "created": session.created.isoformat(),
            "updated": session.updated.isoformat(),
        },
        "video": {
            "path": session.video_path,
            "duration_s": round(session.video_seconds, 6),
            "width": session.video_width,
            "height": session.video_height,
        },
        "turns": [_turn_object(turn) for turn in turns],
    }
    return safe_json(whole, indent=2) + "\n"


def _turn_object(turn: SavedTurn) -> dict[str, Any]:
    return {
        "question": turn.question,
        "answer": turn.answer,
        "state": turn.state,
        "finish_reason": turn.finish_reason,
        "start_s": turn.start_seconds,
        "end_s": turn.end_seconds,
        "moments": [{"s": moment.seconds, "until_s": moment.until_seconds} for moment in find_timestamps(turn.answer)],
        "plan": dict(turn.plan),
        "usage": dict(turn.usage),
        "notes": list(turn.notes),
        "degraded": list(turn.degraded),
        "error": turn.error,
        "created": turn.created.isoformat(),
        "updated": turn.updated.isoformat(),
    }


@dataclass(frozen=True, slots=True)
class _SubtitleCue:
    start_seconds: float
    end_seconds: float
    text: str


def to_srt(session: SavedSession, turns: Sequence[SavedTurn]) -> str:
    """Return answers as subtitles, ordered by time; empty without an answer.

    An answer that names times becomes a cue for each of them, with its sentence, shown until the named end, else for
    4 s or until the next cue; other answers are shown over the range of the question. Times beyond the video's end are
    skipped, and a cue lasts at least 1 s.
    """
    answered = [turn for turn in turns if turn.state in {"answered", "stopped"} and turn.answer.strip()]
    cues = [cue for turn in answered for cue in _cues(session, turn)]
    cues.sort(key=lambda cue: (cue.start_seconds, cue.end_seconds))
    return "\n".join(
        f"{number}\n{_srt_time(cue.start_seconds)} --> {_srt_time(cue.end_seconds)}\n{cue.text}\n"
        for number, cue in enumerate(cues, 1)
    )


def _cues(session: SavedSession, turn: SavedTurn) -> list[_SubtitleCue]:
    named = list(_named_cues(turn.answer, session.video_seconds))
    if not named:
        start, end = _range(session, turn)
        return [_SubtitleCue(start, max(end, start + _SHORTEST_SECONDS), _subtitle(turn.answer))]
    starts = sorted({cue.start_seconds for cue in named})
    later = dict(itertools.pairwise(starts))
    return [_closed(cue, later.get(cue.start_seconds, session.video_seconds)) for cue in named]


def _named_cues(answer: str, video_seconds: float) -> Iterator[_SubtitleCue]:
    """Yield a cue for each named time, with its sentence; without a named end, it ends at its start."""
    found = [moment for moment in find_timestamps(answer) if moment.seconds <= video_seconds]
    for start, end in _sentences(answer):
        for moment in found:
            if start <= moment.start < end:
                until = min(moment.until_seconds or moment.seconds, video_seconds)
                yield _SubtitleCue(moment.seconds, until, _subtitle(answer[start:end]))


def _closed(cue: _SubtitleCue, next_seconds: float) -> _SubtitleCue:
    end = cue.end_seconds
    if end <= cue.start_seconds:
        end = min(cue.start_seconds + _SPOKEN_SECONDS, next_seconds)
    return _SubtitleCue(cue.start_seconds, max(end, cue.start_seconds + _SHORTEST_SECONDS), cue.text)


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    """Yield the character ranges of sentences: split at line ends and full stops, without list marks."""
    line_start = 0
    for line in text.split("\n"):
        mark = _LIST_MARK.match(line)
        start = mark.end() if mark else 0
        for stop in [*_SENTENCE_END.finditer(line, start), None]:
            end = stop.start() if stop else len(line)
            if line[start:end].strip():
                yield line_start + start, line_start + end
            start = stop.end() if stop else end
        line_start += len(line) + 1


def _subtitle(text: str) -> str:
    """Return text on one line, without what a player would read as a tag, a position or another cue."""
    line = " ".join(safe_text(text).replace("**", "").replace("`", "").split())
    return line.replace("-->", "→").replace("<", "‹").replace(">", "›").replace("{\\", "{ \\")


def _srt_time(seconds: float) -> str:
    return format_cue_time(round(seconds * 1000), ",")


def _range(session: SavedSession, turn: SavedTurn) -> tuple[float, float]:
    start = turn.start_seconds or 0.0
    return start, session.video_seconds if turn.end_seconds is None else min(turn.end_seconds, session.video_seconds)


def _utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def suggest_name(session: SavedSession, suffix: str) -> str:
    """Return a file name for an export: the video's stem, `-answers` and the suffix (`md`, `json`, `srt`)."""
    stem = _NO_NAME.sub("-", safe_line(PurePath(session.video_name).stem)).strip("-. ")
    short = stem.encode("utf-8")[:_LONGEST_STEM_BYTES].decode("utf-8", "ignore")
    return f"{short or 'video'}-answers.{suffix}"


def unwritable(place: str) -> str:
    """Return why no export can be written to a path, with a remedy; empty if nothing is known to prevent it."""
    path = Path(os.path.expanduser(place))
    if not place or os.path.isdir(path):
        return "This is a folder. Add a file name." if place else "Write the path of a file."
    if not os.path.isdir(path.parent):
        return f"There is no folder {path.parent}. Make it first, or choose another."
    return "" if os.access(path.parent, os.W_OK) else f"The folder {path.parent} cannot be written. Choose another."


def write_export(path: Path, text: str) -> Path:
    """Write a file whole or not at all, and never over another: `a.md` becomes `a-2.md`, `a-3.md`... if it exists.

    Returns the path of the file; raises UsageError if it cannot be written.
    """
    part = path.with_name(f".vidqa-{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        with part.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        return _link_to_free_name(part, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.", "Choose another place.") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _link_to_free_name(part: Path, path: Path) -> Path:
    for number in itertools.count(1):
        target = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        with contextlib.suppress(FileExistsError):
            try:
                os.link(part, target)
            except FileExistsError:
                raise
            except OSError:  # no hard links (FAT, some network folders): create the name first, then replace it
                target.open("x").close()
                part.replace(target)
            return target
    raise AssertionError("itertools.count is infinite")
