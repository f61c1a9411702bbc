"""`vidqa caption --dry-run` and `--status`: what a run would do, and what runs have done. Captions nothing."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidqa.batch.caption_requests import PlannedQuestion, Preparing
from vidqa.batch.captioner_config import CaptionerConfig
from vidqa.batch.clip_record import Clip, Pending
from vidqa.batch.clip_segments import SegmentedClip
from vidqa.batch.journal import Ledger
from vidqa.cli.console import ExitCode, write_json
from vidqa.errors import UsageError, VidqaError
from vidqa.types import Plan, VideoInfo
from vidqa.utils.safe_text import safe_line
from vidqa.utils.units import format_bytes, format_span

_RECORD_BYTES = 1000  # of a journal's line, about
_CLASSES = ((0, "pictures"), (10, "up to 10 s"), (60, "up to 1 min"), (600, "up to 10 min"), (float("inf"), "longer"))


@dataclass(slots=True)
class _Class:
    """Clips of about one length, and what their plans say."""

    clips: int = 0
    seconds: float = 0.0
    tokens: int = 0
    video_seconds: float = 0.0
    frames: Counter[int] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    together: Counter[int] = field(default_factory=Counter)

    def add(self, job: PlannedQuestion, plan: Plan, video_seconds: float) -> None:
        """One more part of a clip."""
        self.clips += job.number == 0
        self.seconds += plan.seconds.total_seconds / job.together
        self.tokens += plan.prompt_tokens + plan.run_config.max_tokens
        self.video_seconds += video_seconds
        self.frames[plan.run_config.frames] += 1
        self.sizes[f"{plan.run_config.width}×{plan.run_config.height}"] += 1
        self.together[job.together] += 1


def show_plans(clips: Sequence[Clip], setup: CaptionerConfig, *, as_json: bool) -> int:
    """Open and plan every clip, load no model; print a table, or a JSON object. Returns the exit code."""
    classes: dict[str, _Class] = {}
    failed: list[tuple[str, VidqaError]] = []
    for job, found in _planned(clips, setup):
        if isinstance(found, VidqaError):
            failed.append((job.pending.clip.name, found))
        elif job.plan is not None:
            classes.setdefault(_class_of(found), _Class()).add(job, job.plan, found)
    if as_json:
        write_json(_plans_object(classes, failed, len(clips)))
    else:
        sys.stdout.write("\n".join(_plan_lines(classes, failed, len(clips))) + "\n")
    return ExitCode.SOME_FAILED if failed else ExitCode.OK


def _planned(clips: Sequence[Clip], setup: CaptionerConfig) -> "Iterator[tuple[PlannedQuestion, float | VidqaError]]":
    """Each part of each clip with the seconds that it is long, or why it cannot be captioned."""
    runner = setup.runner()
    preparing = Preparing(setup.asking, setup.config, runner.forecast, setup.batch)
    with SegmentedClip(setup.asking.segments, runner.how) as opening:
        for clip in clips:
            try:
                for job, video in opening.jobs(Pending(clip, "")):
                    preparing.prepare(job, video)
                    yield job, _seconds(job, video)
            except VidqaError as error:
                yield PlannedQuestion(Pending(clip, "")), error


def _seconds(job: PlannedQuestion, video: VideoInfo) -> float:
    """How long a part is; a picture lasts no time."""
    if video.frame_count == 1:
        return 0.0
    return job.span.end_seconds - job.span.start_seconds if job.span else video.duration_seconds


def _class_of(seconds: float) -> str:
    return next(name for most, name in _CLASSES if seconds <= most)


def _plan_lines(classes: dict[str, _Class], failed: Sequence[tuple[str, VidqaError]], count: int) -> Iterator[str]:
    order = [name for _, name in _CLASSES if name in classes]
    yield f"{count} clips: {count - len(failed)} can be captioned, {len(failed)} cannot"
    if order:
        yield f"{'length':<14}{'clips':>8}{'frames':>8}{'size':>12}{'at once':>9}{'tokens':>12}{'time':>10}"
    for name in order:
        one = classes[name]
        yield (
            f"{name:<14}{one.clips:>8}{_usual(one.frames):>8}{_usual(one.sizes):>12}{_usual(one.together):>9}"
            f"{one.tokens:>12,}{format_span(one.seconds):>10}"
        )
    whole = _totals(classes)
    yield f"in all {whole['tokens']:,} tokens (answers as long as they may be), {format_span(whole['seconds'])}"
    yield f"disk: about {format_bytes(whole['bytes'])} for journal and captions"
    for name, error in failed:
        yield safe_line(f"cannot: {name}: {error}")


def _totals(classes: dict[str, _Class]) -> dict[str, Any]:
    clips = sum(one.clips for one in classes.values())
    return {
        "tokens": sum(one.tokens for one in classes.values()),
        "seconds": round(sum(one.seconds for one in classes.values()), 1),
        "bytes": clips * _RECORD_BYTES,
    }


def _usual(values: Counter[Any]) -> str:
    """The most frequent value."""
    return str(values.most_common(1)[0][0])


def _plans_object(classes: dict[str, _Class], failed: Sequence[tuple[str, VidqaError]], count: int) -> dict[str, Any]:
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
    """What the journals of a folder say, of all shards together; returns the exit code."""
    ledger = Ledger(folder)
    if not ledger.tasks:
        raise UsageError(f"There is no journal in {safe_line(str(folder))}.", "Caption it first, or name it with -o.")
    rows = []
    for key, task in ledger.tasks.items():
        counts = ledger.counts(key)
        todo = sum(ledger.entry(clip.name, key) is None for clip in clips)
        rows.append({"task": key, "model": task.model, "prompt": task.prompt, "done": counts["done"],
                     "failed": counts["failed"], "to_do": todo})  # fmt: skip
    if as_json:
        write_json({"folder": str(folder), "damaged_lines": ledger.damaged, "tasks": rows})
        return ExitCode.OK
    for row in rows:
        prompt = safe_line(str(row["prompt"]))[:60]
        sys.stdout.write(
            f"{row['done']} done, {row['failed']} failed, {row['to_do']} to do · {row['model']} · {prompt}\n"
        )
    for key in ledger.tasks:
        for record in ledger.records(key):
            if record.error is not None:
                sys.stdout.write(
                    safe_line(f"failed: {record.name} ({record.error.stage}): {record.error.message}") + "\n"
                )
    return ExitCode.OK
