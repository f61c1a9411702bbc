"""The sampled frames in a row: as many as fit, spread evenly over the plan's frames.

The row is as high as the terminal allows, and low enough for two frames beside each other.
"""

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.geometry import Size
from textual.message import Message

from vidqa.tui.bindings import bindings_for
from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.tui.widgets.thumbnail import PixelThumbnail, Thumbnail, make_thumbnail, plan_frames
from vidqa.types import Plan, VideoInfo

_GAP = 1
_MIN_COLUMNS = 8  # the width of a time
_HEIGHT_SHARE = 4  # the pictures take a quarter of the terminal's rows
_MIN_ROWS, _MAX_ROWS = 3, 12


class ThumbnailStrip(Horizontal, can_focus=True):
    """A row of thumbnails. `mode` is how pictures are shown: half, kitty, sixel or none."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("strip")
    help_title = "Frames"
    help_text = (
        "The frames that the model gets, with their times. If there is no room for all of them, these are spread "
        "evenly over the video. Enter shows all of them in full size, one at a time."
    )

    @dataclass
    class Requested(Message):
        """Frames (indices into the video) are to be decoded."""

        indices: tuple[int, ...]

    def __init__(self, mode: str, *, id: str) -> None:
        super().__init__(id=id)
        self._mode = mode
        self._plan: Plan | None = None
        self._video: VideoInfo | None = None
        self._shown: tuple[tuple[int, float], ...] = ()
        self._columns = 0  # of a thumbnail
        self.pictures: dict[int, HalfBlockImage] = {}
        self._thumbnails: dict[int, Thumbnail | PixelThumbnail] = {}

    async def show_plan(self, video: VideoInfo, plan: Plan) -> None:
        """Show the frames of a plan; drop the pictures of another video."""
        if self._video is None or self._video.path != video.path:
            self.pictures.clear()
            self._shown = ()
        self._video, self._plan = video, plan
        self.refresh(layout=True)  # the height follows the video's shape
        await self._arrange()

    def show_picture(self, index: int, picture: HalfBlockImage) -> None:
        """Show the picture of a frame."""
        self.pictures[index] = picture
        if index in self._thumbnails:
            self._thumbnails[index].show(picture)

    async def on_resize(self, event: events.Resize) -> None:
        """Show as many frames as now fit."""
        await self._arrange()

    async def _arrange(self) -> None:
        if self._plan is None or self._video is None or self._mode == "none":
            return
        columns = max(int(max(self.size.height - 1, 1) * self._columns_per_row()), _MIN_COLUMNS)
        shown = spread_frames(self._plan, max((self.size.width + _GAP) // (columns + _GAP), 1))
        if (shown, columns) != (self._shown, self._columns):
            self._shown, self._columns = shown, columns
            self._thumbnails = {i: make_thumbnail(seconds, self._mode, self.pictures.get(i)) for i, seconds in shown}
            for thumbnail in self._thumbnails.values():
                thumbnail.styles.width = columns
            async with self.batch():
                await self.remove_children()
                await self.mount_all(self._thumbnails.values())
        missing = tuple(index for index, _ in shown if index not in self.pictures)
        if missing and self.size.width:
            self.post_message(self.Requested(missing))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the rows of the pictures, and one for their times."""
        most = min(max(viewport.height // _HEIGHT_SHARE, _MIN_ROWS), _MAX_ROWS)
        rows = int((width - _GAP) // 2 / self._columns_per_row())
        return 1 + min(max(rows, _MIN_ROWS), most)

    def _columns_per_row(self) -> float:
        """Return the columns of a frame for each row of its height; a cell is about twice as high as wide."""
        video = self._video
        return 2.0 if video is None else 2 * video.width / max(video.height, 1)


def spread_frames(plan: Plan, count: int) -> tuple[tuple[int, float], ...]:
    """Return at most `count` (index, seconds) of a plan's frames, spread evenly, first and last included."""
    frames = plan_frames(plan)
    if len(frames) <= count:
        return frames
    if count == 1:
        return frames[:1]
    return tuple(frames[round(position * (len(frames) - 1) / (count - 1))] for position in range(count))
