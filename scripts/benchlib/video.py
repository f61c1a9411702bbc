"""Sections about whole videos: first token, follow-up question, and memory that stays flat with more frames."""

from collections.abc import Callable, Iterator
from typing import Any

from benchlib.bench import Bench
from benchlib.models import some_prompt
from benchlib.rows import Row, Samples, comparison_rows, seconds_row
from benchlib.runs import (
    AnsweredQuestion,
    SyntheticReader,
    TimedRun,
    alternating,
    ask,
    follow_up,
    plan_for,
    run_transformers,
    synthetic_video,
)
from vidqa.models.loader import Loaded

_QUESTION = tuple(range(20, 52))  # token ids of a second question
_SPARE_TOKENS = 512


def first_token(name: str) -> Callable[[Bench], Iterator[Row]]:
    """Return the section about the time from decoded frames to the first token."""

    def measure(bench: Bench) -> Iterator[Row]:
        loaded, sizes = bench.model(name), bench.sizes
        height, width = sizes.frame_size
        problem, plan = plan_for(loaded, sizes.frames, (height, width), 1)
        reader = SyntheticReader(synthetic_video(sizes.frames, width, height), 8)
        frames, asked = reader.stacked(sizes.frames), list[AnsweredQuestion]()
        prompt = some_prompt()

        def ours() -> TimedRun:
            asked.append(ask(loaded, problem, plan, prompt, reader))
            return asked[-1].run

        def theirs(**how: Any) -> TimedRun:
            return run_transformers(loaded.model.model, loaded, frames, 1, **how)

        section = f"first-token-{name}"
        # Few users run it so, but it is transformers at its best.
        on_device = "transformers with patches made on the device"
        sides: dict[str, Callable[[], TimedRun]] = {
            "vidqa": ours, "transformers": theirs, on_device: lambda: theirs(device=bench.device)
        }  # fmt: skip
        runs = alternating(sides, min(sizes.repeats, 2))
        seconds = {side: [run.first_token_s for run in made] for side, made in runs.items()}
        clock = asked[-1].clock
        stages = f"waiting for frames {clock.video:.3f} s, vision {clock.vision:.3f} s, prefill {clock.prefill:.3f} s"
        note = f"{sizes.frames} frames of {width}x{height}, {plan.visual_tokens} visual tokens; last: {stages}"
        yield from comparison_rows(section, "first token", seconds, note)

    return measure


def following_up(bench: Bench) -> Iterator[Row]:
    """Measure a second question about the same video, after the first answer."""
    loaded, sizes = bench.model("2b"), bench.sizes
    height, width = sizes.frame_size
    problem, plan = plan_for(loaded, sizes.follow_up_frames, (height, width), 16, _SPARE_TOKENS)
    reader = SyntheticReader(synthetic_video(sizes.follow_up_frames, width, height), 8)
    prompt = some_prompt()
    first, second = list[float](), list[float]()
    for repeat in range(1 + min(sizes.repeats, 3)):
        one = ask(loaded, problem, plan, prompt, reader)
        two = follow_up(loaded, problem, one, _QUESTION)
        if repeat:
            first.append(one.run.first_token_s)
            second.append(two.run.first_token_s)
    yield seconds_row("follow-up", "first question", first, f"{plan.visual_tokens} visual tokens")
    yield seconds_row("follow-up", "second question", second, f"{len(_QUESTION)} new tokens behind a 16-token answer")
    ratio = Samples.of(second).p50 / Samples.of(first).p50
    yield Row("follow-up", "second / first", ratio, "share", "medians of the first token's time, alternating")


def flat_memory(bench: Bench) -> Iterator[Row]:
    """Compare the peaks of few and many frames of one size with the KV cache's growth."""
    loaded, sizes = bench.model("2b"), bench.sizes
    _peak(bench, loaded, sizes.flat_frames[0])  # libraries allocate workspaces with the first question
    peaks = [_peak(bench, loaded, frames) for frames in sizes.flat_frames]
    (few, few_cached), (many, many_cached) = peaks
    for which, frames, (peak, cached) in zip(("few", "many"), sizes.flat_frames, peaks, strict=True):
        yield Row("flat-memory", f"{which} frames", peak / 2**20, "MiB", "peak of all tensors, weights included",
                  note=f"{frames} frames; KV cache {cached / 2**20:.2f} MiB")  # fmt: skip
    off = abs((many - few) / (many_cached - few_cached) - 1)
    formula = f"|({many} - {few}) B / ({many_cached} - {few_cached}) B of KV cache - 1|"
    yield Row("flat-memory", "difference beside the KV cache's", off, "share", formula)


def _peak(bench: Bench, loaded: Loaded, frames: int) -> tuple[int, int]:
    """Return the peak of one question and its cache's bytes. Chunks are small, so that few frames fill them too."""
    height, width = bench.sizes.flat_size
    problem, plan = plan_for(loaded, frames, (height, width), 4, vision_chunk=2, prefill_chunk=64)
    reader, prompt = SyntheticReader(synthetic_video(frames, width, height), 8), some_prompt()
    with bench.accelerator.peak(loaded.model.model) as peak:
        asked = ask(loaded, problem, plan, prompt, reader, peak.meter)
    read: Any = asked.pipeline.prompt_runner.cached_prompt
    return peak.tensors, read.cache.bytes
