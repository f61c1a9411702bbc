"""One line of the plan that a person can change: its name, its value, and the planner's choice in brackets."""

from typing import Any, ClassVar

from textual import events
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from vidqa.tui.key_bindings import bindings_for
from vidqa.tui.plan_overrides import shown_value

_NAMES = {"kv": "KV cache", "vram_bytes": "budget"}


class PlanOption(Widget, can_focus=True):
    """`value` None is the planner's choice, which `planned` says in words."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_for("plan")
    help_title = "Plan"
    help_text = (
        "What runs and what it takes. Left and right change a line, Backspace gives it back to the planner, which "
        "then fits the rest around what you set. Frames and size trade against each other."
    )

    class Changed(Message):
        """The person chose a value; None is the planner's choice."""

        def __init__(self, field: str, value: Any) -> None:
            super().__init__()
            self.field, self.value = field, value

    def __init__(self, name: str, tooltip: str) -> None:
        super().__init__(id=f"knob-{name.replace('_', '-')}")
        self.tooltip = tooltip
        self._field = name
        self._value: Any = None
        self._planned: Any = None
        self._choices: tuple[Any, ...] = ()

    def set(self, value: Any, planned: Any, choices: tuple[Any, ...]) -> None:
        """What is chosen, what the planner took, and what there is to choose from."""
        self._value, self._planned, self._choices = value, planned, choices
        self.refresh()

    def render(self) -> Content:
        """The line."""
        label = _NAMES.get(self._field, self._field)
        if self._value is not None:
            shown = (shown_value(self._field, self._value), "bold $text")
        elif self._planned is not None:
            shown = (f"{shown_value(self._field, self._planned)} (auto)", "$text")
        else:
            shown = ("auto", "$foreground-muted")
        arrows = ("‹ ", " ›") if self.has_focus else ("  ", "  ")
        return Content.assemble(
            (f"{label:<9}", "$foreground-muted"), (arrows[0], "$accent"), shown, (arrows[1], "$accent")
        )

    def action_change(self, step: int) -> None:
        """The choice before or after; from the planner's choice the one beside it."""
        if not self._choices:
            return
        self._turn_to(self._beside(self._value if self._value is not None else self._planned, step))

    def _turn_to(self, value: Any) -> None:
        """At once: the next key goes on from here, also before the planner has answered."""
        self._value = value
        self.refresh()
        self.post_message(self.Changed(self._field, value))

    def _beside(self, now: Any, step: int) -> Any:
        if now in self._choices:
            place = self._choices.index(now) + step
        elif isinstance(now, int):
            below = sum(choice < now for choice in self._choices)
            place = below if step > 0 else below - 1
        else:
            place = 0 if step > 0 else len(self._choices) - 1
        return self._choices[min(max(place, 0), len(self._choices) - 1)]

    def action_automatic(self) -> None:
        """Back to the planner."""
        self._turn_to(None)

    def on_click(self, event: events.Click) -> None:
        """The left part lowers, the right part raises."""
        self.action_change(-1 if event.x < self.size.width // 2 else 1)
