"""The sampled frames large, one by one: what the model will see."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from vidqa.tui.half_blocks import HalfBlockImage
from vidqa.tui.key_bindings import bindings_for
from vidqa.tui.widgets.thumbnail import PixelThumbnail, Thumbnail
from vidqa.types import Plan
from vidqa.utils.units import format_timestamp


class FrameViewer(ModalScreen[float | None]):
    """Dismissed with the time of the frame that was last looked at."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("frames")
    help_title = "Frames"
    help_text = "Every frame that the plan samples. Left and right go through them; Escape closes."

    def __init__(
        self,
        plan: Plan,
        pictures: Mapping[int, HalfBlockImage],
        want: Callable[[tuple[int, ...]], None],
        mode: str,
        at: float,
    ) -> None:
        super().__init__()
        self._frames = tuple(dict(zip(plan.indices, plan.timestamps_seconds, strict=True)).items())
        self._plan, self._pictures, self._want, self._mode = plan, pictures, want, mode
        self._place = min(range(len(self._frames)), key=lambda place: abs(self._frames[place][1] - at))

    def compose(self) -> ComposeResult:
        """A caption and the picture."""
        with Vertical(classes="dialog full"):
            yield Static("", id="frame-caption", markup=False)
            yield Container(id="frame")
            yield Static("← → go through the frames · Esc close", classes="keys", markup=False)

    async def on_mount(self) -> None:
        """Show the frame at the cursor."""
        await self._show()

    def picture_came(self, index: int) -> None:
        """A frame was decoded meanwhile."""
        if self._frames[self._place][0] == index:
            self.call_later(self._show)

    async def _show(self) -> None:
        index, seconds = self._frames[self._place]
        run_config, picture = self._plan.run_config, self._pictures.get(index)
        told = "" if picture else " · decoding…" if self._mode != "none" else " · pictures are off (--images)"
        self.query_one("#frame-caption", Static).update(
            f"frame {self._place + 1} of {len(self._frames)} at {format_timestamp(seconds)} · the model sees "
            f"{run_config.width}×{run_config.height}{told}"
        )
        if picture is None:
            self._want((index,))
        frame = self.query_one("#frame")
        await frame.remove_children()
        if picture is not None and self._mode in ("kitty", "sixel"):
            await frame.mount(PixelThumbnail(seconds, self._mode, picture=picture))
        elif self._mode != "none":
            await frame.mount(Thumbnail(seconds, picture=picture, show_time=False))

    async def action_step(self, by: int) -> None:
        """Another frame."""
        self._place = min(max(self._place + by, 0), len(self._frames) - 1)
        await self._show()

    def action_close(self) -> None:
        """Back, with the cursor on this frame."""
        self.dismiss(self._frames[self._place][1])
