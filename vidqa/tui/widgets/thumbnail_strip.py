"""The frames that a plan samples, as many as fit side by side, evenly picked over the whole range."""

from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.message import Message

from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.tui.key_bindings import bindings_for
from vidqa.tui.widgets.thumbnail import PixelThumbnail, Thumbnail, make_cell
from vidqa.types import Plan, VideoInfo

_GAP = 1
_LEAST_COLUMNS = 8  # a time needs so many


class ThumbnailStrip(Horizontal, can_focus=True):
    """A row of frames with their times. `mode` is how pictures are shown: half, kitty, sixel or none."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("strip")
    help_title = "Frames"
    help_text = (
        "The frames that the model will see, with their times; where they do not all fit, evenly picked ones. "
        "Enter shows them large, one by one."
    )

    class Requested(Message):
        """These frames (indices into the video) are to be decoded."""

        def __init__(self, indices: tuple[int, ...]) -> None:
            super().__init__()
            self.indices = indices

    def __init__(self, mode: str, *, id: str) -> None:
        super().__init__(id=id)
        self._mode = mode
        self._plan: Plan | None = None
        self._video: VideoInfo | None = None
        self._shown: tuple[tuple[int, float], ...] = ()
        self.pictures: dict[int, HalfBlockImage] = {}
        self._cells: dict[int, Thumbnail | PixelThumbnail] = {}

    async def show_plan(self, video: VideoInfo, plan: Plan) -> None:
        """These are the frames now; pictures of another video go."""
        if self._video is None or self._video.path != video.path:
            self.pictures.clear()
            self._shown = ()
        self._video, self._plan = video, plan
        await self._arrange()

    def show_picture(self, index: int, picture: HalfBlockImage) -> None:
        """A frame was decoded."""
        self.pictures[index] = picture
        if index in self._cells:
            self._cells[index].show(picture)

    async def on_resize(self, event: events.Resize) -> None:
        """Another number fits."""
        await self._arrange()

    async def _arrange(self) -> None:
        if self._plan is None or self._video is None or self._mode == "none":
            return
        columns = self._columns(self._video)
        shown = picked(self._plan, max(self.size.width // (columns + _GAP), 1))
        if shown != self._shown:
            self._shown = shown
            self._cells = {index: make_cell(seconds, self._mode, self.pictures.get(index)) for index, seconds in shown}
            for cell in self._cells.values():
                cell.styles.width = columns
            async with self.batch():
                await self.remove_children()
                await self.mount_all(self._cells.values())
        missing = tuple(index for index, _ in shown if index not in self.pictures)
        if missing and self.size.width:
            self.post_message(self.Requested(missing))

    def _columns(self, video: VideoInfo) -> int:
        """Cells that a frame of full height takes: a cell is about twice as high as wide."""
        rows = max(self.size.height - 1, 1)
        return max(round(rows * 2 * video.width / max(video.height, 1)), _LEAST_COLUMNS)


def picked(plan: Plan, most: int) -> tuple[tuple[int, float], ...]:
    """At most so many (index, seconds) of a plan's frames, evenly over them, first and last included."""
    frames = tuple(dict(zip(plan.indices, plan.timestamps_seconds, strict=True)).items())
    if len(frames) <= most:
        return frames
    if most == 1:
        return frames[:1]
    return tuple(frames[round(place * (len(frames) - 1) / (most - 1))] for place in range(most))
