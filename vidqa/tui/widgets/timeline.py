"""The time line of the video: its change, found moments, sampled times, the chosen range, and a cursor."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from vidqa.engine.slice_selection import Moment
from vidqa.tui.bindings import bindings_for
from vidqa.tui.found_moments import format_range, moment_index
from vidqa.utils.units import format_timestamp
from vidqa.video.change_signal import ChangeSignal, change_levels

_STEPS = 50  # a key press moves the cursor by this fraction of the video
_LEAST_ROWS = 16  # of a terminal that has room for a line of marks
Cells = list[tuple[str, str]]  # character and style


class Timeline(Widget, can_focus=True):
    """A track and a caption, and above them a line of marks where there are some.

    Times are seconds from the first frame; `start` or `end` None is the video's own. `moments` are what a search found,
    the best first, and `chosen` is the index of the one that is used.
    """

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("timeline")
    help_title = "Timeline"
    help_text = (
        "  ●      a frame that the plan samples\n"
        "  ▂▅█    how much the picture changes there, once the video was scanned (sample in the plan)\n"
        "  ╎      a scene cut\n"
        "  1 2 3  moments that a search found (F12), the best first\n"
        "  [ ]    the part of the video that is used\n"
        "  ▲      the cursor\n\n"
        "Set the start or the end at the cursor to sample a shorter part more closely. A number, or a click on a "
        "moment, asks the next question about that moment; the same again takes all of the searched range."
    )

    duration: reactive[float] = reactive(0.0)
    timestamps: reactive[tuple[float, ...]] = reactive(())
    signal: reactive[ChangeSignal | None] = reactive(None, layout=True)
    moments: reactive[tuple[Moment, ...]] = reactive((), layout=True)
    chosen: reactive[int | None] = reactive(None)
    start: reactive[float | None] = reactive(None)
    end: reactive[float | None] = reactive(None)
    cursor: reactive[float] = reactive(0.0)

    @dataclass
    class RangeChosen(Message):
        """A part of the video was chosen, in seconds; None means the video's own start or end."""

        start: float | None
        end: float | None

    @dataclass
    class MomentChosen(Message):
        """A moment was chosen, by its index."""

        index: int

    def validate_cursor(self, seconds: float) -> float:
        """Keep the cursor inside the video."""
        return min(max(seconds, 0.0), self.duration)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return 3 with a line of marks, else 2; a low terminal has the marks on the track."""
        return 3 if (self.signal or self.moments) and viewport.height >= _LEAST_ROWS else 2

    def render(self) -> Content:
        """Return the lines."""
        if not self.duration:
            return Content.styled("open a video to see its time line", "$foreground-muted")
        width = max(self.size.width, 4)
        caption = (self._caption(width), "$foreground-muted")
        track = self._range_cells(width)
        marks: Cells = [(" ", "")] * width if self.size.height > 2 else track
        self._draw_signal(marks)
        self._draw_frames(track)
        if marks is not track:
            self._draw_moments(marks)
        self._draw_brackets(track)
        if marks is track:
            self._draw_moments(track)
        self._draw_cursor(track)
        above = () if marks is track else (Content.assemble(*marks), "\n")
        return Content.assemble(*above, Content.assemble(*track), "\n", caption)

    def _range(self) -> tuple[float, float]:
        return self.start or 0.0, self.duration if self.end is None else self.end

    def _range_cells(self, width: int) -> Cells:
        """Return the track: what is used of it is double."""
        cells = [("─", "$foreground-muted")] * width
        first, last = map(self._cell, self._range())
        cells[first : last + 1] = [("═", "$primary")] * (last + 1 - first)
        return cells

    def _draw_signal(self, cells: Cells) -> None:
        if self.signal is None:
            return
        for place, bar in enumerate(change_levels(self.signal, self.duration, len(cells))):
            if bar:
                cells[place] = (bar, "$primary")
        for seconds in self.signal.cuts:
            cells[self._cell(seconds)] = ("╎", "bold $warning")

    def _draw_frames(self, cells: Cells) -> None:
        for seconds in self.timestamps:
            cells[self._cell(seconds)] = ("●", "$accent")

    def _draw_moments(self, cells: Cells) -> None:
        """Colour the cells of each moment and write its number; the best is drawn last, over the others."""
        for index, moment in reversed(list(enumerate(self.moments))):
            first, last = self._cells_of(moment)
            colour = "$success" if index == self.chosen else "$success-muted"
            for place in range(first, last + 1):
                text, style = cells[place]
                cells[place] = (text, f"{style} on {colour}".strip())
            cells[(first + last) // 2] = (str(index + 1), f"bold $text on {colour}")

    def _draw_brackets(self, cells: Cells) -> None:
        if self.start is not None:
            cells[self._cell(self.start)] = ("[", "bold $warning")
        if self.end is not None:
            cells[self._cell(self.end)] = ("]", "bold $warning")

    def _draw_cursor(self, cells: Cells) -> None:
        cells[self._cell(self.cursor)] = ("▲", "bold reverse" if self.has_focus else "bold")

    def _caption(self, width: int) -> str:
        """Return cursor and range, and as many counts as there is room for."""
        start, end = self._range()
        if self.chosen is not None and self.chosen < len(self.moments):
            part = f"moment {self.chosen + 1}: only {format_range(start, end)}"
        elif self.start is None and self.end is None:
            part = "whole video"
        else:
            part = f"only {format_range(start, end)}"
        cuts = len(self.signal.cuts) if self.signal else 0
        text = f"▲ {format_timestamp(self.cursor)} of {format_timestamp(self.duration)} · {part}"
        for count, name in ((len(self.timestamps), "frame"), (len(self.moments), "moment"), (cuts, "cut")):
            more = f" · {count} {name}{'s' * (count != 1)}" if count else ""
            text += more if len(text) + len(more) <= width else ""
        return text[:width]

    def _cell(self, seconds: float) -> int:
        last = max(self.size.width, 4) - 1
        return min(max(round(seconds / self.duration * last), 0), last)

    def _cells_of(self, moment: Moment) -> tuple[int, int]:
        """Return the first and the last cell of a moment."""
        return self._cell(moment.start_seconds), self._cell(moment.end_seconds)

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the mouse; on the line with the marks, choose the moment that is there."""
        if (offset := event.get_content_offset(self)) is None or not self.duration:
            return
        self.cursor = offset.x / max(self.size.width - 1, 1) * self.duration
        if offset.y > 0:
            return
        for index, moment in enumerate(self.moments):
            first, last = self._cells_of(moment)
            if first <= offset.x <= last:
                self.post_message(self.MomentChosen(index))
                return

    def on_key(self, event: events.Key) -> None:
        """Choose a moment by its number."""
        if 0 <= (index := moment_index(event.character)) < len(self.moments):
            event.stop()
            self.post_message(self.MomentChosen(index))

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
