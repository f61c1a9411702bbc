"""The scan of a video before its frames are chosen, as events. Imports no torch: `vidqa plan` scans too."""

from collections.abc import Callable, Generator, Iterator

from vidqa.config import EngineConfig
from vidqa.engine.model_manager import ModelManager
from vidqa.engine.request_state import RequestState
from vidqa.engine.timers import Stopwatch, flat_mapped
from vidqa.errors import Interrupted
from vidqa.events import Event, StageProgress, StageStarted
from vidqa.planner.problem import scan_limit_seconds
from vidqa.planner.search import needs_scan
from vidqa.types import Request
from vidqa.utils.generators import finished
from vidqa.video.change_signal import ChangeSignal
from vidqa.video.reader import VideoReader, never, open_video


def plan_with_scan(
    models: ModelManager,
    reader: VideoReader,
    request: Request,
    config: EngineConfig,
    *,
    local: bool,
    parked_bytes: int = 0,
) -> Generator[Event, None, RequestState]:
    """Plan a request; where a scan of the video may change the plan, scan it first if it was not before.

    Raises as `ModelManager.plan`, VideoError children, and Interrupted soon after a cancellation.
    """
    state = models.plan(reader, request, config, local=local, parked_bytes=parked_bytes)
    if state.problem.signal is None and not needs_scan(state.problem, state.plan):
        return state
    from vidqa.video.signal_cache import SIGNALS  # few questions need it

    watch, seconds = Stopwatch(), state.plan.seconds
    limit = scan_limit_seconds(state.problem.device, config, seconds.first_token_seconds - seconds.scan_seconds)
    known = SIGNALS.find(request, limit, on_disk=config.remember)
    if known is not None and state.problem.signal is not None:
        return state
    if known is None:
        known = yield from scan_stage(reader, request, config, limit, models.callbacks.is_cancelled)
    state.use_signal(known, watch.seconds())
    return state


def scan_stage(
    reader: VideoReader, request: Request, config: EngineConfig, limit_seconds: float, is_cancelled: Callable[[], bool]
) -> Generator[Event, None, ChangeSignal]:
    """Scan a video for about `limit_seconds` at most and keep its signal; raises Interrupted after a cancellation."""

    def shown(progress: tuple[int, int]) -> Iterator[Event]:
        if is_cancelled():
            raise Interrupted("Stopped while the video was scanned.", "Nothing was answered yet.")
        yield StageProgress("scan", *progress)

    yield StageStarted("scan", reader.info.frame_count)
    signal = yield from flat_mapped(reader.scan(limit_seconds), shown)
    from vidqa.video.signal_cache import SIGNALS

    yield StageProgress("scan", reader.info.frame_count, reader.info.frame_count)
    SIGNALS.store(request, signal, limit_seconds, on_disk=config.remember)
    return signal


def known_or_scanned(
    request: Request, config: EngineConfig, limit_seconds: float, report: Callable[[Event], None]
) -> ChangeSignal:
    """Return the signal of a request's video, from an earlier scan or a new one, whose events go to `report`."""
    from vidqa.video.signal_cache import SIGNALS

    known = SIGNALS.find(request, limit_seconds, on_disk=config.remember)
    if known is not None:
        return known
    with open_video(
        request.video, isolated=config.isolate_decoder, deadline_seconds=config.decoder_deadline_seconds,
        clip_deadline_seconds=config.clip_deadline_seconds, stream=request.stream, pictures=request.picture_times,
    ) as reader:  # fmt: skip
        return finished(scan_stage(reader, request, config, limit_seconds, never), report)
