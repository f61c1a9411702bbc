"""The time line of the video: sampled times, the chosen range, and a cursor."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from vidqa.tui.bindings import bindings_for
from vidqa.utils.units import format_timestamp
from vidqa.video.change_signal import ChangeSignal, change_levels

_STEPS = 50  # a key press moves the cursor by this fraction of the video


class Timeline(Widget, can_focus=True):
    """A track and a caption. Times are seconds from the first frame; `start` or `end` None is the video's own."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("timeline")
    help_title = "Timeline"
    help_text = (
        "The dots are the times that the plan samples, bars show how much a scanned video changes, the brackets "
        "enclose the part of the video that is used, and "
        "the arrow is the cursor. Set the start or the end at the cursor to sample a shorter part more closely."
    )

    duration: reactive[float] = reactive(0.0)
    timestamps: reactive[tuple[float, ...]] = reactive(())
    signal: reactive[ChangeSignal | None] = reactive(None)
    start: reactive[float | None] = reactive(None)
    end: reactive[float | None] = reactive(None)
    cursor: reactive[float] = reactive(0.0)

    @dataclass
    class RangeChosen(Message):
        """A part of the video was chosen, in seconds; None means the video's own start or end."""

        start: float | None
        end: float | None

    def validate_cursor(self, seconds: float) -> float:
        """Keep the cursor inside the video."""
        return min(max(seconds, 0.0), self.duration)

    def render(self) -> Content:
        """Return the track and its caption."""
        if not self.duration:
            return Content.styled("open a video to see its time line", "$foreground-muted")
        return Content.assemble(self._track(), "\n", (self._caption()[: self.size.width], "$foreground-muted"))

    def _range(self) -> tuple[float, float]:
        return self.start or 0.0, self.duration if self.end is None else self.end

    def _track(self) -> Content:
        width = max(self.size.width, 4)
        cells = [("─", "$foreground-muted")] * width
        first, last = map(self._cell, self._range())
        cells[first : last + 1] = [("═", "$primary")] * (last + 1 - first)
        if self.signal is not None:
            levels = change_levels(self.signal, self.duration, width)
            cells = [(bar or cell, style) for (cell, style), bar in zip(cells, levels, strict=True)]
        for seconds in self.timestamps:
            cells[self._cell(seconds)] = ("●", "$accent")
        if self.start is not None:
            cells[first] = ("[", "bold $warning")
        if self.end is not None:
            cells[last] = ("]", "bold $warning")
        cells[self._cell(self.cursor)] = ("▲", "bold reverse" if self.has_focus else "bold")
        return Content.assemble(*cells)

    def _caption(self) -> str:
        start, end = self._range()
        whole = self.start is None and self.end is None
        part = "whole video" if whole else f"only {format_timestamp(start)}–{format_timestamp(end)}"
        sampled = f" · {len(self.timestamps)} frames" if self.timestamps else ""
        return f"▲ {format_timestamp(self.cursor)} of {format_timestamp(self.duration)} · {part}{sampled}"

    def _cell(self, seconds: float) -> int:
        last = max(self.size.width, 4) - 1
        return min(max(round(seconds / self.duration * last), 0), last)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the mouse."""
        self.cursor = event.x / max(self.size.width - 1, 1) * self.duration

    def action_seek(self, steps: int) -> None:
        """Move the cursor by small steps."""
        self.cursor += steps * self.duration / _STEPS

    def action_seek_end(self, direction: int) -> None:
        """Move the cursor to the start (-1) or the end (1)."""
        self.cursor = 0.0 if direction < 0 else self.duration

    def action_seek_frame(self, direction: int) -> None:
        """Move the cursor to the previous (-1) or next (1) sampled time."""
        times = self.timestamps
        index = bisect_left(times, self.cursor) - 1 if direction < 0 else bisect_right(times, self.cursor)
        if 0 <= index < len(times):
            self.cursor = times[index]

    def action_set_start(self) -> None:
        """Start the range at the cursor."""
        end = self.end if self.end is None or self.end > self.cursor else None
        self.post_message(self.RangeChosen(self.cursor or None, end))

    def action_set_end(self) -> None:
        """End the range at the cursor."""
        start = self.start if self.start is None or self.start < self.cursor else None
        self.post_message(self.RangeChosen(start, None if self.cursor >= self.duration else self.cursor))

    def action_whole_video(self) -> None:
        """Use the whole video."""
        self.post_message(self.RangeChosen(None, None))
