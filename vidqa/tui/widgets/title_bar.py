"""The first line of the screen: the model on the left, the video on the right."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from vidqa.messages import model_label
from vidqa.types import Plan, VideoInfo
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_timestamp


class TitleBar(Widget):
    """Shows model, device and video; long names are cut."""

    help_title = "Title bar"
    help_text = "The model, its device and the open video. F2 chooses another model."

    model: reactive[str | None] = reactive(None)
    missing: reactive[bool] = reactive(False)  # the model is not on this machine
    plan: reactive[Plan | None] = reactive(None)
    video: reactive[VideoInfo | None] = reactive(None)

    def render(self) -> Content:
        """Return the line."""
        right = self._video_text()
        left = _cut(self._model_text(), max(self.size.width - len(right) - 9, 8))
        gap = " " * max(self.size.width - 7 - len(left) - len(right) - 1, 1)
        return Content.assemble((" vidqa ", "bold $text on $primary"), f" {left}{gap}", (right, "$foreground-muted"))

    def _model_text(self) -> str:
        if self.model is None:
            return "no model yet"
        name = model_label(self.model)
        if self.missing:
            return f"not on this machine: {name}"  # first, since the end of a long line is cut
        return name if self.plan is None else f"{name} · {self.plan.device} {self.plan.run_config.weights}"

    def _video_text(self) -> str:
        if self.video is None:
            return "no video"
        video = self.video
        facts = f"{video.width}×{video.height} {format_timestamp(video.duration_seconds)}"
        name = _cut(safe_line(video.path.rstrip("/").rsplit("/", 1)[-1]), max(self.size.width // 2 - len(facts) - 4, 8))
        return f"{name} · {facts}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
