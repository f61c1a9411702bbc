"""Explanations of a plan: for every choice that lowered something, the limit that forced it."""

from collections.abc import Iterator
from dataclasses import replace

from vidqa.planner import quality
from vidqa.planner.activation_memory import kept_video_tokens, kept_visual_tokens
from vidqa.planner.latency import cancel_check_seconds, estimate_seconds, most_at_once
from vidqa.planner.memory_model import required_bytes
from vidqa.planner.placement import compute_dtype, weight_choices
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.search import SearchSpace, fit, has_too_many_tokens
from vidqa.types import Placement, Plan, Request, RunConfig, VideoInfo
from vidqa.utils.frame_choice import Sampling
from vidqa.utils.units import format_bytes, format_timestamp
from vidqa.video.change_sampling import describe_sampling
from vidqa.video.frame_sampling import CLOSE_SECONDS, seconds_in_range

_PLACEMENTS = {
    "embedding_on_host": "the embedding table stays in host memory",
    "vision_offloaded": "the vision tower leaves the device before the prefill",
    "vision_quantized": "the vision tower is quantized too",
    "lm_head_quantized": "lm_head is quantized too",
    "kv_on_host": "the KV cache stays in host memory: slow",
}
_SPARSE_SECONDS = 1.0  # frames further apart than this can miss what happens between them
_FIXED_IF_STORED = ("vision_quantized", "lm_head_quantized")
_ON = {"cpu": " on a CPU", "cuda": " on a GPU", "mps": " on a GPU"}


def explain_limits(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> tuple[str, ...]:
    """Return one sentence per lowered choice."""
    return (
        *_requested_frames(problem, run_config),
        *_frames_limit(problem, space, run_config),
        *_size_limit(problem, space, run_config),
        *_weights_limit(problem, run_config),
        *_kv_limit(problem, run_config),
        *_placement_limits(problem, run_config),
        *_chunk_limit(problem, run_config),
        *_beyond_training(problem, run_config),
    )


def limiting_reason(
    problem: PlanningProblem, space: SearchSpace, run_config: RunConfig, otherwise: str = "frames go before pixels"
) -> str:
    """Return what forbids a run configuration: the context, the cap of the quality, memory or time; or `otherwise`."""
    if has_too_many_tokens(problem, space, run_config):
        if kept_video_tokens(problem.spec, run_config) > problem.context_left:
            return f"the model's context of {problem.spec.context_tokens:,} tokens"
        if problem.most_visual_tokens is not None:
            return "a larger plan ran out of memory"
        if space.most_tokens < quality.CAPS[problem.config.quality].visual_tokens:
            return f"{space.most_tokens:,} visual tokens, the most that the checkpoint's video processor allows"
        return f"{space.most_tokens:,} visual tokens, past which little is gained (--quality {problem.config.quality})"
    needed = required_bytes(problem.spec, run_config, problem.overhead)
    if needed > problem.budget_bytes:
        over = format_bytes(needed - problem.budget_bytes)
        return f"memory: more would need {over} beyond {format_bytes(problem.budget_bytes)}"
    seconds, wait = first_token_seconds(problem, run_config), problem.max_wait_seconds
    if wait is not None and seconds > wait:
        return f"time: more would take about {seconds:.0f} s to the first word ({wait_option(problem)})"
    return otherwise


def explain_sampling(plan: Plan) -> Iterator[str]:
    """Yield where the frames lie and why, if they are by change or the video has none."""
    if plan.sampling is not None and (plan.sampling.kind == "change" or plan.sampling.still):
        yield sampling_text(plan, plan.sampling)


def sampling_text(plan: Plan, sampling: Sampling) -> str:
    """Return where a plan's frames lie and why; where a question selects them, those that it selects from."""
    return describe_sampling(sampling, len(plan.candidates or plan.indices), looked_at=bool(plan.candidates))


def sampling_gap_note(plan: Plan, request: Request) -> Iterator[str]:
    """Yield a note on the events that a plan can miss and the options that sample denser.

    Nothing for dense frames, and where the video has no events.
    """
    placed = plan.candidates or (plan.sampling is not None and (plan.sampling.kind == "change" or plan.sampling.still))
    dense = _SPARSE_SECONDS if plan.sampling is None else CLOSE_SECONDS  # `--sample auto` says why those are enough
    if plan.interval_seconds > dense and not placed:
        start = request.start_seconds or 0.0
        end = start + plan.run_config.frames / quality.FRAMES_PER_SECOND
        yield (
            f"frames every {plan.interval_seconds:.1f} s: shorter events may be missed; look closer with "
            f"--start {format_timestamp(start)} --end {format_timestamp(end)}"
        )


def subtitle_note(plan: Plan) -> Iterator[str]:
    """Yield which subtitles the model reads, and how many are left out."""
    if (planned := plan.subtitles) is None:
        return
    lines, left_out = len(planned.cues), planned.left_out
    language = f" ({planned.language})" if planned.language else ""
    less = f", {left_out} left out to keep room for frames (--subs-share)" if left_out else ""
    yield f"subtitles: {lines} line{'s' * (lines != 1)} of {planned.source}{language}{less}"


def unheard_note(video: VideoInfo, request: Request) -> Iterator[str]:
    """Yield that the sound is not heard, where the video has some and nothing written of it was found."""
    if video.has_sound and video.subtitles is None and request.subs != "off":
        yield "the sound is not heard: --subs FILE gives what is said as text, --subs off leaves this note out"


def _requested_frames(problem: PlanningProblem, run_config: RunConfig) -> Iterator[str]:
    requested = problem.request.frames
    if requested is not None and requested > 1 and requested != run_config.frames:
        yield f"{run_config.frames} frames instead of {requested}: an even number, and no more than there are"


def _frames_limit(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> Iterator[str]:
    request = problem.request
    if run_config.frames >= space.wanted_frames or request.focus == "always":  # a search reads none of its frames
        return
    rate = space.wanted_frames / seconds_in_range(problem.video, request.start_seconds, request.end_seconds)
    lowered = f"{run_config.frames} of {space.wanted_frames:,} frames ({rate:.2g} per second)"
    more = [count for count in space.counts if count > run_config.frames]
    if gives_up_frames(problem, space, run_config):
        yield f"{lowered}: the rest of what fits is for frames to choose from (--focus)"
    elif more:
        height, width = space.sizes[0]
        larger = replace(space.with_frames(run_config, more[0]), height=height, width=width, candidate_frames=0)
        why = limiting_reason(problem, space, larger, "more would have to be smaller than is worth it")
        yield f"{lowered}: {why}"
    elif problem.request.frames is None and problem.request.fps is None:
        most = run_config.frames >= problem.bounds.max_frames // 2 * 2
        why = "the checkpoint's own limit" if most else f"more add little (--quality {problem.config.quality})"
        yield f"{lowered}: {why}"


def gives_up_frames(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> bool:
    """Return whether more frames of the same size would fit if the question did not select them."""
    more = [count for count in space.counts if count > run_config.frames]
    if not more or not run_config.candidate_frames:
        return False
    return fit(problem, space, replace(space.with_frames(run_config, more[0]), candidate_frames=0)) is not None


def _size_limit(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> Iterator[str]:
    number = space.sizes.index((run_config.height, run_config.width)) + 1
    if number < len(space.sizes):
        (height, width), (most_height, most_width) = space.sizes[number], space.sizes[-1]
        why = limiting_reason(problem, space, replace(run_config, height=height, width=width, candidate_frames=0))
        yield f"{run_config.width}x{run_config.height} instead of {most_width}x{most_height}: {why}"


def _weights_limit(problem: PlanningProblem, run_config: RunConfig) -> Iterator[str]:
    best = weight_choices(problem.device, problem.spec)[0]
    if problem.config.weights or problem.spec.stored or run_config.weights == best:
        return
    dtype = compute_dtype(problem.device, problem.spec)
    native = replace(run_config, weights=best, dtype=dtype, kv=dtype, placement=Placement())
    needed = required_bytes(problem.spec, native, problem.overhead)
    if needed > problem.budget_bytes:
        yield f"{run_config.weights} weights: {best} would need {_of_budget(needed, problem)}"
    elif problem.max_wait_seconds is not None:
        seconds = first_token_seconds(problem, native)
        yield f"{run_config.weights} weights: {best} would take about {seconds:.0f} s to the first word"


def _kv_limit(problem: PlanningProblem, run_config: RunConfig) -> Iterator[str]:
    if run_config.kv == "int8" and not problem.config.kv:
        native = replace(run_config, kv=run_config.dtype)
        needed = required_bytes(problem.spec, native, problem.overhead)
        yield f"int8 KV cache: {run_config.dtype} would need {_of_budget(needed, problem)}"


def _placement_limits(problem: PlanningProblem, run_config: RunConfig) -> Iterator[str]:
    fixed = _FIXED_IF_STORED if problem.spec.stored else ()
    for name, effect in _PLACEMENTS.items():
        if problem.config.placement is None and getattr(run_config.placement, name) and name not in fixed:
            yield f"{effect}, to save memory"


def _chunk_limit(problem: PlanningProblem, run_config: RunConfig) -> Iterator[str]:
    config, (vision, prefill) = problem.config, problem.chunks[0]
    smaller = run_config.vision_chunk < vision or run_config.prefill_chunk < prefill
    if not smaller or config.vision_chunk is not None or config.prefill_chunk is not None:
        return
    slices = f"{run_config.vision_chunk} slice{'s' * (run_config.vision_chunk != 1)}"
    lowered = f"{slices} and {run_config.prefill_chunk} tokens at a time"
    if config.step_seconds is None or not _limited_by_step(problem, run_config, config.step_seconds):
        yield f"{lowered}, to save memory"
        return
    longest = max(cancel_check_seconds(problem, run_config))
    if longest <= config.step_seconds:
        yield f"{lowered}, so that a stop takes no longer than {config.step_seconds:g} s"
    else:
        yield f"{lowered}, the fewest there are: a stop may still take {longest:.1f} s on {problem.device.name}"


def _limited_by_step(problem: PlanningProblem, run_config: RunConfig, seconds: float) -> bool:
    """Return whether the time of a step made the chunks small: twice as large ones would take too long."""
    slices, tokens = most_at_once(problem, run_config, seconds)
    vision, prefill = problem.chunks[0]
    return 2 * run_config.vision_chunk > min(slices, vision) and 2 * run_config.prefill_chunk > min(tokens, prefill)


def _beyond_training(problem: PlanningProblem, run_config: RunConfig) -> Iterator[str]:
    tokens = kept_visual_tokens(problem.spec, run_config)
    if tokens > quality.MOST_TRAINED_TOKENS:
        yield f"{tokens:,} visual tokens: past {quality.MOST_TRAINED_TOKENS:,} scores fall; no model was trained there"


def _of_budget(needed: int, problem: PlanningProblem) -> str:
    return f"{format_bytes(needed)} of {format_bytes(problem.budget_bytes)}"


def first_token_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the predicted time to the first word."""
    return estimate_seconds(problem, run_config).first_token_seconds


def wait_option(problem: PlanningProblem) -> str:
    """Return the limit on the time to the first word as an option: `--max-wait auto: 90 s on a CPU`."""
    wait = problem.max_wait_seconds
    if problem.config.max_wait_seconds != "auto":
        return f"--max-wait {wait:g}"
    return f"--max-wait auto: {wait:.0f} s{'' if problem.raised_wait_seconds else _ON[problem.device.kind]}"
