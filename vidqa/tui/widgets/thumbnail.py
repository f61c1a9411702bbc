"""A sampled frame with its time: in half blocks, or by a terminal's graphics protocol."""

from rich.segment import Segment
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from vidqa.tui.half_blocks import HalfBlockImage, fit, half_blocks
from vidqa.types import Plan
from vidqa.utils.units import format_timestamp


def plan_frames(plan: Plan) -> tuple[tuple[int, float], ...]:
    """Return (index, seconds) of the frames that a plan samples, each once."""
    return tuple(dict(zip(plan.indices, plan.timestamps_seconds, strict=True)).items())


class Thumbnail(Widget):
    """A frame in half blocks above its time."""

    def __init__(self, seconds: float, *, picture: HalfBlockImage | None = None, show_time: bool = True) -> None:
        super().__init__()
        self._seconds, self._picture, self._show_time = seconds, picture, show_time
        self._lines: dict[tuple[int, int], list[list[Segment]]] = {}

    def show(self, picture: HalfBlockImage) -> None:
        """Set the picture."""
        self._picture, self._lines = picture, {}
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return a line of the picture, or the time below it, centred."""
        rows = self.size.height - self._show_time
        if y == rows:
            return self._centred([Segment(format_timestamp(self._seconds), self.rich_style)])
        lines = self._picture_lines(self.size.width, rows)
        top = (rows - len(lines)) // 2
        return self._centred(lines[y - top] if 0 <= y - top < len(lines) else [])

    def _picture_lines(self, columns: int, rows: int) -> list[list[Segment]]:
        if self._picture is None or rows < 1:
            return []
        if (columns, rows) not in self._lines:
            self._lines = {(columns, rows): half_blocks(fit(self._picture, columns, rows))}
        return self._lines[columns, rows]

    def _centred(self, segments: list[Segment]) -> Strip:
        length = sum(len(segment.text) for segment in segments)
        left = max((self.size.width - length) // 2, 0)
        line = [Segment(" " * left, self.rich_style), *segments]
        return Strip(line).adjust_cell_length(self.size.width, self.rich_style)


class PixelThumbnail(Vertical):
    """A frame by a terminal's graphics protocol (`kitty` or `sixel`) above its time."""

    def __init__(self, seconds: float, mode: str, *, picture: HalfBlockImage | None = None) -> None:
        super().__init__()
        from textual_image.widget import SixelImage, TGPImage

        self._image = SixelImage() if mode == "sixel" else TGPImage()
        self._seconds = seconds
        if picture is not None:
            self.show(picture)

    def compose(self) -> ComposeResult:
        """Yield the picture and its time."""
        yield self._image
        yield Static(format_timestamp(self._seconds), markup=False, classes="time")

    def show(self, picture: HalfBlockImage) -> None:
        """Set the picture."""
        from PIL import Image

        self._image.image = Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def make_thumbnail(seconds: float, mode: str, picture: HalfBlockImage | None) -> Thumbnail | PixelThumbnail:
    """Return the thumbnail for how this terminal shows pictures."""
    if mode in ("kitty", "sixel"):
        return PixelThumbnail(seconds, mode, picture=picture)
    return Thumbnail(seconds, picture=picture)
