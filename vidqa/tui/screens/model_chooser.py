"""The chooser of models: cached ones and those to download, with their sizes and whether they fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from vidqa.config import EngineConfig
from vidqa.errors import VidqaError
from vidqa.models.checkpoint import download_bytes
from vidqa.models.hub import DEMO, cached_models, demo_folder, is_repository
from vidqa.models.registry import missing_checkpoints, released
from vidqa.planner.model_choice import expected_score, typical_video
from vidqa.planner.planner import Forecast
from vidqa.tui.bindings import bindings_for
from vidqa.tui.session_worker import SessionEngine
from vidqa.types import Request, VideoInfo
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes, format_decimal_bytes, format_span

_TWO_LINES = 80  # columns of a terminal in which a model's name and facts share a line


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model to choose. `fits` is None where the planner cannot say; one that is not `cached` is downloaded first.

    `size_bytes` is None where it is not known before the download. `score` is that of its plan; the demo's means
    nothing on other videos and is 0.
    """

    name: str
    note: str
    size_bytes: int | None
    cached: bool
    fits: bool | None = None
    verdict: str = ""
    score: float = 0.0


def list_models(
    engine: SessionEngine,
    config: EngineConfig,
    request: Request,
    video: VideoInfo | None,
    missing: str | None = None,
) -> list[ModelRow]:
    """Return the demo, cached models, then those to download, each planned for the video, or for a typical one.

    `missing`, a model that was chosen and is not on this machine, is among them if it is a repository.
    """
    planned = video or typical_video()
    request = replace(request, video=planned.path)
    rows = [*_all_models()]
    if missing is not None and is_repository(missing) and missing not in {row.name for row in rows}:
        rows.append(ModelRow(missing, "size not known", None, cached=False))
    return [_planned(row, engine, replace(config, model=row.name), request, planned) for row in rows]


def _all_models() -> Iterator[ModelRow]:
    yield ModelRow(DEMO, "shapes only", sum(path.stat().st_size for path in demo_folder().iterdir()), True)
    for model in cached_models():
        if model.runnable:
            yield ModelRow(model.repository, _score(model.repository), model.size_bytes, True)
    for missing in missing_checkpoints():
        yield ModelRow(missing.name, _score(missing.name), download_bytes(missing.name), False)


def _score(name: str) -> str:
    """Return a released model's expected score; for another one what it is for."""
    spec = released().get(name)
    return f"score {expected_score(spec):.0f}" if spec else "real videos"


def _planned(
    row: ModelRow, engine: SessionEngine, config: EngineConfig, request: Request, video: VideoInfo
) -> ModelRow:
    """Return the row with the planner's verdict."""
    try:
        forecast = engine.forecast(video, request, config)
    except VidqaError as error:
        return replace(row, verdict=error.what)
    if forecast.plan is not None:
        run_config, wait = forecast.plan.run_config, format_span(forecast.plan.seconds.first_token_seconds)
        verdict = f"fits: {run_config.frames} frames in {run_config.weights}, first word after {wait}"
        return replace(row, fits=True, verdict=verdict, score=0.0 if row.name == DEMO else forecast.plan.score)
    return replace(row, fits=False, verdict=_why_not(forecast))


def _why_not(forecast: Forecast) -> str:
    """Return why a model has no plan: memory, time, or the planner's own sentence about its context."""
    wanted, problem = forecast.wanted, forecast.problem
    if wanted is None:
        return str(forecast.refusal)
    if wanted.required_bytes > problem.budget_bytes:
        return f"does not fit: needs {format_bytes(wanted.required_bytes)} of {format_bytes(problem.budget_bytes)}"
    wait, limit = wanted.seconds.first_token_seconds, problem.max_wait_seconds
    if limit is not None and wait > limit:
        return f"too slow: first word after {wait:.0f} s, allowed are {limit:.0f} s"
    return str(forecast.refusal)


class ModelChooser(ModalScreen[ModelRow | None]):
    """Returns the chosen model, or None."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012 - as Textual declares it
    BINDINGS: ClassVar[list[BindingType]] = bindings_for("models")
    AUTO_FOCUS = "OptionList"
    help_title = "Models"
    help_text = (
        "Enter chooses the selected model. A model that is not on this machine is first downloaded from the Hugging "
        "Face Hub. A model's last line is its plan for the open video, or for a minute of video: whether it fits into "
        "the memory that is free now, and how long it takes to the first word."
    )

    def __init__(self, rows: Sequence[ModelRow], current: str | None, *, waiting: bool = False) -> None:
        """`waiting`: a question is asked once a model is chosen and here."""
        super().__init__()
        self._rows, self._current, self._waiting = tuple(rows), current, waiting
        self._best = max((row for row in rows if row.score), key=lambda row: row.score, default=None)

    def compose(self) -> ComposeResult:
        """Yield title, list and keys."""
        with Vertical(classes="dialog"):
            title = "Which model should answer your question?" if self._waiting else "Which model should answer?"
            yield Static(title, classes="title", markup=False)
            yield OptionList(*(Option(self._line(row)) for row in self._rows), id="models")
            yield Static("↑ ↓ select · Enter choose or fetch · Esc back", classes="keys", markup=False)

    def on_mount(self) -> None:
        """Select the current model, else the best that fits here, else the first."""
        names = [row.name for row in self._rows]
        best = self._best.name if self._best else names[0]
        self.query_one(OptionList).highlighted = names.index(self._current if self._current in names else best)

    def _line(self, row: ModelRow) -> Content:
        marks = {None: ("? ", "$foreground-muted"), True: ("✓ ", "$text-success"), False: ("✗ ", "$text-error")}
        name = ("● " if row.name == self._current else "  ") + safe_line(row.name)
        shown = format_bytes if row.cached else format_decimal_bytes
        size = "" if row.size_bytes is None else f"{shown(row.size_bytes)} "
        facts = f"{size}{'cached' if row.cached else 'to download'} · {row.note}"
        facts += " · best here" if row is self._best else ""
        name = f"{name:<31}" if self.app.size.width >= _TWO_LINES else f"{name}\n    "
        verdict = (safe_line(row.verdict), "$foreground-muted")
        return Content.assemble((name, "bold"), facts, "\n    ", marks[row.fits], verdict)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Return the chosen model."""
        self.dismiss(self._rows[event.option_index])
