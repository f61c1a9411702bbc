"""What a search found in the open video: its moments, the best first, and the range of time that was searched."""

from dataclasses import dataclass

from vidqa.engine.slice_selection import MOST_MOMENTS, Moment, find_moments, range_around
from vidqa.types import Plan
from vidqa.utils.units import format_timestamp


@dataclass(frozen=True, slots=True)
class FoundMoments:
    """The moments of a search; `start_seconds` and `end_seconds` limit what was searched, None is the video's own.

    `looked_at` is the number of frames that were scored.
    """

    text: str
    moments: tuple[Moment, ...]
    start_seconds: float | None
    end_seconds: float | None
    looked_at: int

    def range_of(self, index: int, duration_seconds: float) -> tuple[float, float]:
        """Return the range in seconds of a question about a moment, as `vidqa find --then` takes it."""
        start, end = range_around(self.moments[index], self.start_seconds, self.end_seconds)
        return start, min(end, duration_seconds)


def found_in(text: str, plan: Plan, start_seconds: float | None, end_seconds: float | None) -> FoundMoments:
    """Return the moments of a finished search's plan."""
    selection = plan.selection
    assert selection is not None
    moments = find_moments(selection.scores, selection.seconds, MOST_MOMENTS, plan.candidate_seconds[-1])
    return FoundMoments(text, moments, start_seconds, end_seconds, len(plan.candidates))


def moment_index(character: str | None) -> int:
    """Return the index of the moment that a typed number names; -1 for another character."""
    return int(character) - 1 if character and character in "123456789" else -1


def format_range(start_seconds: float, end_seconds: float) -> str:
    """Return a range of time as text."""
    return f"{format_timestamp(start_seconds)}–{format_timestamp(end_seconds)}"
