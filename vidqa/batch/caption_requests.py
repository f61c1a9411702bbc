"""A clip to the questions that are asked about it: its parts, the prompt filled in, and the plan of each.

Works in the threads that read ahead; knows no model but its plan.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vidqa.batch.clip_record import Pending, Span
from vidqa.batch.prompt_templates import PromptTemplate, clip_values, fill
from vidqa.config import EngineConfig
from vidqa.errors import VidqaError
from vidqa.planner.planner import Forecast
from vidqa.planner.request_checks import check_request
from vidqa.types import Placement, Plan, Request, VideoInfo

_PLAN_SECONDS, _MOST_PLANS = 5.0, 64
_MOST_TOGETHER = {"cuda": 16, "mps": 1, "cpu": 8}


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """What every clip is asked: the prompt, a request whose video and question are still empty, the parts."""

    prompt: PromptTemplate
    request: Request
    segments: float | Literal["scenes"] | None = None


@dataclass(slots=True)
class PlannedQuestion:
    """One question about one part of a clip. `request`, `plan` and `together` are there once it is prepared.

    `span` is None for the whole clip; `together` is how many of its kind are answered at once; `refused` is why
    a clip has no parts that could be asked about.
    """

    pending: Pending
    span: Span | None = None
    number: int = 0
    count: int = 1
    request: Request | None = None
    plan: Plan | None = None
    together: int = 1
    refused: VidqaError | None = None

    @property
    def path(self) -> str:
        """The clip's file."""
        return self.pending.clip.path

    @property
    def kind(self) -> tuple[tuple[int, int], int]:
        """Jobs of one kind are answered together: within a quarter of each other's tokens; and how many at once."""
        if self.plan is None:  # there is an error to tell, and nobody to wait for
            return (0, 0), 1
        tokens = self.plan.prompt_tokens
        return (tokens >> max(tokens.bit_length() - 3, 0), tokens.bit_length() << 8 | self.together), self.together


class Preparing:
    """Turns a probed clip into a planned request; `prepare` is what `Ahead` calls, from several threads."""

    def __init__(
        self,
        asking: CaptionRequest,
        config: EngineConfig,
        forecast: Callable[[VideoInfo, Request, EngineConfig], Forecast],
        batch: int | None,
    ) -> None:
        self._asking, self._config, self._forecast, self._batch = asking, config, forecast, batch
        self._plans: dict[tuple[object, ...], tuple[float, int, Plan]] = {}

    def prepare(self, job: PlannedQuestion, video: VideoInfo) -> Sequence[int]:
        """Fill in the prompt and plan; the indices of the frames that will be looked at. Raises VidqaError."""
        if job.refused is not None:
            raise job.refused
        job.request = request_of(job, video, self._asking)
        check_request(job.request)
        job.together, job.plan = self._known(video, job.request)
        return job.plan.indices

    def _known(self, video: VideoInfo, request: Request) -> tuple[int, Plan]:
        """The plan of the last clip of this very shape, if it is not old: memory changes meanwhile."""
        shape = (
            video.width,
            video.height,
            video.coded_width,
            video.coded_height,
            video.lead_seconds,
            video.pts_seconds,
        )
        key, now = (*shape, replace(request, video="")), time.monotonic()
        if key not in self._plans or now - self._plans[key][0] > _PLAN_SECONDS:
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[key] = (now, *self._planned(video, request))
        _, together, plan = self._plans[key]
        return together, plan

    def _planned(self, video: VideoInfo, request: Request) -> tuple[int, Plan]:
        """The plan for as many at once as lower nothing that one alone would see."""
        alone = _plan_of(self._forecast(video, request, self._config))
        most = self._batch or _MOST_TOGETHER[alone.device.split(":")[0]]
        for together in _halves(most):
            config = replace(self._config, batch=together, placement=self._config.placement or Placement())
            found = self._forecast(video, request, config)
            if found.plan is not None and _sees(found.plan) == _sees(alone):
                return together, found.plan
        return 1, alone


def request_of(job: PlannedQuestion, video: VideoInfo, asking: CaptionRequest) -> Request:
    """What is asked about this part of this clip."""
    request = asking.request
    if job.span is not None:
        request = replace(request, start_seconds=job.span.start_seconds, end_seconds=job.span.end_seconds)
    values = clip_values(Path(job.path), video, job.pending.existing)
    question = fill(asking.prompt, values).encode(errors="backslashreplace").decode()  # names of files are any bytes
    return replace(request, video=job.path, question=question)


def _plan_of(found: Forecast) -> Plan:
    if found.plan is None:
        assert found.refusal is not None
        raise found.refusal
    return found.plan


def _sees(plan: Plan) -> tuple[int, int, int, str, str]:
    run_config = plan.run_config
    return run_config.frames, run_config.height, run_config.width, run_config.weights, run_config.kv


def _halves(most: int) -> Iterator[int]:
    """16, 8, 4, 2: few sizes, since each is captured and compiled by itself."""
    while most > 1:
        yield most
        most //= 2
