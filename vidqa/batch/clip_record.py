"""What captioning is made of: clips, the task that they all share, and the journal's records. Data only.

A record says what became of one clip by one task in one attempt. It names clips relative to their folder, so that a
folder that moved is not captioned anew.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

Status = Literal["done", "failed"]
FailedStage = Literal["open", "plan", "video", "caption", "worker", "output"]


@dataclass(frozen=True, slots=True)
class Clip:
    """A file to caption: where it lies, and its name relative to the folder that was given (with `/`)."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a clip, in seconds from its first frame."""

    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said about a part of a clip; without --segments there is one, the whole clip."""

    span: Span
    caption: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip has no caption: where it went wrong, what kind of error it was, and what to do about it."""

    stage: FailedStage
    kind: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Written:
    """A sidecar file as it was before and as it is after, by hash; `name` is relative to the output folder.

    `before` is None where there was no file. What stands between the two is how a crash between journal and
    file is made good, and how a file that somebody changed is told from one that vidqa wrote.
    """

    name: str
    before: str | None
    after: str


@dataclass(frozen=True, slots=True)
class RunFingerprint:
    """What all clips of a run share, and what a record's `task` is the hash of (`key`).

    `prompt` is the template before its fields are filled in; `settings` is all else that an answer depends on.
    """

    key: str
    model: str
    revision: str
    prompt: str
    settings: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One line of the journal: what became of a clip.

    `content` is the identity of the file's content, `modified_ns` when it was written, which spares reading it again
    to know that it is the same; `task` is the key of the Task; `prompt` is the prompt as the model got it; `plan`
    the figures of the plan that ran, empty where there was none; `tokens` counts prompt and answer; `notes` say what
    was unusual about the file, and what was given up when memory ran out.
    """

    name: str
    content: str
    task: str
    status: Status
    attempt: int
    caption: str = ""
    segments: tuple[Segment, ...] = ()
    prompt: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tokens: int = 0
    seconds: float = 0.0
    at: str = ""
    error: Failure | None = None
    output: Written | None = None
    notes: tuple[str, ...] = ()
    modified_ns: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """A clip that is to be captioned; `attempt` counts from 1, `existing` is the text of its sidecar, if any."""

    clip: Clip
    content: str
    attempt: int = 1
    existing: str = ""
    modified_ns: int = 0


def now() -> str:
    """The time of a record, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Captioner(Protocol):
    """What captions clips: in this process, or in another one."""

    def captions(self, pending: Iterable[Pending]) -> Iterator[ClipRecord]:
        """A record for every clip, done or failed, in any order; takes clips as it needs them, some ahead."""

    def finish(self) -> None:
        """Take no more clips, and end with those that were begun; callable from any thread, as `stop` is."""

    def stop(self) -> None:
        """End at once: clips that were begun have no record."""

    def close(self) -> None:
        """Let go of the model, processes and files."""


def record_object(record: ClipRecord) -> dict[str, Any]:
    """A record as JSON's types; what is empty is left out."""
    return {key: value for key, value in asdict(record).items() if value not in (None, "", (), {}, 0)}


def record_from(values: Mapping[str, Any]) -> ClipRecord:
    """The record of an object; raises KeyError, TypeError or ValueError where it is none."""
    kept = dict(values)
    if (segments := kept.get("segments")) is not None:
        kept["segments"] = tuple(Segment(Span(**one["span"]), one["caption"]) for one in segments)
    kept["notes"] = tuple(kept.get("notes", ()))
    if (error := kept.get("error")) is not None:
        kept["error"] = Failure(**error)
    if (output := kept.get("output")) is not None:
        kept["output"] = Written(**output)
    known = {field.name for field in fields(ClipRecord)}
    return ClipRecord(**{key: value for key, value in kept.items() if key in known})
