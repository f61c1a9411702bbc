"""How long a captioning run takes: predicted for its groups, measured of runs, and corrected by earlier ones."""

import time
from collections.abc import Callable, Iterable, Sequence
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
        seconds = tuple(_seconds([one.plan.seconds for one in group if one.plan], longest, longest, processes)
                        for group in groups)  # fmt: skip
        return RunForecast(_ASSUMED_START_SECONDS + weights_bytes / _LOADED_BYTES_PER_SECOND, seconds, longest, 0)
    tokens = min(sum(one.answer_tokens for one in earlier) / max(sum(one.answers for one in earlier), 1), longest)
    ratio = median([one.seconds / one.reference_seconds for one in earlier if one.reference_seconds] or [1.0])
    seconds = tuple(ratio * reference_seconds(group, tokens, processes) for group in groups)
    return RunForecast(median([one.start_seconds for one in earlier]), seconds, tokens, len(earlier))


def reference_seconds(group: Iterable[PlannedQuestion], answer_tokens: float, processes: int) -> float:
    """Return a group's seconds at the catalog's speed, which no later measurement changes."""
    found = [(one.reference, one.plan) for one in group]
    estimates = [reference for reference, _ in found if reference]
    longest = max((plan.run_config.max_tokens for _, plan in found if plan), default=1)
    return _seconds(estimates, answer_tokens, longest, processes)


def _seconds(estimates: Sequence[TimeEstimate], tokens: float, longest: float, processes: int) -> float:
    """Return a group's seconds: prompts one after the other, decode steps together, frames decoded meanwhile."""
    prompts = sum(one.start_seconds + one.vision_seconds + one.prefill_seconds for one in estimates)
    decoding = max((one.decode_seconds for one in estimates), default=0.0) * tokens / longest
    return max(prompts + decoding, sum(one.video_seconds for one in estimates) / processes)


@dataclass(slots=True)
class RunTimer:
    """Measures a run: `begin_group` and `end_group` around each one, `on_event` for its events."""

    processes: int
    now: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    load_seconds: float = 0.0
    waited_seconds: float | None = None  # until the first group was ready
    answers: int = 0
    answer_tokens: int = 0
    _groups: list[tuple[PlannedQuestion, ...]] = field(default_factory=list)
    _measuring_since: float | None = None
    _measured_seconds: float = 0.0  # of the device's speed, once

    def __post_init__(self) -> None:
        self.began = self.now()

    def begin_group(self, group: Iterable[PlannedQuestion]) -> None:
        """Note the first group's wait, and what is predicted of each."""
        if self.waited_seconds is None:
            self.waited_seconds = self.now() - self.began
        self._groups.append(tuple(group))

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
        plan = next((one.plan for group in self._groups for one in group if one.plan), None)
        if plan is None or not self.answers:
            return
        tokens = self.answer_tokens / self.answers
        start = (self.waited_seconds or 0.0) + self.load_seconds
        remember_captions(
            CaptionTimes(
                device_key, plan.model, plan.run_config.weights, max(start - self._measured_seconds, 0.0),
                self.now() - self.began - start,
                sum(reference_seconds(group, tokens, self.processes) for group in self._groups),
                self.answers, self.answer_tokens,
            )
        )  # fmt: skip
