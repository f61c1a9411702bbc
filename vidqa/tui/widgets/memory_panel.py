"""Memory as it is: now and its peak by phase, the last two minutes, the planned peak, and other processes."""

from collections import deque
from dataclasses import dataclass

from textual.content import Content
from textual.widget import Widget

from vidqa.utils.safe_text import safe_text
from vidqa.utils.units import format_bytes

SECONDS_SHOWN = 120
_EIGHTHS = " ▁▂▃▄▅▆▇█"
_ROWS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Bytes of this process and of others on the plan's device."""

    own_bytes: int
    other_bytes: int


class MemoryPanel(Widget):
    """Fed with samples at any rate; keeps the largest of every second."""

    BORDER_TITLE = "Memory"
    help_title = "Memory"
    help_text = (
        "What this process holds of the device (of the machine's memory, on a CPU) over the last two minutes. The "
        "dashed line is the planned peak; what other processes hold is drawn apart. On a CPU so are the tensors, which "
        "are what the plan decides: the rest is Python and its libraries."
    )

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._seconds: deque[int] = deque(maxlen=SECONDS_SHOWN)
        self._now = Sample(0, 0)
        self._planned_bytes = self._planned_tensors = 0
        self._tensor_peak: int | None = None
        self._peaks: dict[str, int] = {}
        self._steps: list[str] = []
        self._device = ""

    def show_device(self, name: str) -> None:
        """Which memory this is."""
        self._device = name
        self.refresh()

    def plan(self, planned_bytes: int, planned_tensors: int = 0) -> None:
        """Another peak is planned."""
        self._planned_bytes, self._planned_tensors = planned_bytes, planned_tensors
        self.refresh()

    def begin(self) -> None:
        """A new question: its phases have no peaks yet."""
        self._peaks.clear()
        self._steps.clear()
        self._tensor_peak = None
        self.refresh(layout=True)

    def measure(
        self, sample: Sample, phase: str | None = None, peak_bytes: int = 0, tensor_peak_bytes: int | None = None
    ) -> None:
        """A sample, of a phase or between questions."""
        self._now = sample
        if tensor_peak_bytes is not None:
            self._tensor_peak = tensor_peak_bytes
        if self._seconds:
            self._seconds[-1] = max(self._seconds[-1], sample.own_bytes, peak_bytes if phase else 0)
        if phase is not None:
            known = phase in self._peaks
            self._peaks[phase] = max(self._peaks.get(phase, 0), peak_bytes)
            self.refresh(layout=not known)
        else:
            self.refresh()

    def tick(self) -> None:
        """A second has passed."""
        self._seconds.append(self._now.own_bytes)
        self.refresh()

    def degrade(self, step: str) -> None:
        """A smaller plan goes on."""
        self._steps.append(step)
        self.refresh(layout=True)

    def render(self) -> Content:
        """Numbers, the graph, phases, steps."""
        now = f"{format_bytes(self._now.own_bytes)} now"
        planned = f" · {format_bytes(self._planned_bytes)} planned" if self._planned_bytes else ""
        lines = [Content.assemble((now, "bold"), planned), *self._graph()]
        lines.append(Content.styled(f"last {SECONDS_SHOWN} s{self._others()}", "$foreground-muted"))
        if self._tensor_peak is not None:
            lines.append(Content(f"tensors: {format_bytes(self._tensor_peak)} of {self._tensors_planned()}"))
        if self._peaks:
            told = ", ".join(f"{phase} {format_bytes(peak)}" for phase, peak in self._peaks.items())
            lines.append(Content(f"peaks: {told}"))
        if above := self._above_plan():
            lines.append(Content.styled(f"! {above}", "$text-warning"))
        lines += [Content.styled(f"! {safe_text(step)}", "$text-warning") for step in self._steps]
        return Content("\n").join(lines)

    def _tensors_planned(self) -> str:
        return f"{format_bytes(self._planned_tensors)} planned"

    def _above_plan(self) -> str:
        """By how much the largest phase exceeds its plan, and what did; empty where nothing does."""
        tensors = self._tensor_peak
        if tensors is not None and tensors > self._planned_tensors > 0:
            return f"{format_bytes(tensors - self._planned_tensors)} above plan: tensors took more than was planned"
        over = max(self._peaks.values(), default=0) - self._planned_bytes
        if over <= 0 or not self._planned_bytes:
            return ""
        cause = "more is held than was planned" if tensors is None else "the process itself grew beside its tensors"
        return f"{format_bytes(over)} above plan: {cause}"

    def _others(self) -> str:
        others = f" · others {format_bytes(self._now.other_bytes)}" if self._now.other_bytes else ""
        return f" on {self._device}{others}" if self._device else others

    def _graph(self) -> list[Content]:
        """The seconds as columns; the planned peak as dashes over what is empty there."""
        width = max(self.size.width, 10)
        columns = self._columns(width)
        top = max([*columns, self._planned_bytes, 1]) * 1.1
        levels = [0] * (width - len(columns)) + [round(size / top * _ROWS * 8) for size in columns]
        planned_row = _ROWS - 1 - int(self._planned_bytes / top * _ROWS) if self._planned_bytes else None
        return [self._row(levels, row, row == planned_row) for row in range(_ROWS)]

    def _columns(self, width: int) -> list[int]:
        """The kept seconds in at most so many columns, the newest on the right."""
        seconds = list(self._seconds)
        each = -(-SECONDS_SHOWN // width)
        groups = [seconds[max(end - each, 0) : end] for end in range(len(seconds), 0, -each)]
        return [max(group) for group in reversed(groups)]

    def _row(self, levels: list[int], row: int, planned: bool) -> Content:
        floor = (_ROWS - 1 - row) * 8
        cells = [_EIGHTHS[min(max(level - floor, 0), 8)] for level in levels]
        return Content.assemble(
            *(("┄", "$warning") if planned and cell == " " else (cell, "$primary") for cell in cells)
        )
