"""What happens where a video is out of the model's domain: a warning that names a better model, or a refusal."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import TypeVar

from vidqa.config import EngineConfig
from vidqa.engine.request_state import RequestState
from vidqa.engine.timers import Stopwatch, flat_mapped
from vidqa.errors import VideoOutOfDomain, VidqaError
from vidqa.events import Event, Noted, OutOfDomain
from vidqa.messages import out_of_domain_text
from vidqa.models.checkpoint import download_bytes
from vidqa.models.hub import cached_names
from vidqa.models.registry import AUTO, short_name
from vidqa.planner.planner import Forecast
from vidqa.types import Request, VideoInfo
from vidqa.utils.units import format_decimal_bytes

Result = TypeVar("Result")
Forecaster = Callable[[VideoInfo, Request, EngineConfig], Forecast]


def with_domain_warning(
    events: Generator[Event, None, Result], state: RequestState, config: EngineConfig, forecast: Forecaster
) -> Generator[Event, None, Result]:
    """Pass a request's events on; say once, with a better model's name, that the video is out of the model's domain.

    Raises VideoOutOfDomain instead if `config` refuses such videos.
    """

    def warned_once(event: Event) -> Iterator[Event]:
        if not isinstance(event, OutOfDomain):
            yield event
        elif not state.out_of_domain:
            state.out_of_domain, watch = True, Stopwatch()
            event = with_advice(event, state, config, forecast)
            state.clock.watch.exclude(watch.seconds())  # it is no part of the answer's time, which is predicted
            state.notes.append(Noted(out_of_domain_text(event.knows, event.advice)))
            yield event

    return flat_mapped(events, warned_once)


def with_advice(event: OutOfDomain, state: RequestState, config: EngineConfig, forecast: Forecaster) -> OutOfDomain:
    """Return the event with a better model's name; raise VideoOutOfDomain if `config` refuses such videos."""
    advice = better_model(state.video, state.request, config, forecast)
    if config.refuse_out_of_domain:
        raise VideoOutOfDomain(
            f"The demo model knows only {event.knows}: its answer about this video would mean nothing.",
            f"{advice or 'Use another --model.'} `--allow-demo --retry-failed` captions it nevertheless.",
        )
    return replace(event, advice=advice)


def better_model(video: VideoInfo, request: Request, config: EngineConfig, forecast: Forecaster) -> str:
    """Return a sentence with the model that the planner would take here, and how to get it; empty if none fits."""
    try:
        found = forecast(video, request, replace(config, model=AUTO, weights=None, placement=None))
    except VidqaError:
        return ""
    if (plan := found.plan) is None:
        return ""
    frames = f"{plan.run_config.frames} frames of {plan.run_config.width}×{plan.run_config.height}"
    if plan.model in cached_names():
        return f"`--model {plan.model}` is on this machine and fits: {frames}."
    size = format_decimal_bytes(download_bytes(plan.model))
    return f"`vidqa pull {short_name(plan.model)}` ({size} to download) fits here: {frames}."
