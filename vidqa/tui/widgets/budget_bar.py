"""The memory of the device as a bar with a scale: used by others, planned and free; below it the parts of the plan.

The shares differ in glyph and colour.
"""

from collections.abc import Mapping

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from vidqa.planner.memory_model import memory_shares
from vidqa.types import Device, Plan
from vidqa.utils.units import format_bytes

_STYLES = {
    "weights": ("█", "$primary"),
    "KV cache": ("▓", "$accent"),
    "activations": ("▒", "$success"),
    "runtime": ("░", "$secondary"),
    "margin": ("·", "$foreground-muted"),
    "others": ("╱", "$warning"),
}
_FREE, _NOTHING = ("─", "$foreground-muted"), (" ", "")
_TWO_COLUMNS = 46
_LABEL_COLUMNS = 7  # of a tick's label and the room around it
_GIB, _MIB = 2**30, 2**20
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class BudgetBar(Widget):
    """Shows the bytes of a plan, its budget, and what other processes use of the device."""

    plan: reactive[Plan | None] = reactive(None, layout=True)
    device: reactive[Device | None] = reactive(None)

    def show(self, plan: Plan | None, device: Device) -> None:
        """Set the plan and the device as it is now."""
        self.device, self.plan = device, plan

    def render(self) -> Content:
        """Return the totals, the bar, its scale and the legend."""
        if self.plan is None or self.device is None:
            return Content("")
        plan, others, width = self.plan, self.device.other_bytes, max(self.size.width, 10)
        shares = {name: size for name, size in memory_shares(plan).items() if size}
        named = shares | ({"others": others} if others else {})
        total = max(self.device.total_bytes, max(plan.budget_bytes, plan.required_bytes) + others)
        lines = [self._totals(plan, others), _bar(shares, plan, others, total, width), _scale(total, width)]
        lines += self._legends([self._legend(name, size) for name, size in named.items()])
        return Content("\n").join(lines)

    def _totals(self, plan: Plan, others: int) -> Content:
        """Return what is used, planned and free, or by how much the plan is over the budget."""
        left = plan.budget_bytes - plan.required_bytes
        free = (f"{format_bytes(left)} free", "$text-success") if left >= 0 else _over(-left)
        parts = [
            *([(f"{format_bytes(others)} used", "$text-warning")] if others else []),
            (f"{format_bytes(plan.required_bytes)} planned", "bold $text-primary"),
            free,
        ]
        room = self.size.width - sum(len(text) for text, _ in parts)
        gap = " " * min(max(room // max(len(parts) - 1, 1), 1), 4)
        return Content(gap).join(Content.styled(*part) for part in parts)

    def _legend(self, name: str, size: int) -> Content:
        glyph, style = _STYLES[name]
        return Content.assemble((f"{glyph} ", style), f"{name:<11}{format_bytes(size):>9}")

    def _legends(self, legends: list[Content]) -> list[Content]:
        """Return the legend, in two columns if there is room."""
        if self.size.width < _TWO_COLUMNS:
            return legends
        return [Content("  ").join(legends[index : index + 2]) for index in range(0, len(legends), 2)]


def _over(size: int) -> tuple[str, str]:
    return f"✗ {format_bytes(size)} over", "bold $text-error"


def _bar(shares: Mapping[str, int], plan: Plan, others: int, total: int, width: int) -> Content:
    """Return other processes, the plan's shares and what is free of the budget, from the left, and the budget's end.

    Each boundary is rounded, not each share, so that the cells agree with the scale below.
    """
    limit = round((others + plan.budget_bytes) / total * width)
    cells, so_far = [_FREE] * limit + [_NOTHING] * (width - limit), 0
    for name, size in {"others": others, **shares}.items():
        first, so_far = round(so_far / total * width), so_far + size
        last = round(so_far / total * width)
        cells[first:last] = [_STYLES[name]] * (last - first)
    if plan.required_bytes > plan.budget_bytes:
        cells[min(limit, width - 1)] = ("┃", "bold $text-error")
    elif limit < width:
        cells[limit] = ("┃", "$foreground-muted")
    return Content.assemble(*cells)


def _scale(total: int, width: int) -> Content:
    """Return round numbers of GiB (of MiB below 1 GiB) under their places in the bar, and the total at its end."""
    unit, name = (_GIB, "GiB") if total >= _GIB else (_MIB, "MiB")
    end = f"{total / unit:.3g} {name}"
    step = next((one for one in _STEPS if one * unit / total * width >= _LABEL_COLUMNS), _STEPS[-1])
    line = [" "] * width
    for value in range(0, int(total / unit) + 1, step):
        label, place = str(value), round(value * unit / total * width)
        if place + len(label) < width - len(end):
            line[place : place + len(label)] = label
    line[max(width - len(end), 0) :] = end[-width:]
    return Content.styled("".join(line), "$foreground-muted")
