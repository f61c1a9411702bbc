"""`vidqa caption --dry-run` (what the run would do) and `--status` (the journals' totals)."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vidqa.batch.caption_requests import ClipSegmenter, PlannedQuestion, RequestPlanner, bucketed
from vidqa.batch.caption_run import ClipSelector, SkippedClip
from vidqa.batch.captioner import MAX_WAITING, CaptionerConfig, SessionCaptioner
from vidqa.batch.clip_record import Clip, ClipRecord, PendingClip
from vidqa.batch.journal import JournalIndex
from vidqa.batch.run_forecast import RunForecast, forecast_run
from vidqa.cli.console import ExitCode, format_table, write_json
from vidqa.errors import UsageError, VidqaError
from vidqa.types import VideoInfo
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes, format_span
from vidqa.video.reader import open_source

_RECORD_BYTES = 1000  # of a line in the journal, about
_HEADS = ("clips", "captions", "frames", "size", "weights", "at once", "tokens", "time")


@dataclass(slots=True)
class _Found:
    """What a dry run found: questions with a plan, in groups as they are answered, and clips that need none."""

    questions: list[tuple[PlannedQuestion, VideoInfo]] = field(default_factory=list)
    errors: list[tuple[str, VidqaError]] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def due(self) -> int:
        """Return the number of clips to caption."""
        return len({question.pending.clip.name for question, _ in self.questions})

    def groups(self) -> list[list[PlannedQuestion]]:
        """Return the questions in the groups that are answered at once."""
        return list(bucketed((question for question, _ in self.questions), lambda one: one.bucket, MAX_WAITING))


@dataclass(frozen=True, slots=True)
class _PlanKey:
    """What the captions of a row have in common; with `by_question` the question selects the frames."""

    frames: int
    size: str
    weights: str
    sampling: Literal["uniform", "change"]
    by_question: bool

    @property
    def frames_text(self) -> str:
        """Return the number of frames, and how they are chosen if they are not even."""
        if self.by_question:
            return f"{self.frames} by question"
        return f"{self.frames} by change" if self.sampling == "change" else f"{self.frames}"


@dataclass(slots=True)
class _PlanRow:
    """The questions of one plan, and the totals of their groups."""

    clips: set[str] = field(default_factory=set)
    captions: int = 0
    tokens: float = 0.0
    seconds: float = 0.0
    video_seconds: float = 0.0
    batches: Counter[int] = field(default_factory=Counter)


def show_plans(clips: Sequence[Clip], config: CaptionerConfig, selector: ClipSelector, *, as_json: bool) -> int:
    """Open and plan every clip that is due, without a model; print a table or a JSON object. Returns the exit code."""
    found = _plan(clips, config, selector)
    groups = found.groups()
    weights = next((sum(line.bytes for line in one.plan.lines if line.name.startswith("weights"))
                    for one, _ in found.questions if one.plan), 0)  # fmt: skip
    key = config.device_key if config.engine.calibrate else None
    forecast = forecast_run(groups, key, weights, config.prefetch.processes)
    rows = _rows(found, groups, forecast)
    if as_json:
        write_json(_object(found, rows, forecast, len(clips)))
    else:
        sys.stdout.write("\n".join(_lines(found, rows, forecast, len(clips))) + "\n")
    return ExitCode.SOME_FAILED if found.errors else ExitCode.OK


def _plan(clips: Sequence[Clip], config: CaptionerConfig, selector: ClipSelector) -> _Found:
    found, taken = _Found(), 0
    planner = RequestPlanner(config.request, config.engine, SessionCaptioner(config).forecast, config.batch)
    with ClipSegmenter(config.request.segments, config.decoding) as segmenter:
        for clip in clips:
            if taken == selector.policy.limit:
                break
            pending = selector.examine(clip)
            if isinstance(pending, SkippedClip):
                found.skipped[pending.reason] += 1
                continue
            taken += isinstance(pending, PendingClip)
            try:
                _plan_clip(clip, planner, segmenter, config, pending, found)
            except VidqaError as error:
                found.errors.append((clip.name, error))
    return found


def _plan_clip(
    clip: Clip, planner: RequestPlanner, segmenter: ClipSegmenter, config: CaptionerConfig, pending: Any, found: _Found
) -> None:
    """Plan a clip's questions; raises VidqaError for a clip that cannot be captioned."""
    if isinstance(pending, ClipRecord) and pending.error is not None and pending.error.stage == "output":
        raise UsageError(pending.error.message, pending.error.hint)
    if not isinstance(pending, PendingClip):
        pending = PendingClip(clip, "")  # opening it says why it cannot be read
    if planner.scans:
        with closing(open_source(clip.path, config.decoding)[1]) as source:
            planner.scan(PlannedQuestion(pending), source)
    for question, video in segmenter.split(pending):
        planner.plan(question, video)
        found.questions.append((question, video))


def _rows(
    found: _Found, groups: Sequence[Sequence[PlannedQuestion]], forecast: RunForecast
) -> dict[_PlanKey, _PlanRow]:
    """Return a row for each plan: its frames and how they are chosen, their size, and the weights."""
    rows: dict[_PlanKey, _PlanRow] = {}
    for question, video in found.questions:
        row = rows.setdefault(_key(question), _PlanRow())
        row.clips.add(question.pending.clip.name)
        row.captions += 1
        row.video_seconds += _seconds(question, video)
        row.tokens += (question.plan.prompt_tokens if question.plan else 0) + forecast.answer_tokens
    for group, seconds in zip(groups, forecast.groups, strict=True):
        for key, share in Counter(map(_key, group)).items():
            rows[key].batches[len(group)] += 1
            rows[key].seconds += seconds * share / len(group)
    return rows


def _key(question: PlannedQuestion) -> _PlanKey:
    plan = question.plan
    assert plan is not None
    run_config = plan.run_config
    return _PlanKey(
        run_config.frames, f"{run_config.width}×{run_config.height}", run_config.weights,
        plan.sampling.kind if plan.sampling else "uniform", bool(plan.candidates),
    )  # fmt: skip


def _seconds(question: PlannedQuestion, video: VideoInfo) -> float:
    """Return a segment's length; 0 for a picture."""
    if video.frame_count == 1:
        return 0.0
    return question.span.end_seconds - question.span.start_seconds if question.span else video.duration_seconds


def _lines(found: _Found, rows: dict[_PlanKey, _PlanRow], forecast: RunForecast, count: int) -> Iterator[str]:
    skipped = "".join(f", {number} {reason}" for reason, number in found.skipped.items())
    yield f"{count} clip{'s' * (count != 1)}: {found.due} to caption, {len(found.errors)} cannot be captioned{skipped}"
    if rows:
        cells = [
            (
                f"{len(row.clips)}", f"{row.captions}", key.frames_text, key.size, key.weights,
                _batches(row.batches), f"{row.tokens:,.0f}", format_span(row.seconds),
            )
            for key, row in rows.items()
        ]  # fmt: skip
        yield from format_table([_HEADS, *cells], ">>>>>>>>")
        yield (
            f"in all {format_span(forecast.total_seconds)} on one device: "
            f"{format_span(forecast.start_seconds)} to start and load, "
            f"{format_span(sum(forecast.groups))} for {_total(rows):,.0f} tokens ({_source(forecast)})"
        )
        yield f"disk: about {format_bytes(found.due * _RECORD_BYTES)} for journal and captions"
    for name, error in found.errors:
        yield safe_line(f"cannot: {name}: {error}")


def _batches(batches: Counter[int]) -> str:
    """Return the sizes of groups with their number: `2×8 + 1×4`."""
    return " + ".join(f"{number}×{size}" for size, number in sorted(batches.items(), reverse=True))


def _total(rows: dict[_PlanKey, _PlanRow]) -> float:
    return sum(row.tokens for row in rows.values())


def _source(forecast: RunForecast) -> str:
    """Return what a forecast rests on."""
    if not forecast.runs:
        return "estimated, answers as long as they may be; the first run measures this machine"
    runs = f"{forecast.runs} earlier run{'s' * (forecast.runs != 1)} here"
    return f"calibrated by {runs}, answers of {forecast.answer_tokens:.0f} tokens"


def _object(found: _Found, rows: dict[_PlanKey, _PlanRow], forecast: RunForecast, count: int) -> dict[str, Any]:
    plans = [
        {
            "frames": key.frames,
            "size": key.size,
            "weights": key.weights,
            "sampling": key.sampling,
            "by_question": key.by_question,
            "clips": len(row.clips),
            "captions": row.captions,
            "batches": {str(size): number for size, number in row.batches.items()},
            "tokens": round(row.tokens),
            "seconds": round(row.seconds, 3),
            "video_seconds": round(row.video_seconds, 3),
        }
        for key, row in rows.items()
    ]
    errors = [
        {"path": name, "class": type(error).__name__, "message": error.what, "hint": error.remedy}
        for name, error in found.errors
    ]
    return {
        "clips": count,
        "skipped": dict(found.skipped),
        "failed": errors,
        "plans": plans,
        "tokens": round(_total(rows)),
        "answer_tokens": round(forecast.answer_tokens, 1),
        "start_seconds": round(forecast.start_seconds, 1),
        "seconds": round(forecast.total_seconds, 1),
        "calibrated": forecast.runs > 0,
        "bytes": found.due * _RECORD_BYTES,
    }


def show_status(folder: Path, clips: Sequence[Clip], *, as_json: bool) -> int:
    """Print the totals of all journals in a folder, all shards together; returns the exit code."""
    index = JournalIndex(folder)
    if not index.runs:
        raise UsageError(f"There is no journal in {safe_line(str(folder))}.", "Caption it first, or name it with -o.")
    rows = []
    for key, run in index.runs.items():
        counts = index.counts(key)
        to_do = sum(index.entry(clip.name, key) is None for clip in clips)
        rows.append({"task": key, "model": run.model, "prompt": run.prompt, "done": counts["done"],
                     "failed": counts["failed"], "to_do": to_do})  # fmt: skip
    if as_json:
        write_json({"folder": str(folder), "damaged_lines": index.damaged, "tasks": rows})
        return ExitCode.OK
    lines = [
        f"{row['done']} done, {row['failed']} failed, {row['to_do']} to do · {safe_line(str(row['model']))}\n"
        f"  {safe_line(str(row['prompt']))}"
        for row in rows
    ]
    records = (record for key in index.runs for record in index.records(key))
    lines += [
        safe_line(f"failed: {record.name} ({record.error.stage}): {record.error.message}")
        for record in records
        if record.error is not None
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return ExitCode.OK
