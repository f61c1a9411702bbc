"""The video's time as a line: sampled moments, the chosen range, and a cursor that keys and mouse move."""

from bisect import bisect_left, bisect_right
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from vidqa.tui.key_bindings import bindings_for
from vidqa.utils.units import format_timestamp

_STEPS = 50  # a key press moves the cursor by this part of the video


class Timeline(Widget, can_focus=True):
    """Two lines: the track, and what cursor and range mean. Times count from the first frame."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("timeline")
    help_title = "Timeline"
    help_text = (
        "Marks are the moments that the plan samples, the brackets hold what is looked at, and the arrow is the "
        "cursor. Set the start or the end at the cursor to look closer at a part: the same frames lie nearer together."
    )

    duration: reactive[float] = reactive(0.0)
    moments: reactive[tuple[float, ...]] = reactive(())
    start: reactive[float | None] = reactive(None)
    end: reactive[float | None] = reactive(None)
    cursor: reactive[float] = reactive(0.0)

    class RangeChosen(Message):
        """The person chose what to look at; None means the video's own start or end."""

        def __init__(self, start: float | None, end: float | None) -> None:
            super().__init__()
            self.start, self.end = start, end

    def validate_cursor(self, seconds: float) -> float:
        """The cursor stays inside the video."""
        return min(max(seconds, 0.0), self.duration)

    def render(self) -> Content:
        """The track and its caption."""
        if not self.duration:
            return Content.styled("open a video to see its time line", "$foreground-muted")
        return Content.assemble(self._track(), "\n", (self._caption()[: self.size.width], "$foreground-muted"))

    def _track(self) -> Content:
        width = max(self.size.width, 4)
        cells = ["─"] * width
        styles = ["$foreground-muted"] * width
        first, last = self._cell(self.start or 0.0), self._cell(self.duration if self.end is None else self.end)
        for place in range(first, last + 1):
            cells[place], styles[place] = "═", "$primary"
        for moment in self.moments:
            place = self._cell(moment)
            cells[place], styles[place] = "●", "$accent"
        if self.start is not None:
            cells[first], styles[first] = "[", "bold $warning"
        if self.end is not None:
            cells[last], styles[last] = "]", "bold $warning"
        place = self._cell(self.cursor)
        cells[place], styles[place] = "▲", "bold reverse" if self.has_focus else "bold"
        return Content.assemble(*zip(cells, styles, strict=True))

    def _caption(self) -> str:
        start, end = self.start or 0.0, self.duration if self.end is None else self.end
        whole = self.start is None and self.end is None
        part = "whole video" if whole else f"only {format_timestamp(start)}–{format_timestamp(end)}"
        sampled = f" · {len(self.moments)} frames" if self.moments else ""
        return f"▲ {format_timestamp(self.cursor)} of {format_timestamp(self.duration)} · {part}{sampled}"

    def _cell(self, seconds: float) -> int:
        most = max(self.size.width, 4) - 1
        return min(max(round(seconds / self.duration * most), 0), most)

    def on_click(self, event: events.Click) -> None:
        """The cursor goes where the mouse points."""
        self.cursor = event.x / max(self.size.width - 1, 1) * self.duration

    def action_seek(self, steps: int) -> None:
        """A small step."""
        self.cursor += steps * self.duration / _STEPS

    def action_seek_end(self, direction: int) -> None:
        """All the way."""
        self.cursor = 0.0 if direction < 0 else self.duration

    def action_seek_frame(self, direction: int) -> None:
        """To the sampled moment before or after the cursor."""
        place = bisect_left(self.moments, self.cursor) - 1 if direction < 0 else bisect_right(self.moments, self.cursor)
        if 0 <= place < len(self.moments):
            self.cursor = self.moments[place]

    def action_set_start(self) -> None:
        """Look only from the cursor on."""
        end = self.end if self.end is None or self.end > self.cursor else None
        self.post_message(self.RangeChosen(self.cursor or None, end))

    def action_set_end(self) -> None:
        """Look only up to the cursor."""
        start = self.start if self.start is None or self.start < self.cursor else None
        self.post_message(self.RangeChosen(start, None if self.cursor >= self.duration else self.cursor))

    def action_whole_video(self) -> None:
        """Look at all of it."""
        self.post_message(self.RangeChosen(None, None))
