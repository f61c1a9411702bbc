"""A line of the plan that can be changed: its name, and the chosen value or the planner's."""

from dataclasses import dataclass
from typing import Any, ClassVar

from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from vidqa.tui.bindings import bindings_for
from vidqa.tui.plan_overrides import SETTING_OPTIONS, format_option

_LABELS = {"kv": "KV cache", "vram_bytes": "budget", "max_wait_seconds": "wait"}


class PlanOption(Widget, can_focus=True):
    """Shows and changes a field of `PlanOverrides`; None is the planner's choice."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("plan")
    help_title = "Plan"
    help_text = (
        "What the next question runs with. The planner fits the other lines to what you set: more frames are smaller, "
        "larger frames are fewer. For sample, prune, focus and subs, Auto is the setting. The last lines say why an "
        "option does nothing."
    )

    @dataclass
    class Changed(Message):
        """A value was chosen; None for the planner's choice."""

        field: str
        value: Any

    def __init__(self, field: str, tooltip: str) -> None:
        super().__init__(id=option_id(field))
        self.tooltip = tooltip
        self._field = field
        self._value: Any = None
        self._planned: Any = None
        self._choices: tuple[Any, ...] = ()

    def set(self, value: Any, planned: Any, choices: tuple[Any, ...]) -> None:
        """Set the chosen value, the planner's value, and all values that can be chosen."""
        self._value, self._planned, self._choices = value, planned, choices
        self.refresh()

    def render(self) -> Content:
        """Return the line."""
        label = _LABELS.get(self._field, self._field)
        if self._value is not None:
            chosen = format_option(self._field, self._value)
            if self._field == "frames" and self._planned not in (None, self._value):
                chosen = f"{chosen} → {self._planned}"  # an even number, and no more than there are
            shown = (chosen, "bold $text")
        elif self._planned is not None:
            mark = "" if self._field in SETTING_OPTIONS else " (auto)"
            shown = (f"{format_option(self._field, self._planned)}{mark}", "$text")
        else:
            shown = ("auto", "$foreground-muted")
        left, right = ("‹ ", " ›") if self.has_focus else ("  ", "  ")
        width = 7 if self._field in SETTING_OPTIONS else 9  # settings stand in two columns
        return Content.assemble(
            (f"{label:<{width}}", "$foreground-muted"), (left, "$accent"), shown, (right, "$accent")
        )

    def action_step(self, step: int) -> None:
        """Choose the next (1) or previous (-1) value, counted from the planner's if none is chosen."""
        if self._choices:
            self._choose(self._neighbour(self._planned if self._value is None else self._value, step))

    def action_reset(self) -> None:
        """Let the planner choose."""
        self._choose(None)

    def _choose(self, value: Any) -> None:
        self._value = value  # at once, so that the next key counts from here before the planner has answered
        self.refresh()
        self.post_message(self.Changed(self._field, value))

    def _neighbour(self, value: Any, step: int) -> Any:
        if value in self._choices:
            index = self._choices.index(value) + step
        elif isinstance(value, int | float):
            below = sum(choice < value for choice in self._choices)
            index = below if step > 0 else below - 1
        else:
            index = 0 if step > 0 else len(self._choices) - 1
        return self._choices[min(max(index, 0), len(self._choices) - 1)]

    def on_click(self, event: events.Click) -> None:
        """Choose the previous value on the left half, the next on the right."""
        self.action_step(-1 if event.x < self.size.width // 2 else 1)


def option_id(field: str) -> str:
    """Return the widget id of a field's option."""
    return f"option-{field.replace('_', '-')}"
