"""`vidqa history list|search|export`: earlier conversations, those of the session and those of `vidqa ask`."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidqa.cli.console import ExitCode, StderrReporter, format_table, write_json
from vidqa.config import state_folder
from vidqa.errors import HistoryError, UsageError
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_timestamp

if TYPE_CHECKING:
    from vidqa.history.records import Hit, SavedSession
    from vidqa.history.store import History

_LIMIT = 20
_TITLE_CHARACTERS = 60
_FORMATS = ("md", "json", "srt")


def add_history_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the parts of `vidqa history` and their options."""
    parser.description = "Lists, searches and exports earlier conversations. Without a part it lists them."
    parts = parser.add_subparsers(dest="part", metavar="PART", title="parts")
    parser.set_defaults(run=_list, limit=_LIMIT, json=False)
    listing = parts.add_parser("list", help="list conversations, the last used first")
    listing.set_defaults(run=_list)
    search = parts.add_parser("search", help="find questions and answers with a text; case does not matter")
    search.add_argument("text", metavar="TEXT", help="the text, taken literally")
    search.set_defaults(run=_search)
    for part in (listing, search):
        part.add_argument("--limit", type=int, default=_LIMIT, metavar="N", help=f"at most N (default: {_LIMIT})")
        part.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    export = parts.add_parser("export", help="write a conversation as Markdown, JSON or subtitles")
    export.add_argument("id", metavar="ID", type=int, help="the number that the list shows")
    export.add_argument("file", metavar="FILE", nargs="?", help="default: print it; an existing file is kept")
    export.add_argument(
        "--format", choices=_FORMATS, help="Markdown, JSON or SRT (default: as FILE's name says, else md)"
    )
    export.set_defaults(run=_export)
    for part in parts.choices.values():  # also behind the part; one before it is not taken back
        part.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show an error's traceback")


@contextmanager
def _history() -> Iterator["History"]:
    """Yield the history; a notice about its file goes to stderr. Raises HistoryError if it cannot be used."""
    from vidqa.history.store import FILE_NAME, History

    history = History(state_folder() / FILE_NAME)
    try:
        if notice := history.opened():
            StderrReporter(quiet=False).say(notice)
        yield history
    finally:
        with suppress(HistoryError):
            history.close()


def _checked_limit(arguments: argparse.Namespace) -> int:
    if arguments.limit < 1:
        raise UsageError(f"--limit {arguments.limit} is not 1 or more.", f"Leave it out for {_LIMIT}.")
    return int(arguments.limit)


def _list(arguments: argparse.Namespace) -> int:
    limit = _checked_limit(arguments)
    with _history() as history:
        sessions = history.sessions(limit)
    if arguments.json:
        write_json({"schema_version": 1, "conversations": [_session_object(session) for session in sessions]})
    elif sessions:
        _print_table([_session_row(session) for session in sessions], ">>><<")
    else:
        StderrReporter(quiet=False).say("There are no conversations yet: `vidqa ask` and the session save theirs.")
    return ExitCode.OK


def _search(arguments: argparse.Namespace) -> int:
    limit = _checked_limit(arguments)
    with _history() as history:
        hits = history.search(arguments.text, limit)
    if arguments.json:
        write_json({"schema_version": 1, "hits": [_hit_object(hit) for hit in hits]})
    elif hits:
        _print_table([_hit_row(hit) for hit in hits], "><<<")
    else:
        StderrReporter(quiet=False).say(f"No question or answer has the text {safe_line(arguments.text)!r}.")
    return ExitCode.OK


def _export(arguments: argparse.Namespace) -> int:
    from vidqa.history.export import to_json, to_markdown, to_srt, unwritable, write_export

    suffix = arguments.format or _format_of(arguments.file)
    if arguments.file is not None and (why := unwritable(arguments.file)):
        raise UsageError(f"{safe_line(arguments.file)} cannot be written.", why)
    with _history() as history:
        session = history.session(arguments.id)
        turns = history.turns(arguments.id)
    text = dict(zip(_FORMATS, (to_markdown, to_json, to_srt), strict=True))[suffix](session, turns)
    if arguments.file is None:
        sys.stdout.write(text)
    else:
        path = write_export(Path(arguments.file).expanduser(), text)
        StderrReporter(quiet=False).say(f"written to {safe_line(str(path))}")
    return ExitCode.OK


def _format_of(file: str | None) -> str:
    """Return the format that a file's name says; raises UsageError for another one."""
    suffix = "md" if file is None else Path(file).suffix.removeprefix(".").lower()
    if suffix not in _FORMATS:
        raise UsageError(
            f"{safe_line(file or '')} does not say a format.", "End it in .md, .json or .srt, or --format."
        )
    return suffix


def _print_table(rows: list[tuple[str, ...]], align: str) -> None:
    sys.stdout.write("\n".join(format_table(rows, align)) + "\n")


def _when(session: "SavedSession") -> str:
    return f"{session.updated.astimezone():%Y-%m-%d %H:%M}"


def _session_row(session: "SavedSession") -> tuple[str, ...]:
    count = f"{session.turn_count} question{'' if session.turn_count == 1 else 's'}"
    video = f"{safe_line(session.video_name)} {format_timestamp(session.video_seconds)}"
    return str(session.id), _when(session), count, video, _cut(safe_line(session.title))


def _hit_row(hit: "Hit") -> tuple[str, ...]:
    return str(hit.session.id), _when(hit.session), safe_line(hit.session.video_name), safe_line(hit.snippet)


def _cut(text: str) -> str:
    return text if len(text) <= _TITLE_CHARACTERS else text[: _TITLE_CHARACTERS - 1] + "…"


def _session_object(session: "SavedSession") -> dict[str, Any]:
    return {
        "id": session.id,
        "title": session.title,
        "questions": session.turn_count,
        "model": session.model,
        "video": session.video_path,
        "duration_s": round(session.video_seconds, 6),
        "created": session.created.isoformat(),
        "updated": session.updated.isoformat(),
    }


def _hit_object(hit: "Hit") -> dict[str, Any]:
    return {
        "conversation": _session_object(hit.session),
        "question": hit.turn.question,
        "answer": hit.turn.answer,
        "state": hit.turn.state,
        "snippet": hit.snippet,
    }
