"""How long a captioning run takes: predicted for its groups, measured of runs, and corrected by earlier ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from vidqa.batch.caption_requests import PlannedQuestion
from vidqa.events import Answered, Event, StageStarted
from vidqa.planner.calibration import CaptionTimes, earlier_captions, remember_captions
from vidqa.types import TimeEstimate

_RECENT = 5  # runs that a correction is the median of
_ASSUMED_START_SECONDS = 10.0  # importing torch and transformers on a laptop, where no run was measured
_LOADED_BYTES_PER_SECOND = 1e9  # of weights, from a disk


@dataclass(frozen=True, slots=True)
class RunForecast:
    """Predicted seconds: `start` until the first group is answered (loading), `groups` each group's.

    `runs` earlier ones on this machine correct it; with none it is an estimate for answers of the longest length.
    """

    start_seconds: float
    groups: tuple[float, ...]
    answer_tokens: float
    runs: int

    @property
    def total_seconds(self) -> float:
        """Return the seconds of the whole run."""
        return self.start_seconds + sum(self.groups)


def forecast_run(
    groups: Sequence[Sequence[PlannedQuestion]], device_key: str | None, weights_bytes: int, processes: int
) -> RunForecast:
    """Predict a run of these groups, in their order; `processes` decode beside it.

    Without a device's key, earlier runs do not count.
    """
    plan = next((one.plan for group in groups for one in group), None)
    if plan is None:
        return RunForecast(0.0, (), 0.0, 0)
    earlier = []
    if device_key is not None:
        earlier = earlier_captions(device_key, plan.model, plan.run_config.weights)[-_RECENT:]
    longest = float(plan.run_config.max_tokens)
    if not earlier:
        found = (_group_time([one.plan.seconds for one in group if one.plan], longest, processes) for group in groups)
        seconds = tuple(one.seconds(longest) for one in found)
        return RunForecast(_ASSUMED_START_SECONDS + weights_bytes / _LOADED_BYTES_PER_SECOND, seconds, longest, 0)
    tokens = min(sum(one.answer_tokens for one in earlier) / max(sum(one.answers for one in earlier), 1), longest)
    ratio = median([one.seconds / one.reference_seconds for one in earlier if one.reference_seconds] or [1.0])
    seconds = tuple(ratio * _reference_time(group, processes).seconds(tokens) for group in groups)
    return RunForecast(median([one.start_seconds for one in earlier]), seconds, tokens, len(earlier))


@dataclass(frozen=True, slots=True)
class _GroupTime:
    """The predicted seconds of a group: of its prompts, of each token, and of its frames' decoding meanwhile."""

    prompts: float
    token: float
    frames: float

    def seconds(self, tokens: float) -> float:
        """Return the group's seconds for answers of this many tokens."""
        return max(self.prompts + self.token * tokens, self.frames)


def _reference_time(group: Sequence[PlannedQuestion], processes: int) -> _GroupTime:
    """Return a group's time at the catalog's speed, which no later measurement changes."""
    estimates = [one.reference for one in group if one.reference]
    longest = max((one.plan.run_config.max_tokens for one in group if one.plan), default=1)
    return _group_time(estimates, longest, processes)


def _group_time(estimates: Sequence[TimeEstimate], longest: float, processes: int) -> _GroupTime:
    """Return a group's time: prompts one after the other, decode steps together."""
    return _GroupTime(
        sum(one.start_seconds + one.vision_seconds + one.prefill_seconds for one in estimates),
        max((one.decode_seconds for one in estimates), default=0.0) / longest,
        sum(one.video_seconds for one in estimates) / processes,
    )


@dataclass(slots=True)
class RunTimer:
    """Measures a run: `begin_group` before each group is answered, `on_event` for its events.

    Keeps three numbers a group and no question, as a run may have a million clips.
    """

    processes: int
    now: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    load_seconds: float = 0.0
    waited_seconds: float | None = None  # until the first group was ready
    answers: int = 0
    answer_tokens: int = 0
    _groups: list[_GroupTime] = field(default_factory=list)
    _model: tuple[str, str] | None = None  # of the first plan: its name and its weights' precision
    _measuring_since: float | None = None
    _measured_seconds: float = 0.0  # of the device's speed, once

    def __post_init__(self) -> None:
        self.began = self.now()

    def begin_group(self, group: Sequence[PlannedQuestion]) -> None:
        """Note the first group's wait, and what is predicted of each."""
        if self.waited_seconds is None:
            self.waited_seconds = self.now() - self.began
        plan = next((one.plan for one in group if one.plan), None)
        if self._model is None and plan is not None:
            self._model = plan.model, plan.run_config.weights
        self._groups.append(_reference_time(group, self.processes))

    def on_event(self, event: Event) -> None:
        """Count answers, and the time in which the device's speed was measured."""
        match event:
            case Answered(answer):
                self.answers, self.answer_tokens = self.answers + 1, self.answer_tokens + answer.timing.tokens
            case StageStarted("speed"):
                self._measuring_since = self.now()
            case StageStarted() if self._measuring_since is not None:
                self._measured_seconds += self.now() - self._measuring_since
                self._measuring_since = None

    def remember(self, device_key: str) -> None:
        """Store the run for later forecasts, if anything was answered."""
        if self._model is None or not self.answers:
            return
        tokens = self.answer_tokens / self.answers
        start = (self.waited_seconds or 0.0) + self.load_seconds
        remember_captions(
            CaptionTimes(
                device_key, *self._model, max(start - self._measured_seconds, 0.0),
                self.now() - self.began - start,
                sum(group.seconds(tokens) for group in self._groups),
                self.answers, self.answer_tokens,
            )
        )  # fmt: skip
