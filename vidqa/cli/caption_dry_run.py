"""`vidqa caption --dry-run` (the plans of all clips) and `--status` (the journals' totals)."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidqa.batch.caption_requests import ClipSegmenter, PlannedQuestion, RequestPlanner
from vidqa.batch.captioner import CaptionerConfig, SessionCaptioner
from vidqa.batch.clip_record import Clip, PendingClip
from vidqa.batch.journal import JournalIndex
from vidqa.cli.console import ExitCode, write_json
from vidqa.errors import UsageError, VidqaError
from vidqa.types import Plan, VideoInfo
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes, format_span
from vidqa.video.reader import open_source

_RECORD_BYTES = 1000  # of a line in the journal, about
_CLASSES = ((0, "pictures"), (10, "up to 10 s"), (60, "up to 1 min"), (600, "up to 10 min"), (float("inf"), "longer"))


@dataclass(slots=True)
class _LengthClass:
    """Clips of similar length, and the totals of their plans."""

    clips: int = 0
    seconds: float = 0.0
    tokens: int = 0
    video_seconds: float = 0.0
    frames: Counter[int] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    batch_sizes: Counter[int] = field(default_factory=Counter)

    def add(self, question: PlannedQuestion, plan: Plan, video_seconds: float) -> None:
        """Add a segment of a clip."""
        self.clips += question.index == 0
        self.seconds += plan.seconds.total_seconds / question.batch_size
        self.tokens += plan.prompt_tokens + plan.run_config.max_tokens
        self.video_seconds += video_seconds
        self.frames[plan.run_config.frames] += 1
        self.sizes[f"{plan.run_config.width}×{plan.run_config.height}"] += 1
        self.batch_sizes[question.batch_size] += 1


def show_plans(clips: Sequence[Clip], config: CaptionerConfig, *, as_json: bool) -> int:
    """Open and plan every clip without a model; print a table or a JSON object. Returns the exit code."""
    classes: dict[str, _LengthClass] = {}
    failed: list[tuple[str, VidqaError]] = []
    planner = RequestPlanner(config.request, config.engine, SessionCaptioner(config).forecast, config.batch)
    with ClipSegmenter(config.request.segments, config.decoding) as segmenter:
        for clip in clips:
            try:
                if planner.scans:
                    with closing(open_source(clip.path, config.decoding)[1]) as source:
                        planner.scan(PlannedQuestion(PendingClip(clip, "")), source)
                for question, video in segmenter.split(PendingClip(clip, "")):
                    planner.plan(question, video)
                    assert question.plan is not None
                    seconds = _seconds(question, video)
                    length = next(name for longest, name in _CLASSES if seconds <= longest)
                    classes.setdefault(length, _LengthClass()).add(question, question.plan, seconds)
            except VidqaError as error:
                failed.append((clip.name, error))
    classes = {name: classes[name] for _, name in _CLASSES if name in classes}
    if as_json:
        write_json(_plans_object(classes, failed, len(clips)))
    else:
        sys.stdout.write("\n".join(_plan_lines(classes, failed, len(clips))) + "\n")
    return ExitCode.SOME_FAILED if failed else ExitCode.OK


def _seconds(question: PlannedQuestion, video: VideoInfo) -> float:
    """Return a segment's length; 0 for a picture."""
    if video.frame_count == 1:
        return 0.0
    return question.span.end_seconds - question.span.start_seconds if question.span else video.duration_seconds


def _plan_lines(
    classes: dict[str, _LengthClass], failed: Sequence[tuple[str, VidqaError]], count: int
) -> Iterator[str]:
    yield f"{count} clips: {count - len(failed)} can be captioned, {len(failed)} cannot"
    if classes:
        yield f"{'length':<14}{'clips':>8}{'frames':>8}{'size':>12}{'at once':>9}{'tokens':>12}{'time':>10}"
    for name, one in classes.items():
        frames, size, batch = (values.most_common(1)[0][0] for values in (one.frames, one.sizes, one.batch_sizes))
        yield (
            f"{name:<14}{one.clips:>8}{frames:>8}{size:>12}{batch:>9}{one.tokens:>12,}{format_span(one.seconds):>10}"
        )
    totals = _totals(classes)
    yield f"in all {totals['tokens']:,} tokens (with answers of the longest length), {format_span(totals['seconds'])}"
    yield f"disk: about {format_bytes(totals['bytes'])} for journal and captions"
    for name, error in failed:
        yield safe_line(f"cannot: {name}: {error}")


def _totals(classes: dict[str, _LengthClass]) -> dict[str, Any]:
    return {
        "tokens": sum(one.tokens for one in classes.values()),
        "seconds": round(sum(one.seconds for one in classes.values()), 1),
        "bytes": sum(one.clips for one in classes.values()) * _RECORD_BYTES,
    }


def _plans_object(
    classes: dict[str, _LengthClass], failed: Sequence[tuple[str, VidqaError]], count: int
) -> dict[str, Any]:
    rows = {
        name: {
            "clips": one.clips,
            "tokens": one.tokens,
            "seconds": round(one.seconds, 3),
            "video_seconds": round(one.video_seconds, 3),
        }
        for name, one in classes.items()
    }
    errors = [
        {"path": name, "class": type(error).__name__, "message": error.what, "hint": error.remedy}
        for name, error in failed
    ]
    return {"clips": count, "failed": errors, "classes": rows, **_totals(classes)}


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
        f"{row['done']} done, {row['failed']} failed, {row['to_do']} to do · {row['model']}\n"
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
