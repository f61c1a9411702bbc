"""One line that is always there: which model answers, and about which video."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from vidqa.messages import model_label
from vidqa.types import Plan, VideoInfo
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_timestamp


class TitleBar(Widget):
    """The model on the left, the video on the right."""

    help_title = "Title line"
    help_text = "Which model answers and on what device, and which video is open. F2 chooses another model."

    model: reactive[str | None] = reactive(None)
    plan: reactive[Plan | None] = reactive(None)
    video: reactive[VideoInfo | None] = reactive(None)

    def render(self) -> Content:
        """The line, shortened from its middle where it is too long."""
        right = self._video_text()
        room = max(self.size.width - len(right) - 9, 8)
        left = self._model_text()
        if len(left) > room:
            left = left[: room - 1] + "…"
        gap = " " * max(self.size.width - 7 - len(left) - len(right) - 1, 1)
        return Content.assemble((" vidqa ", "bold $text on $primary"), f" {left}{gap}", (right, "$foreground-muted"))

    def _model_text(self) -> str:
        if self.model is None:
            return "no model yet"
        name = model_label(self.model)
        return name if self.plan is None else f"{name} · {self.plan.device} {self.plan.run_config.weights}"

    def _video_text(self) -> str:
        if self.video is None:
            return "no video"
        video = self.video
        name = safe_line(video.path.rsplit("/", 1)[-1])
        facts = f"{video.width}×{video.height} {format_timestamp(video.duration_seconds)}"
        most = max(self.size.width // 2 - len(facts) - 4, 8)
        return f"{name if len(name) <= most else name[: most - 1] + '…'} · {facts}"
