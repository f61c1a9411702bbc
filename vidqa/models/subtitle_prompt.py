"""Subtitles as a block of text between a video and the question, for families without text between slices."""

from collections.abc import Sequence
from typing import Any

from vidqa.utils.cues import Cue

_TITLE = "Subtitles:\n"


def block_after_video(tail: Sequence[int], subtitles: Sequence[Cue], tokenizer: Any) -> tuple[int, ...]:
    """Return the ids after a video with the subtitles behind the first of them, which closes the video.

    Each line is tokenized alone, so its ids do not depend on its neighbours or on the question.
    """
    lines = [f"[{_clock(cue.start_seconds)}] {cue.text}\n" for cue in subtitles]
    lines[-1] += "\n"  # an empty line ends the block
    ids: list[list[int]] = tokenizer([_TITLE, *lines], add_special_tokens=False)["input_ids"]
    return (*tail[:1], *(one for line in ids for one in line), *tail[1:])


def _clock(seconds: float) -> str:
    """Return a time in whole seconds, rounded down: `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
