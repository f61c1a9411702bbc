"""Data types of captioning: clips, the fingerprint of a run, journal records and the Captioner protocol.

Records name clips relative to the clips' folder, so that captions stay valid when the folder moves.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

Status = Literal["done", "failed"]
FailedStage = Literal["open", "plan", "video", "caption", "worker", "output"]


@dataclass(frozen=True, slots=True)
class Clip:
    """A file to caption: its path, and its name relative to the given folder (with `/`)."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a clip, in seconds from its first frame."""

    start_seconds: float
    end_seconds: float


@dataclass(frozen=True, slots=True)
class Segment:
    """The caption of a part of a clip; without --segments there is one segment, the whole clip."""

    span: Span
    caption: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a clip has no caption: the stage that failed, the error's class name, its message and a remedy."""

    stage: FailedStage
    kind: str
    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class SidecarWrite:
    """SHA-256 of a sidecar file before and after a write; `name` is relative to the output folder.

    `before` is None if there was no file. After a crash the hashes show whether the write happened, and they
    distinguish files that vidqa wrote from files that a user edited.
    """

    name: str
    before: str | None
    after: str


@dataclass(frozen=True, slots=True)
class RunFingerprint:
    """What all clips of a run share. `key` is the hash of the other fields; records refer to it.

    `prompt` is the template with its fields unfilled; `settings` holds every other option that changes answers.
    """

    key: str
    model: str
    revision: str
    prompt: str
    settings: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """One line of the journal: the result of one attempt at one clip.

    `content` identifies the file's content and `modified_ns` its modification time; `task` is the RunFingerprint's
    key; `prompt` is the text that the model got; `plan` has the figures of the plan that ran, or is empty; `tokens`
    counts prompt and answer; `notes` list oddities of the file and reductions made when memory ran out.
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
    output: SidecarWrite | None = None
    notes: tuple[str, ...] = ()
    modified_ns: int = 0


@dataclass(frozen=True, slots=True)
class PendingClip:
    """A clip to caption; `attempt` counts from 1, `existing` is the text of its current sidecar, if any."""

    clip: Clip
    content: str
    attempt: int = 1
    existing: str = ""
    modified_ns: int = 0


def pending_from(values: Mapping[str, Any]) -> PendingClip:
    """Return the PendingClip that `asdict` turned into `values`; raises KeyError or TypeError for anything else."""
    return PendingClip(**{**values, "clip": Clip(**values["clip"])})


def utc_now() -> str:
    """Return the current time in UTC as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Captioner(Protocol):
    """Captions clips, in this process or in others."""

    def captions(self, pending: Iterable[PendingClip]) -> Iterator[ClipRecord]:
        """Yield a record for every clip, in any order; pulls clips as needed, some of them early."""

    def finish(self) -> None:
        """Take no more clips and complete those that were begun; callable from any thread, as `stop` is."""

    def stop(self) -> None:
        """End immediately; clips that were begun get no record."""

    def close(self) -> None:
        """Release the model, processes and files."""


def record_object(record: ClipRecord) -> dict[str, Any]:
    """Return a record as JSON types, without empty fields but `content`, which a clip that cannot be read lacks."""
    values = asdict(record).items()
    return {key: value for key, value in values if key == "content" or value not in (None, "", (), {}, 0)}


def record_from(values: Mapping[str, Any]) -> ClipRecord:
    """Parse `record_object`'s result, ignoring unknown fields; raises KeyError, TypeError or ValueError."""
    known = {field.name for field in fields(ClipRecord)}
    parsed = {"content": ""} | {key: value for key, value in values.items() if key in known}
    if (segments := parsed.get("segments")) is not None:
        parsed["segments"] = tuple(Segment(Span(**segment["span"]), segment["caption"]) for segment in segments)
    if (error := parsed.get("error")) is not None:
        parsed["error"] = Failure(**error)
    if (output := parsed.get("output")) is not None:
        parsed["output"] = SidecarWrite(**output)
    return ClipRecord(**parsed | {"notes": tuple(parsed.get("notes", ()))})
