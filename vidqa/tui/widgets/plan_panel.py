"""The plan panel: what runs, how it fills the memory budget, and the options that change it."""

from collections.abc import Mapping
from math import inf
from typing import Any

from textual.app import ComposeResult
from textual.containers import Grid, Vertical
from textual.content import Content
from textual.widgets import Static

from vidqa.messages import visual_tokens_text
from vidqa.planner.explain_options import explain_options
from vidqa.planner.planner import Forecast
from vidqa.tui.found_moments import format_range
from vidqa.tui.option_words import in_session_words
from vidqa.tui.plan_overrides import PLAN_OPTIONS, SETTING_OPTIONS, PlanOverrides, option_choices
from vidqa.tui.widgets.budget_bar import BudgetBar
from vidqa.tui.widgets.plan_option import PlanOption, option_id
from vidqa.types import Plan
from vidqa.utils.safe_text import safe_text
from vidqa.utils.units import format_bytes, format_span


class PlanPanel(Vertical):
    """`show` draws a forecast; the options post `PlanOption.Changed`."""

    BORDER_TITLE = "Plan"

    def compose(self) -> ComposeResult:
        """Yield summary, bar, options and limits."""
        yield Static("open a video to see its plan", id="plan-summary", markup=False)
        yield BudgetBar(id="plan-bar")
        options = {field: PlanOption(field, tooltip) for field, tooltip in PLAN_OPTIONS.items()}
        yield from (option for field, option in options.items() if field not in SETTING_OPTIONS)
        with Grid(id="plan-settings"):
            yield from (options[field] for field in SETTING_OPTIONS)
        yield Static("", id="plan-limits", markup=False)

    def show(self, forecast: Forecast, overrides: PlanOverrides, moment: int | None = None) -> None:
        """Show a forecast, what was overridden for it, and the index of the moment that it is for."""
        plan = forecast.plan
        self.set_class(plan is None, "-refused")
        self.query_one("#plan-summary", Static).update(
            _refusal(forecast) if plan is None else _summary(forecast, plan, moment)
        )
        self.query_one(BudgetBar).show(plan or forecast.wanted, forecast.problem.device)
        choices, planned = option_choices(forecast.problem), _planned_values(forecast)
        for field in PLAN_OPTIONS:
            option = self.query_one(f"#{option_id(field)}", PlanOption)
            option.set(getattr(overrides, field), planned.get(field), choices[field])
        limits = self.query_one("#plan-limits", Static)
        lines = []
        if plan:
            options = explain_options(forecast.problem, plan, subs_chosen=overrides.subs is not None)
            lines = [*plan.limits, *plan.choices, *options]
        limits.update(safe_text(in_session_words("\n".join(f"· {line}" for line in lines))))
        limits.display = bool(lines)


def _planned_values(forecast: Forecast) -> Mapping[str, Any]:
    """Return the planner's value of each option."""
    config, plan = forecast.problem.config, forecast.plan or forecast.wanted
    values: dict[str, Any] = {
        "quality": config.quality,
        "max_wait_seconds": forecast.problem.max_wait_seconds or inf,
        "vram_bytes": forecast.problem.budget_bytes,
        "prune": config.prune,
        "sample": forecast.problem.request.sample,
        "focus": forecast.problem.request.focus,
        "subs": forecast.problem.request.subs,
    }
    if plan is not None:
        run_config = plan.run_config
        values |= {
            "frames": run_config.frames,
            "size": (run_config.height, run_config.width),
            "weights": run_config.weights,
            "kv": "int8" if run_config.kv == "int8" else "native",
        }
    return values


def _summary(forecast: Forecast, plan: Plan, moment: int | None) -> Content:
    run_config, text = plan.run_config, plan.prompt_tokens - plan.visual_tokens
    return Content.assemble(
        (f"{run_config.frames} frames of {run_config.width}×{run_config.height}", "bold"),
        _range(forecast, moment),
        f"\n{visual_tokens_text(plan)} + {text:,} text tokens",
        f"\nfirst word in {format_span(plan.seconds.first_token_seconds)}, "
        f"the end in {format_span(plan.seconds.total_seconds)}",
    )


def _range(forecast: Forecast, moment: int | None) -> str:
    """Return the part of the video that the plan is for; empty for the whole video."""
    request, duration = forecast.problem.request, forecast.problem.video.duration_seconds
    if request.start_seconds is None and request.end_seconds is None:
        return ""
    end = duration if request.end_seconds is None else request.end_seconds
    name = "" if moment is None else f" (moment {moment + 1})"
    return f"\nonly {format_range(request.start_seconds or 0.0, end)}{name}"


def _refusal(forecast: Forecast) -> Content:
    """Return what does not fit, and the nearest plan that does, else the remedy."""
    assert forecast.refusal is not None
    if (nearest := forecast.nearest) is not None:
        run_config = nearest.run_config
        remedy = (
            f"\nnearest that fits (ctrl+t uses it): "
            f"{run_config.frames} frames of {run_config.width}×{run_config.height}, "
            f"{run_config.weights} weights, {format_bytes(nearest.required_bytes)}"
        )
    else:
        remedy = f"\n{safe_text(in_session_words(forecast.refusal.remedy))}"
    what = safe_text(in_session_words(forecast.refusal.what))
    return Content.assemble(("✗ does not fit: ", "bold $text-error"), (what, "$text-error"), (remedy, "bold"))
