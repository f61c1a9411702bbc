"""Which models there are to choose from, with sizes and the planner's verdict. Reads the cache, loads nothing."""

from collections.abc import Iterator
from dataclasses import replace

from vidqa.config import EngineConfig
from vidqa.errors import VidqaError
from vidqa.models.hub import DEMO, cached_models, demo_folder
from vidqa.models.registry import find_checkpoints, short_names
from vidqa.planner.weight_memory import parameters
from vidqa.tui.screens.model_chooser import ModelRow
from vidqa.tui.session_worker import SessionEngine
from vidqa.types import Request, VideoInfo
from vidqa.utils.units import format_bytes, format_span

_16_BIT = 2  # bytes a parameter, as the released checkpoints are stored
_RATE, _MINUTE = 30, 60


def list_choices(
    engine: SessionEngine, config: EngineConfig, request: Request, video: VideoInfo | None
) -> list[ModelRow]:
    """The demo, cached models, then those to fetch; each with whether it fits for this video (else a typical one)."""
    shown, told = (video, "this video") if video else (typical_video(), "a minute of video")
    asked = replace(request, video=shown.path)
    return [_judged(choice, engine, replace(config, model=choice.name), asked, shown, told) for choice in _all_models()]


def _all_models() -> Iterator[ModelRow]:
    demo_bytes = sum(path.stat().st_size for path in demo_folder().iterdir())
    yield ModelRow(DEMO, "shapes only", demo_bytes, True, None, "")
    cached = {model.repository: model for model in cached_models()}
    for name, model in cached.items():
        if model.runnable:
            yield ModelRow(name, "real videos", model.size_bytes, True, None, "")
    for name in short_names().values():
        if name not in cached or not cached[name].runnable:
            (found,) = find_checkpoints(name, local=False)
            yield ModelRow(name, "real videos", parameters(found.spec) * _16_BIT, False, None, "")


def _judged(
    choice: ModelRow, engine: SessionEngine, config: EngineConfig, request: Request, video: VideoInfo, told: str
) -> ModelRow:
    """With whether it fits, and by which plan; None where that cannot be said."""
    try:
        forecast = engine.forecast(video, request, config)
    except VidqaError as error:
        return replace(choice, fits=None, told=error.what)
    if forecast.plan is not None:
        run_config, wait = forecast.plan.run_config, format_span(forecast.plan.seconds.total_seconds)
        return replace(
            choice, fits=True, told=f"fits: {run_config.frames} frames of {told} in {run_config.weights}, about {wait}"
        )
    wanted, budget = forecast.wanted, format_bytes(forecast.task.budget_bytes)
    needs = f"needs {format_bytes(wanted.required_bytes)} of {budget}" if wanted else str(forecast.refusal)
    return replace(choice, fits=False, told=f"does not fit: {needs}")


def typical_video() -> VideoInfo:
    """A minute of 1280×720, to plan for while no video is open."""
    frames = _RATE * _MINUTE
    return VideoInfo(
        path="typical.mp4", container="mp4", codec="h264", width=1280, height=720, coded_width=1280, coded_height=720,
        rotation_degrees=0, pixel_aspect=1.0, fps=_RATE, frame_count=frames, duration_seconds=float(_MINUTE),
        start_seconds=0.0, constant_rate=True, pts_seconds=tuple(number / _RATE for number in range(frames)),
        sources={},
    )  # fmt: skip
