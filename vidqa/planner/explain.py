"""Why a plan is not larger: for every choice that lowered something, the limit that forced it.

Asks the estimate what the next step up would need. Knows sentences; searches nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vidqa.planner import quality
from vidqa.planner.latency import estimate_seconds, look_seconds, most_at_once
from vidqa.planner.memory_model import required_bytes
from vidqa.planner.placement import compute_dtype, weight_choices
from vidqa.types import Placement, RunConfig
from vidqa.utils.units import format_bytes

if TYPE_CHECKING:
    from vidqa.planner.search import PlanningProblem, SearchSpace

_LEVERS = {
    "embedding_on_host": "the embedding table stays in host memory",
    "vision_offloaded": "the vision tower leaves the device before the prefill",
    "vision_quantized": "the vision tower is quantized too",
    "lm_head_quantized": "lm_head is quantized too",
    "kv_on_host": "the KV cache stays in host memory: slow",
}
_QUANTIZED_LEVERS = ("vision_quantized", "lm_head_quantized")  # no choice where a checkpoint is stored so


def told_limits(task: "PlanningProblem", space: "SearchSpace", run_config: RunConfig) -> tuple[str, ...]:
    """One sentence per lowered choice."""
    return (
        *_asked_frames(task, run_config),
        *_frames_limit(task, space, run_config),
        *_size_limit(task, space, run_config),
        *_weights_limit(task, run_config),
        *_kv_limit(task, run_config),
        *_placement_limits(task, run_config),
        *_chunk_limit(task, run_config),
        *_beyond_training(task, run_config),
    )


def reason(
    task: "PlanningProblem", space: "SearchSpace", run_config: RunConfig, otherwise: str = "frames go before pixels"
) -> str:
    """What forbids a draft: memory, time, the context or the cap of the quality; `otherwise` where nothing does."""
    tokens = task.spec.visual_tokens(run_config.frames, run_config.height, run_config.width)
    if tokens > space.most_tokens:
        context = (
            task.spec.context_tokens - task.text_tokens - task.request.max_tokens - task.config.conversation_tokens
        )
        if tokens > context:
            return f"the model's context of {task.spec.context_tokens:,} tokens"
        if task.most_visual_tokens is not None:
            return "a larger plan ran out of memory"
        return f"{space.most_tokens:,} visual tokens, past which little is gained (--quality {task.config.quality})"
    needed = required_bytes(task.spec, run_config, task.around)
    if needed > task.budget_bytes:
        over = format_bytes(needed - task.budget_bytes)
        return f"memory: more would need {over} beyond {format_bytes(task.budget_bytes)}"
    seconds = estimate_seconds(task.spec, run_config, task.device, task.video).total_seconds
    if task.config.max_wait_seconds is not None and seconds > task.config.max_wait_seconds:
        return f"time: more would take about {seconds:.0f} s (--max-wait {task.config.max_wait_seconds:g})"
    return otherwise


def _frames_limit(task: "PlanningProblem", space: "SearchSpace", run_config: RunConfig) -> Iterator[str]:
    if run_config.frames >= space.wanted_frames:
        return
    told = f"{run_config.frames} of {space.wanted_frames:,} frames (2 per second)"
    more = [count for count in space.counts if count > run_config.frames]
    if more:
        height, width = space.sizes[0]
        larger = replace(run_config, frames=more[0], height=height, width=width)
        yield f"{told}: {reason(task, space, larger, 'more would have to be smaller than is worth it')}"
    elif task.request.frames is None and task.request.fps is None:
        own = run_config.frames >= task.bounds.max_frames // 2 * 2
        why = "the checkpoint's own limit" if own else f"more add little (--quality {task.config.quality})"
        yield f"{told}: {why}"


def _size_limit(task: "PlanningProblem", space: "SearchSpace", run_config: RunConfig) -> Iterator[str]:
    place = space.sizes.index((run_config.height, run_config.width))
    if place == len(space.sizes) - 1:
        return
    height, width = space.sizes[place + 1]
    most_height, most_width = space.sizes[-1]
    why = reason(task, space, replace(run_config, height=height, width=width))
    yield f"{run_config.width}x{run_config.height} instead of {most_width}x{most_height}: {why}"


def _weights_limit(task: "PlanningProblem", run_config: RunConfig) -> Iterator[str]:
    best = weight_choices(task.device)[0]
    if task.config.weights or task.spec.stored or run_config.weights == best:
        return
    dtype = compute_dtype(task.device)
    native = replace(run_config, weights=best, dtype=dtype, kv=dtype, placement=Placement())
    needed = required_bytes(task.spec, native, task.around)
    if needed > task.budget_bytes:
        yield f"{run_config.weights} weights: {best} would need {_of_budget(needed, task)}"
    elif task.config.max_wait_seconds is not None:
        seconds = estimate_seconds(task.spec, native, task.device, task.video).total_seconds
        yield f"{run_config.weights} weights: {best} would take about {seconds:.0f} s"


def _kv_limit(task: "PlanningProblem", run_config: RunConfig) -> Iterator[str]:
    if run_config.kv == "int8" and not task.config.kv:
        native = replace(run_config, kv=run_config.dtype)
        needed = required_bytes(task.spec, native, task.around)
        yield f"int8 KV cache: {run_config.dtype} would need {_of_budget(needed, task)}"


def _placement_limits(task: "PlanningProblem", run_config: RunConfig) -> Iterator[str]:
    if task.config.placement is None:
        as_stored = _QUANTIZED_LEVERS if task.spec.stored else ()
        for name, told in _LEVERS.items():
            if getattr(run_config.placement, name) and name not in as_stored:
                yield f"{told}, to save memory"


def _chunk_limit(task: "PlanningProblem", run_config: RunConfig) -> Iterator[str]:
    config, (vision, prefill) = task.config, task.chunks[0]
    smaller = run_config.vision_chunk < vision or run_config.prefill_chunk < prefill
    if not smaller or config.vision_chunk is not None or config.prefill_chunk is not None:
        return
    slices = f"{run_config.vision_chunk} slice{'s' * (run_config.vision_chunk != 1)}"
    told = f"{slices} and {run_config.prefill_chunk} tokens at a time"
    if config.step_seconds is None or not _as_quick_as_asked(task, run_config, config.step_seconds):
        yield f"{told}, to save memory"
        return
    longest = max(look_seconds(task.spec, run_config, task.device))
    if longest <= config.step_seconds:
        yield f"{told}, so that a stop takes no longer than {config.step_seconds:g} s"
    else:
        yield f"{told}, the fewest there are: a stop may still take {longest:.1f} s on {task.device.name}"


def _as_quick_as_asked(task: "PlanningProblem", run_config: RunConfig, seconds: float) -> bool:
    """Whether twice a chunk would take too long: the step is what made it small."""
    slices, tokens = most_at_once(task.spec, run_config, task.device, seconds)
    vision, prefill = task.chunks[0]
    return 2 * run_config.vision_chunk > min(slices, vision) and 2 * run_config.prefill_chunk > min(tokens, prefill)


def _asked_frames(task: "PlanningProblem", run_config: RunConfig) -> Iterator[str]:
    asked = task.request.frames
    if asked is not None and asked > 1 and asked != run_config.frames:
        yield f"{run_config.frames} frames instead of {asked}: an even number, and no more than there are"


def _beyond_training(task: "PlanningProblem", run_config: RunConfig) -> Iterator[str]:
    tokens = task.spec.visual_tokens(run_config.frames, run_config.height, run_config.width)
    if tokens > quality.MOST_TRAINED_TOKENS:
        yield f"{tokens:,} visual tokens: past {quality.MOST_TRAINED_TOKENS:,} scores fall; no model was trained there"


def _of_budget(needed: int, task: "PlanningProblem") -> str:
    return f"{format_bytes(needed)} of {format_bytes(task.budget_bytes)}"
