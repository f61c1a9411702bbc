"""The change signal as a strip of pixels below a contact sheet: bars of change, and a mark for every frame.

A file of its own, since only sheets of scanned videos need it, and both it and contact_sheet.py draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidqa.video.change_signal import ChangeSignal, binned, within

if TYPE_CHECKING:
    from PIL import Image

STRIP_HEIGHT = 56  # pixels
_MARKS_HEIGHT, _BAR_PIXELS = 12, 2  # a bar is at least so wide
_BACKGROUND, _BAR, _CUT, _MARK = (24, 24, 24), (90, 150, 220), (120, 120, 120), (240, 180, 60)


@dataclass(frozen=True, slots=True)
class SignalStrip:
    """A signal and the part of the video, in seconds, that the strip shows."""

    signal: ChangeSignal
    start_seconds: float
    end_seconds: float

    def draw(self, width: int, times_seconds: Sequence[float]) -> "Image.Image":
        """Return the strip: bars, thin lines at cuts, and marks below at the times of the frames."""
        from PIL import Image, ImageDraw

        strip = Image.new("RGB", (width, STRIP_HEIGHT), _BACKGROUND)
        drawing, bottom = ImageDraw.Draw(strip), STRIP_HEIGHT - _MARKS_HEIGHT
        span = max(self.end_seconds - self.start_seconds, 1e-9)
        part = within(self.signal, self.start_seconds, self.end_seconds)
        for cut in part.cuts:
            x = round(cut / span * (width - 1))
            drawing.line((x, 0, x, bottom), _CUT)
        heights = binned(part, span, max(min(width // _BAR_PIXELS, len(part.seconds)), 1))
        for place, height in enumerate(heights):
            if height:
                left, right = (round(edge * width / len(heights)) for edge in (place, place + 1))
                drawing.rectangle((left, bottom - max(round(height * bottom), 1), right - 1, bottom), _BAR)
        for seconds in times_seconds:
            x = round((seconds - self.start_seconds) / span * (width - 1))
            drawing.line((x, bottom + 2, x, STRIP_HEIGHT), _MARK, 2)
        return strip
