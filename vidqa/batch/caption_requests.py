"""The questions that a run asks about a clip: its segments, the prompt filled in, each question's plan and bucket."""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeVar

from vidqa.batch.clip_record import PendingClip, Span
from vidqa.batch.prompt_templates import PromptTemplate, clip_values, fill
from vidqa.batch.scene_detection import find_scenes
from vidqa.batch.segmentation import cut_evenly
from vidqa.config import EngineConfig
from vidqa.devices.device import find_device
from vidqa.errors import VidqaError
from vidqa.planner.calibration import UNMEASURED
from vidqa.planner.latency import estimate_seconds
from vidqa.planner.planner import Forecast
from vidqa.planner.problem import scan_limit_seconds
from vidqa.planner.request_checks import check_request
from vidqa.types import Placement, Plan, Request, TimeEstimate, VideoInfo
from vidqa.utils.generators import finished
from vidqa.video.decoder_pool import ReusedDecoder
from vidqa.video.open import Source
from vidqa.video.reader import Decoding, VideoReader, never
from vidqa.video.signal_cache import SIGNALS

_PLAN_CACHE_SECONDS, _PLAN_CACHE_SIZE = 5.0, 64
_MAX_BATCH = {"cuda": 16, "mps": 1, "cpu": 8}
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """What is asked about every clip: the prompt, a request without video and question, and how clips are split."""

    prompt: PromptTemplate
    request: Request
    segments: float | Literal["scenes"] | None = None


@dataclass(slots=True)
class PlannedQuestion:
    """A question about a segment of a clip; RequestPlanner sets `request`, `plan`, `reference` and `batch_size`.

    `span` is None for the whole clip; `index` of `count` numbers the segment; `batch_size` is how many such questions
    are answered at once; `reference` is the plan's time at the catalog's speed; `error` is why the clip could not be
    split.
    """

    pending: PendingClip
    span: Span | None = None
    index: int = 0
    count: int = 1
    request: Request | None = None
    plan: Plan | None = None
    reference: TimeEstimate | None = None
    batch_size: int = 1
    error: VidqaError | None = None

    @property
    def path(self) -> str:
        """The clip's file."""
        return self.pending.clip.path

    @property
    def bucket(self) -> tuple[tuple[int, int, int], int]:
        """The key of questions that are answered together, with token counts within a quarter; and their number."""
        if self.plan is None:  # it failed, so it need not wait for others
            return (0, 0, 0), 1
        tokens = self.plan.prompt_tokens
        bits = tokens.bit_length()
        return (tokens >> max(bits - 3, 0), bits, self.batch_size), self.batch_size


def bucketed(
    items: Iterable[_Item], bucket: Callable[[_Item], tuple[Hashable, int]], max_waiting: int
) -> Iterator[list[_Item]]:
    """Group items by bucket, in order of arrival; `bucket` returns (key, size of a full group).

    Full groups are yielded immediately. When more than `max_waiting` items wait, the largest group is yielded as it
    is, the oldest among equals; at the end all are.
    """
    waiting: dict[Hashable, list[_Item]] = {}
    for item in items:
        key, size = bucket(item)
        group = waiting.setdefault(key, [])
        group.append(item)
        if len(group) >= size:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) > max_waiting:
            yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
    yield from waiting.values()


class ClipSegmenter:
    """Splits clips into segments, opening one after the other in one decoder process.

    `split` raises Interrupted soon after `is_cancelled` returns True.
    """

    def __init__(
        self,
        segments: float | Literal["scenes"] | None,
        decoding: Decoding,
        is_cancelled: Callable[[], bool] = never,
    ) -> None:
        self._segments = segments
        self._decoder = ReusedDecoder(decoding, is_cancelled)

    def __enter__(self) -> "ClipSegmenter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._decoder.close()

    def split(self, pending: PendingClip) -> Iterator[tuple[PlannedQuestion, VideoInfo]]:
        """Yield a question for each segment; raises VideoError, and UsageError for too many segments."""
        video, source = self._decoder.open(pending.clip.path)
        if self._segments is None:
            yield PlannedQuestion(pending), video
            return
        if self._segments == "scenes":
            spans = find_scenes(VideoReader(video, source))
        else:
            spans = cut_evenly(video.duration_seconds, self._segments)
        for index, span in enumerate(spans):
            yield PlannedQuestion(pending, span, index, len(spans)), video


class RequestPlanner:
    """Fills in and plans questions; a Prefetcher calls `plan` from its threads, one at a time."""

    def __init__(
        self,
        caption_request: CaptionRequest,
        config: EngineConfig,
        forecast: Callable[[VideoInfo, Request, EngineConfig], Forecast],
        batch: int | None,
    ) -> None:
        """`batch` is the largest batch size; None takes the device's default."""
        self._caption_request, self._config, self._forecast, self._batch = caption_request, config, forecast, batch
        self._plans: dict[tuple[object, ...], tuple[float, _BatchPlan]] = {}
        self._scan_seconds = scan_limit_seconds(find_device(config.device), config) if self.scans else 0.0

    def plan(self, question: PlannedQuestion, video: VideoInfo) -> Sequence[int]:
        """Set the question's request, plan and batch size; return the planned frame indices. Raises VidqaError."""
        if question.error is not None:
            raise question.error
        question.request = request_for(question, video, self._caption_request)
        check_request(question.request)
        found = self._cached_plan(video, question.request)
        question.batch_size, question.plan, question.reference = found.batch_size, found.plan, found.reference
        return question.plan.candidates or question.plan.indices

    @property
    def scans(self) -> bool:
        """Whether clips are scanned before they are planned."""
        return self._caption_request.request.sample != "uniform"

    def scan(self, question: PlannedQuestion, source: Source) -> None:
        """Scan a question's clip for change, unless it was scanned before; raises VideoError children."""
        request = replace(self._caption_request.request, video=question.path)
        if question.error is not None or SIGNALS.find(request, on_disk=self._config.remember) is not None:
            return
        signal = finished(source.scan(self._scan_seconds))
        SIGNALS.store(request, signal, self._scan_seconds, on_disk=self._config.remember)

    def _cached_plan(self, video: VideoInfo, request: Request) -> "_BatchPlan":
        """Return the plan for clips of this shape, made anew after some seconds, as free memory changes."""
        size = (video.width, video.height, video.coded_width, video.coded_height)
        shape = replace(request, video=request.video if self.scans else "")  # each scanned clip has its own frames
        key = (*size, video.lead_seconds, video.pts_seconds, video.subtitles, shape)
        now = time.monotonic()
        if key not in self._plans or now - self._plans[key][0] > _PLAN_CACHE_SECONDS:
            if len(self._plans) >= _PLAN_CACHE_SIZE:
                self._plans.clear()
            self._plans[key] = now, self._plan(video, request)
        return self._plans[key][1]

    def _plan(self, video: VideoInfo, request: Request) -> "_BatchPlan":
        """Plan the largest batch in which a clip loses neither frames nor resolution nor precision.

        Sizes are halved from the maximum, since every size is captured and compiled separately.
        """
        found = self._forecast(video, request, self._config)
        if found.plan is None:
            assert found.refusal is not None
            raise found.refusal
        single, placement = found.plan, self._config.placement or Placement()
        problem = replace(found.problem, speed=UNMEASURED)
        if single.candidates:
            return _BatchPlan(1, single, estimate_seconds(problem, single.run_config))
        batch_size = self._batch or _MAX_BATCH[single.device.split(":")[0]]
        while batch_size > 1:
            config = replace(self._config, batch=batch_size, placement=placement)
            plan = self._forecast(video, request, config).plan
            if plan is not None and _quality(plan) == _quality(single):
                return _BatchPlan(batch_size, plan, estimate_seconds(problem, plan.run_config))
            batch_size //= 2
        return _BatchPlan(1, single, estimate_seconds(problem, single.run_config))


@dataclass(frozen=True, slots=True)
class _BatchPlan:
    """How many clips of a shape are answered at once, each one's plan, and its time at the catalog's speed."""

    batch_size: int
    plan: Plan
    reference: TimeEstimate


def request_for(question: PlannedQuestion, video: VideoInfo, caption_request: CaptionRequest) -> Request:
    """Return the request for a segment of a clip."""
    request = caption_request.request
    if question.span is not None:
        start, end = question.span.start_seconds, question.span.end_seconds
        request = replace(request, start_seconds=start, end_seconds=end, segment=True)
    values = clip_values(Path(question.path), video, question.pending.existing)
    text = fill(caption_request.prompt, values).encode(errors="backslashreplace").decode()  # names may be any bytes
    return replace(request, video=question.path, question=text)


def _quality(plan: Plan) -> tuple[int, int, int, str, str]:
    run_config = plan.run_config
    return run_config.frames, run_config.height, run_config.width, run_config.weights, run_config.kv
