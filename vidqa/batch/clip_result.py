"""Collects the answers to a clip's questions into its journal record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidqa.batch.caption_requests import PlannedQuestion
from vidqa.batch.clip_record import ClipRecord, Failure, PendingClip, Segment, Span, utc_now
from vidqa.messages import pruning_object, sampling_object, subtitle_values
from vidqa.planner.explain import unheard_note
from vidqa.types import Answer, Plan


@dataclass(slots=True)
class ClipResult:
    """Segments and failures of one clip so far. `seconds` is the clip's share of its groups' time."""

    pending: PendingClip
    run: str
    count: int
    segments: dict[int, Segment] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    prompt: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether every segment has a caption or a failure."""
        return len(self.segments) + len(self.failures) >= self.count

    def has(self, question: PlannedQuestion) -> bool:
        """Return whether a question's segment has a caption or a failure."""
        return question.index in self.segments or question.index in self.failures

    def add_answer(self, question: PlannedQuestion, answer: Answer) -> None:
        """Add a segment's caption; an empty one is a failure."""
        assert question.request is not None
        self.prompt, self.plan = question.request.question, plan_figures(answer.plan)
        if any(unheard_note(answer.video, question.request)):
            self.plan = {**self.plan, "unheard": True}
        self.notes |= dict.fromkeys((*answer.notes, *answer.degraded))
        self.tokens += answer.plan.prompt_tokens + answer.timing.tokens
        caption = answer.text.strip()
        if caption:
            span = question.span or Span(0.0, round(answer.video.duration_seconds, 3))
            self.segments[question.index] = Segment(span, caption)
        else:
            message = "The model's answer was empty."
            self.failures[question.index] = Failure("caption", "EmptyCaption", message, "Try another prompt.")

    def add_failure(self, question: PlannedQuestion, failure: Failure) -> None:
        """Add a segment's failure."""
        self.failures[question.index] = failure
        if question.request is not None:
            self.prompt = question.request.question
        if question.plan is not None:
            self.plan = plan_figures(question.plan)

    def to_record(self) -> ClipRecord:
        """Return the record: done if all segments have captions, else failed with the first segment's error."""
        segments = tuple(self.segments[index] for index in sorted(self.segments))
        error = self.failures[min(self.failures)] if self.failures else None
        return ClipRecord(
            name=self.pending.clip.name,
            content=self.pending.content,
            task=self.run,
            status="failed" if error else "done",
            attempt=self.pending.attempt,
            modified_ns=self.pending.modified_ns,
            caption="\n".join(segment.caption for segment in segments),
            segments=segments,
            prompt=self.prompt,
            plan=self.plan,
            tokens=self.tokens,
            seconds=round(self.seconds, 4),
            at=utc_now(),
            notes=tuple(self.notes),
            error=error,
        )


def plan_figures(plan: Plan) -> dict[str, Any]:
    """Return the figures of a plan that a record keeps: what was seen, in which precision.

    Keys and shapes are those of the plan in `vidqa ask --json`, without lists of a value for each temporal slice: a run
    may have a million records.
    """
    run_config = plan.run_config
    return {
        "frames": run_config.frames, "width": run_config.width, "height": run_config.height,
        "sampling": sampling_object(plan), **_focus_values(plan),
        "visual_tokens": plan.visual_tokens, "pruning": _pruning_object(plan),
        "weights": run_config.weights, "kv": run_config.kv, "batch": run_config.batch, **subtitle_values(plan),
    }  # fmt: skip


def _pruning_object(plan: Plan) -> dict[str, Any] | None:
    """Return how visual tokens are dropped and, once the plan ran, how many were; None if all are kept."""
    if (values := pruning_object(plan)) is None:
        return None
    return values | {"dropped_tokens": plan.video_tokens - plan.visual_tokens if plan.kept_tokens else None}


def _focus_values(plan: Plan) -> dict[str, Any]:
    """Return the entry `focus` of a plan in which the question selects the frames."""
    if not plan.candidates:
        return {}
    scoring = round(plan.selection.scoring_seconds, 6) if plan.selection else None
    return {"focus": {"candidates": len(plan.candidates), "scoring_s": scoring}}
