"""The memory budget as a stacked bar with a legend; each share has a glyph of its own besides its colour."""

from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from vidqa.planner.memory_model import memory_shares
from vidqa.types import Device, Plan
from vidqa.utils.units import format_bytes

_LOOKS = {
    "weights": ("█", "$primary"),
    "KV cache": ("▓", "$accent"),
    "activations": ("▒", "$success"),
    "context": ("░", "$secondary"),
    "margin": ("·", "$foreground-muted"),
    "others": ("╱", "$warning"),
}
_TWO_COLUMNS = 46


class BudgetBar(Widget):
    """Bytes of a plan against its budget, and what other processes hold of the device."""

    plan: reactive[Plan | None] = reactive(None, layout=True)
    device: reactive[Device | None] = reactive(None)

    def show(self, plan: Plan | None, device: Device) -> None:
        """Another plan, or the same on a device as it is now."""
        self.device, self.plan = device, plan

    def render(self) -> Content:
        """The bar, then a line for each share."""
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
        """The shares from the left, the others' memory from the right, and the limit where it lies between."""
        width = max(self.size.width, 10)
        assert self.device is not None
        others = self.device.other_bytes
        whole = max(plan.budget_bytes, plan.required_bytes) + others
        cells: list[tuple[str, str]] = []
        for name, size in shares.items():
            cells += [_LOOKS[name]] * round(size / whole * width)
        most = width - round(others / whole * width)
        cells = cells[:most] + [("─", "$foreground-muted")] * (most - len(cells)) + [_LOOKS["others"]] * (width - most)
        if plan.required_bytes > plan.budget_bytes:
            limit = min(round(plan.budget_bytes / whole * width), width - 1)
            cells[limit] = ("┃", "bold $text-error")
        return Content.assemble(*cells)

    def _legend(self, name: str, size: int) -> Content:
        glyph, style = _LOOKS[name]
        return Content.assemble((f"{glyph} ", style), f"{name:<11}{format_bytes(size):>9}")

    def _legends(self, legends: list[Content]) -> list[Content]:
        """Side by side where there is room."""
        if self.size.width < _TWO_COLUMNS:
            return legends
        return [Content("  ").join(legends[place : place + 2]) for place in range(0, len(legends), 2)]
