"""Subtitles as data: a video's cues, and those that a plan gives to the model."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cue:
    """A subtitle as plain text on one line, and when a player that counts from 0 shows it, in seconds."""

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Subtitles:
    """A video's subtitles by start. `source` is a file's name or `stream 2`, `language` is `en`, `eng`… or empty."""

    source: str
    language: str
    cues: tuple[Cue, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class PlannedSubtitles:
    """The subtitles of a prompt, by start, and how many of the requested range are left out.

    `source` and `language` are those of `Subtitles`.
    """

    source: str
    language: str
    cues: tuple[Cue, ...] = field(repr=False)
    left_out: int
