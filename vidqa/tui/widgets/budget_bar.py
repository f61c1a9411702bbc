"""The memory budget as a stacked bar with a legend; the shares differ in glyph and colour."""

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
_TWO_COLUMNS = 46


class BudgetBar(Widget):
    """Shows the bytes of a plan, its budget, and what other processes use of the device."""

    plan: reactive[Plan | None] = reactive(None, layout=True)
    device: reactive[Device | None] = reactive(None)

    def show(self, plan: Plan | None, device: Device) -> None:
        """Set the plan and the device as it is now."""
        self.device, self.plan = device, plan

    def render(self) -> Content:
        """Return the bar, the legend and the total."""
        if self.plan is None or self.device is None:
            return Content("")
        plan = self.plan
        shares = {name: size for name, size in memory_shares(plan).items() if size}
        over = plan.required_bytes - plan.budget_bytes
        lines = [self._bar(shares, plan)]
        named = shares | ({"others": self.device.other_bytes} if self.device.other_bytes else {})
        lines += self._legends([self._legend(name, size) for name, size in named.items()])
        verdict = f"✗ {format_bytes(over)} over" if over > 0 else f"✓ {format_bytes(-over)} left"
        total = f"{format_bytes(plan.required_bytes)} of {format_bytes(plan.budget_bytes)}, "
        lines.append(Content.assemble((total, "bold"), (verdict, "$text-error" if over > 0 else "$text-success")))
        return Content("\n").join(lines)

    def _bar(self, shares: dict[str, int], plan: Plan) -> Content:
        """Return the shares from the left, other processes from the right, and the budget if it is exceeded."""
        width = max(self.size.width, 10)
        assert self.device is not None
        others = self.device.other_bytes
        total = max(plan.budget_bytes, plan.required_bytes) + others
        cells: list[tuple[str, str]] = []
        for name, size in shares.items():
            cells += [_STYLES[name]] * round(size / total * width)
        end = width - round(others / total * width)
        cells = cells[:end] + [("─", "$foreground-muted")] * (end - len(cells)) + [_STYLES["others"]] * (width - end)
        if plan.required_bytes > plan.budget_bytes:
            limit = min(round(plan.budget_bytes / total * width), width - 1)
            cells[limit] = ("┃", "bold $text-error")
        return Content.assemble(*cells)

    def _legend(self, name: str, size: int) -> Content:
        glyph, style = _STYLES[name]
        return Content.assemble((f"{glyph} ", style), f"{name:<11}{format_bytes(size):>9}")

    def _legends(self, legends: list[Content]) -> list[Content]:
        """Return the legend, in two columns if there is room."""
        if self.size.width < _TWO_COLUMNS:
            return legends
        return [Content("  ").join(legends[index : index + 2]) for index in range(0, len(legends), 2)]
