"""The parts of a clip as they are answered, until they are a record. Data in, a record out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vidqa.batch.caption_requests import PlannedQuestion
from vidqa.batch.clip_record import ClipRecord, Failure, Pending, Segment, Span, now
from vidqa.types import Answer, Plan, VideoInfo


@dataclass(slots=True)
class ClipResult:
    """What became of the parts of one clip so far. `seconds` is the clip's share of the time that its groups took."""

    pending: Pending
    task: str
    count: int
    segments: dict[int, Segment] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    prompt: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every part has its answer or its error."""
        return len(self.segments) + len(self.failures) >= self.count

    def answered(self, job: PlannedQuestion, answer: Answer) -> None:
        """A part has its caption; an empty one is an error."""
        assert job.request is not None
        self.prompt, self.plan = job.request.question, plan_figures(answer.plan)
        self.notes |= dict.fromkeys((*answer.notes, *answer.degraded))
        self.tokens += answer.plan.prompt_tokens + answer.timing.tokens
        caption = answer.text.strip()
        if caption:
            self.segments[job.number] = Segment(job.span or _whole(answer.video), caption)
        else:
            message = "The model ended its answer before it said anything."
            self.failures[job.number] = Failure("caption", "EmptyCaption", message, "Try another prompt.")

    def failed(self, job: PlannedQuestion, failure: Failure) -> None:
        """A part has no caption."""
        self.failures[job.number] = failure
        if job.request is not None:
            self.prompt = job.request.question
        if job.plan is not None:
            self.plan = plan_figures(job.plan)

    def record(self) -> ClipRecord:
        """What the journal is told: done where all parts have captions, else the first part's error."""
        segments = tuple(self.segments[number] for number in sorted(self.segments))
        error = self.failures[min(self.failures)] if self.failures else None
        return ClipRecord(
            name=self.pending.clip.name,
            content=self.pending.content,
            task=self.task,
            status="failed" if error else "done",
            attempt=self.pending.attempt,
            modified_ns=self.pending.modified_ns,
            caption="\n".join(segment.caption for segment in segments),
            segments=segments,
            prompt=self.prompt,
            plan=self.plan,
            tokens=self.tokens,
            seconds=round(self.seconds, 4),
            at=now(),
            notes=tuple(self.notes),
            error=error,
        )


def plan_figures(plan: Plan) -> dict[str, Any]:
    """What of a plan explains a caption: how much was seen, and in which precision."""
    run_config = plan.run_config
    return {
        "frames": run_config.frames, "width": run_config.width, "height": run_config.height,
        "visual_tokens": plan.visual_tokens,
        "weights": run_config.weights, "kv": run_config.kv, "batch": run_config.batch,
    }  # fmt: skip


def _whole(video: VideoInfo) -> Span:
    return Span(0.0, round(video.duration_seconds, 3))
