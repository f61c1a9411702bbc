"""The frames that the plan samples, in full size, one at a time."""

from collections.abc import Callable, Collection, Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from vidqa.tui.bindings import bindings_for
from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.tui.widgets.thumbnail import PixelThumbnail, Thumbnail, plan_frames
from vidqa.types import Plan
from vidqa.utils.units import format_timestamp


class FrameViewer(ModalScreen[float | None]):
    """Returns the time in seconds of the last frame shown. Frames without a picture are requested by `request`."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("frames")
    help_title = "Frames"
    help_text = "All frames that the plan samples. Left and Right go from frame to frame; Escape closes."

    def __init__(
        self,
        plan: Plan,
        pictures: Mapping[int, HalfBlockImage],
        request: Callable[[int], None],
        mode: str,
        seconds: float,
    ) -> None:
        """`mode` is how pictures are shown; the frame nearest to `seconds` is the first."""
        super().__init__()
        self._frames = plan_frames(plan)
        self._plan, self._pictures, self._request, self._mode = plan, pictures, request, mode
        self._position = min(range(len(self._frames)), key=lambda position: abs(self._frames[position][1] - seconds))
        self._failed: int | None = None  # the frame shown, if it cannot be decoded

    def compose(self) -> ComposeResult:
        """Yield caption, picture and keys."""
        with Vertical(classes="dialog full"):
            yield Static("", id="frame-caption", markup=False)
            yield Container(id="frame")
            yield Static("← → previous and next frame · Esc close", classes="keys", markup=False)

    async def on_mount(self) -> None:
        """Show the first frame."""
        await self._show()

    def frame_decoded(self, index: int) -> None:
        """Show the picture of the current frame if it is the one that was decoded."""
        if self._frames[self._position][0] == index:
            self.call_later(self._show)

    def frames_failed(self, indices: Collection[int]) -> None:
        """Say that the current frame cannot be decoded if it is one of these."""
        if (index := self._frames[self._position][0]) in indices:
            self._failed = index
            self.call_later(self._show)

    async def _show(self) -> None:
        index, seconds = self._frames[self._position]
        run_config, picture = self._plan.run_config, self._pictures.get(index)
        waiting = "this frame cannot be decoded" if index == self._failed else "decoding…"
        state = "" if picture else f" · {waiting}" if self._mode != "none" else " · pictures are off (--images)"
        self.query_one("#frame-caption", Static).update(
            f"frame {self._position + 1} of {len(self._frames)} at {format_timestamp(seconds)} · the model gets "
            f"{run_config.width}×{run_config.height} pixels{state}"
        )
        if picture is None and index != self._failed:
            self._request(index)
        frame = self.query_one("#frame")
        await frame.remove_children()
        if picture is not None and self._mode in ("kitty", "sixel"):
            await frame.mount(PixelThumbnail(seconds, self._mode, picture=picture))
        elif self._mode != "none":
            await frame.mount(Thumbnail(seconds, picture=picture, show_time=False))

    async def action_step(self, by: int) -> None:
        """Show the frame `by` positions on; one that could not be decoded is tried again."""
        self._failed = None
        self._position = min(max(self._position + by, 0), len(self._frames) - 1)
        await self._show()

    def action_close(self) -> None:
        """Close and return the time of this frame."""
        self.dismiss(self._frames[self._position][1])
