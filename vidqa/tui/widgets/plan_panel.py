"""What the plan is, what it takes of the budget, and the knobs that change it; in red what does not fit."""

from collections.abc import Mapping
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from vidqa.planner.planner import Forecast
from vidqa.tui.plan_overrides import KNOBS, PlanOverrides, knob_choices
from vidqa.tui.widgets.budget_bar import BudgetBar
from vidqa.tui.widgets.plan_option import PlanOption
from vidqa.types import Plan
from vidqa.utils.safe_text import safe_text
from vidqa.utils.units import format_bytes, format_span


class PlanPanel(Vertical):
    """State flows in by `show`; the knobs' messages flow up."""

    BORDER_TITLE = "Plan"

    def compose(self) -> ComposeResult:
        """Summary, bar, knobs, limits."""
        yield Static("open a video to plan for it", id="plan-summary", markup=False)
        yield BudgetBar(id="plan-bar")
        for name, meaning in KNOBS.items():
            yield PlanOption(name, meaning)
        yield Static("", id="plan-limits", markup=False)

    def show(self, forecast: Forecast, wish: PlanOverrides) -> None:
        """A new answer of the planner."""
        self.set_class(forecast.plan is None, "-refused")
        self.query_one("#plan-summary", Static).update(
            _refusal(forecast) if forecast.plan is None else _summary(forecast.plan)
        )
        drawn = forecast.plan or forecast.wanted
        self.query_one(BudgetBar).show(drawn, forecast.task.device)
        choices, planned = knob_choices(forecast.task), _planned(forecast)
        for name in KNOBS:
            value = getattr(wish, name)
            self.query_one(f"#knob-{name.replace('_', '-')}", PlanOption).set(value, planned.get(name), choices[name])
        limits = [f"· {limit}" for limit in forecast.plan.limits] if forecast.plan else []
        told = self.query_one("#plan-limits", Static)
        told.update(safe_text("\n".join(limits)))
        told.display = bool(limits)


def _planned(forecast: Forecast) -> Mapping[str, Any]:
    """What the planner took for each knob."""
    config, plan = forecast.task.config, forecast.plan or forecast.wanted
    planned: dict[str, Any] = {"quality": config.quality, "vram_bytes": forecast.task.budget_bytes}
    if plan is not None:
        run_config = plan.run_config
        kv = "int8" if run_config.kv == "int8" else "native"
        planned |= {
            "frames": run_config.frames,
            "size": (run_config.height, run_config.width),
            "weights": run_config.weights,
            "kv": kv,
        }
    return planned


def _summary(plan: Plan) -> Content:
    run_config, text = plan.run_config, plan.prompt_tokens - plan.visual_tokens
    return Content.assemble(
        (f"{run_config.frames} frames of {run_config.width}×{run_config.height}", "bold"),
        f"\n{plan.visual_tokens:,} visual + {text:,} text tokens",
        f"\nabout {format_span(plan.seconds.total_seconds)} to the end",
    )


def _refusal(forecast: Forecast) -> Content:
    """What does not fit, in red and in words, and the nearest plan that does."""
    assert forecast.refusal is not None
    parts = [("✗ does not fit: ", "bold $text-error"), (safe_text(forecast.refusal.what), "$text-error")]
    if (nearest := forecast.nearest) is not None:
        run_config = nearest.run_config
        told = (
            f"\nnearest that fits (ctrl+t takes it): "
            f"{run_config.frames} frames of {run_config.width}×{run_config.height}, "
            f"{run_config.weights} weights, {format_bytes(nearest.required_bytes)}"
        )
        parts.append((told, "bold"))
    else:
        parts.append((f"\n{safe_text(forecast.refusal.remedy)}", "bold"))
    return Content.assemble(*parts)
