"""The memory panel: memory in use, its peak in each phase, a graph of two minutes, and the planned peak."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from textual.content import Content
from textual.widget import Widget

from vidqa.messages import above_text
from vidqa.types import Device, Plan
from vidqa.utils.safe_text import safe_text
from vidqa.utils.units import format_bytes

_SECONDS = 120
_BARS = " ▁▂▃▄▅▆▇█"
_ROWS = 4
_STILL_BYTES = 2**20  # less is not worth a word


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes of the plan's device that this process and that all others use."""

    own_bytes: int
    other_bytes: int


Activity = Literal["", "question", "loading", "download", "nothing"]


class MemoryPanel(Widget):
    """Takes samples at any rate; the graph keeps the largest of each second."""

    BORDER_TITLE = "Memory"
    help_title = "Memory"
    help_text = (
        "The memory that this process uses (of the GPU, or of the machine on a CPU) in the last two minutes. The "
        "dashed line is the planned peak; the plan leaves a margin above it free. Other processes are listed "
        "separately. On a CPU, the tensors are too: they are what the plan predicts; the rest is Python and its "
        "libraries. While nothing runs, a line says how much this process and other programs moved."
    )

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._seconds: deque[int] = deque(maxlen=_SECONDS)
        self._now: Sample | None = None
        self._planned_bytes = self._planned_tensor_bytes = self._margin_bytes = 0
        self._tensor_peak: int | None = None
        self._peaks: dict[str, int] = {}
        self._warnings: list[str] = []
        self._device = self._activity = ""
        self._idle: deque[Sample] = deque(maxlen=_SECONDS)  # while nothing runs

    def show_device(self, device: Device) -> None:
        """Set the plan's device, whose memory is the first sample if there is none yet."""
        self._device = device.torch_name
        if self._now is None:
            self._now = Sample(device.process_bytes, device.other_bytes)
        self.refresh()

    def show_plan(self, plan: Plan) -> None:
        """Set the planned peak, the part of it that is tensors, and the margin above it."""
        self._planned_bytes, self._planned_tensor_bytes = plan.predicted_peak_bytes, plan.tensor_bytes
        self._margin_bytes = plan.margin_bytes
        self.refresh()

    def show_activity(self, activity: Activity) -> None:
        """Set what runs, with which a line explains the graph."""
        if activity != self._activity or activity != "nothing":
            self._idle.clear()
        changed, self._activity = activity != self._activity, activity
        self.refresh(layout=changed)

    def reset_peaks(self) -> None:
        """Forget the peaks and warnings of the previous question."""
        self._peaks.clear()
        self._warnings.clear()
        self._tensor_peak = None
        self.refresh(layout=True)

    def add_sample(
        self, sample: Sample, phase: str | None = None, peak_bytes: int = 0, tensor_peak_bytes: int | None = None
    ) -> None:
        """Add a sample; those of a phase have its peaks so far, in bytes."""
        self._now = sample
        if tensor_peak_bytes is not None:
            self._tensor_peak = tensor_peak_bytes
        if self._seconds:
            self._seconds[-1] = max(self._seconds[-1], sample.own_bytes, peak_bytes if phase else 0)
        is_new = phase is not None and phase not in self._peaks
        if phase is not None:
            self._peaks[phase] = max(self._peaks.get(phase, 0), peak_bytes)
        self.refresh(layout=is_new)

    def tick(self) -> None:
        """Start the next second of the graph."""
        if self._activity == "nothing" and self._now:
            self._idle.append(self._now)
        self._seconds.append(self._now.own_bytes if self._now else 0)
        self.refresh()

    def add_warning(self, text: str) -> None:
        """Add a line, such as that a smaller plan is used."""
        self._warnings.append(text)
        self.refresh(layout=True)

    def render(self) -> Content:
        """Return the figures, the graph, the peaks and the warnings."""
        now = f"{format_bytes(self._now.own_bytes)} now" if self._now else ""
        planned = f" · {format_bytes(self._planned_bytes)} planned" if self._planned_bytes else ""
        lines = [Content.assemble((now, "bold"), planned), *self._graph()]
        device = f" on {self._device}" if self._device else ""
        others = f" · others {format_bytes(self._now.other_bytes)}" if self._now and self._now.other_bytes else ""
        lines.append(Content.styled(f"last {_SECONDS} s{device}{others}", "$foreground-muted"))
        if why := self._why_it_moves():
            lines.append(Content.styled(why, "$foreground-muted"))
        if self._tensor_peak is not None:
            of_plan = f"{format_bytes(self._tensor_peak)} of {format_bytes(self._planned_tensor_bytes)} planned"
            lines.append(Content(f"tensors: {of_plan}"))
        if self._peaks:
            peaks = ", ".join(f"{phase} {format_bytes(peak)}" for phase, peak in self._peaks.items())
            lines.append(Content(f"peaks: {peaks}"))
            if below := self._below_plan():
                lines.append(Content(below))
        warnings = [above] if (above := self._above_plan()) else []
        warnings += map(safe_text, self._warnings)
        return Content("\n").join([*lines, *(Content.styled(f"! {text}", "$text-warning") for text in warnings)])

    def _why_it_moves(self) -> str:
        """Return what runs besides a question, or how far memory moved while nothing did; empty during an answer."""
        if self._activity == "loading":
            return "loading the model, before you ask"
        if self._activity == "download":
            return "downloading a model"
        if self._activity != "nothing":
            return ""
        own, others = (_spread(getattr(one, name) for one in self._idle) for name in ("own_bytes", "other_bytes"))
        by_whom = (("this process", own), ("other programs", others))
        moved = [f"{format_bytes(size)} by {name}" for name, size in by_whom if size > _STILL_BYTES]
        return f"nothing runs; moved: {', '.join(moved)}" if moved else "nothing runs: what is loaded stays"

    def _below_plan(self) -> str:
        """Return how the peak compares with plan and margin if it is below the plan; empty without a plan."""
        below = self._planned_bytes - max(self._peaks.values(), default=0)
        if below < 0 or not self._planned_bytes:
            return ""
        return f"{format_bytes(below)} below plan, {format_bytes(self._margin_bytes)} margin unused"

    def _above_plan(self) -> str:
        """Return by how much the plan is exceeded, and why; empty if it is not."""
        tensors = self._tensor_peak
        if tensors is not None and tensors > self._planned_tensor_bytes > 0:
            over = above_text(tensors - self._planned_tensor_bytes, self._margin_bytes)
            return f"{over}: the tensors are larger than planned"
        over_bytes = max(self._peaks.values(), default=0) - self._planned_bytes
        if over_bytes <= 0 or not self._planned_bytes:
            return ""
        cause = "the process uses more than planned" if tensors is None else "the process grew besides its tensors"
        return f"{above_text(over_bytes, self._margin_bytes)}: {cause}"

    def _graph(self) -> list[Content]:
        """Return the seconds as columns, and the planned peak as a dashed line behind them."""
        width = max(self.size.width, 10)
        columns = self._columns(width)
        top = max([*columns, self._planned_bytes, 1]) * 1.1
        levels = [0] * (width - len(columns)) + [round(size / top * _ROWS * 8) for size in columns]
        planned_row = _ROWS - 1 - int(self._planned_bytes / top * _ROWS) if self._planned_bytes else None
        return [self._row(levels, row, row == planned_row) for row in range(_ROWS)]

    def _columns(self, width: int) -> list[int]:
        """Return the seconds in at most `width` columns, the newest on the right."""
        seconds = list(self._seconds)
        per_column = -(-_SECONDS // width)
        groups = [seconds[max(end - per_column, 0) : end] for end in range(len(seconds), 0, -per_column)]
        return [max(group) for group in reversed(groups)]

    def _row(self, levels: list[int], row: int, planned: bool) -> Content:
        floor = (_ROWS - 1 - row) * 8
        cells = [_BARS[min(max(level - floor, 0), 8)] for level in levels]
        return Content.assemble(
            *(("┄", "$warning") if planned and cell == " " else (cell, "$primary") for cell in cells)
        )


def _spread(sizes: Iterable[int]) -> int:
    """Return the difference of the largest and the smallest; 0 for none."""
    found = list(sizes)
    return max(found) - min(found) if found else 0
