"""Why a plan is not larger: for every choice that lowered something, the limit that forced it.

Asks the estimate what the next step up would need. Knows sentences; searches nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from vidqa.memory import quality
from vidqa.memory.estimate import required_bytes
from vidqa.memory.seconds import estimate_seconds, look_seconds, most_at_once
from vidqa.memory.setups import compute_dtype, weight_choices
from vidqa.types import Draft, Placement
from vidqa.units import format_bytes

if TYPE_CHECKING:
    from vidqa.memory.search import Space, Task

_LEVERS = {
    "embedding_on_host": "the embedding table stays in host memory",
    "vision_offloaded": "the vision tower leaves the device before the prefill",
    "vision_quantized": "the vision tower is quantized too",
    "lm_head_quantized": "lm_head is quantized too",
    "kv_on_host": "the KV cache stays in host memory: slow",
}
_QUANTIZED_LEVERS = ("vision_quantized", "lm_head_quantized")  # no choice where a checkpoint is stored so


def told_limits(task: "Task", space: "Space", draft: Draft) -> tuple[str, ...]:
    """One sentence per lowered choice."""
    return (
        *_asked_frames(task, draft),
        *_frames_limit(task, space, draft),
        *_size_limit(task, space, draft),
        *_weights_limit(task, draft),
        *_kv_limit(task, draft),
        *_placement_limits(task, draft),
        *_chunk_limit(task, draft),
        *_beyond_training(task, draft),
    )


def reason(task: "Task", space: "Space", draft: Draft, otherwise: str = "frames go before pixels") -> str:
    """What forbids a draft: memory, time, the context or the cap of the quality; `otherwise` where nothing does."""
    tokens = task.spec.visual_tokens(draft.frames, draft.height, draft.width)
    if tokens > space.most_tokens:
        context = (
            task.spec.context_tokens - task.text_tokens - task.request.max_tokens - task.config.conversation_tokens
        )
        if tokens > context:
            return f"the model's context of {task.spec.context_tokens:,} tokens"
        if task.most_visual_tokens is not None:
            return "a larger plan ran out of memory"
        return f"{space.most_tokens:,} visual tokens, past which little is gained (--quality {task.config.quality})"
    needed = required_bytes(task.spec, draft, task.around)
    if needed > task.budget_bytes:
        over = format_bytes(needed - task.budget_bytes)
        return f"memory: more would need {over} beyond {format_bytes(task.budget_bytes)}"
    seconds = estimate_seconds(task.spec, draft, task.device, task.video).total_seconds
    if task.config.max_wait_seconds is not None and seconds > task.config.max_wait_seconds:
        return f"time: more would take about {seconds:.0f} s (--max-wait {task.config.max_wait_seconds:g})"
    return otherwise


def _frames_limit(task: "Task", space: "Space", draft: Draft) -> Iterator[str]:
    if draft.frames >= space.wanted_frames:
        return
    told = f"{draft.frames} of {space.wanted_frames:,} frames (2 per second)"
    more = [count for count in space.counts if count > draft.frames]
    if more:
        height, width = space.sizes[0]
        larger = replace(draft, frames=more[0], height=height, width=width)
        yield f"{told}: {reason(task, space, larger, 'more would have to be smaller than is worth it')}"
    elif task.request.frames is None and task.request.fps is None:
        own = draft.frames >= task.bounds.max_frames // 2 * 2
        why = "the checkpoint's own limit" if own else f"more add little (--quality {task.config.quality})"
        yield f"{told}: {why}"


def _size_limit(task: "Task", space: "Space", draft: Draft) -> Iterator[str]:
    place = space.sizes.index((draft.height, draft.width))
    if place == len(space.sizes) - 1:
        return
    height, width = space.sizes[place + 1]
    most_height, most_width = space.sizes[-1]
    why = reason(task, space, replace(draft, height=height, width=width))
    yield f"{draft.width}x{draft.height} instead of {most_width}x{most_height}: {why}"


def _weights_limit(task: "Task", draft: Draft) -> Iterator[str]:
    best = weight_choices(task.device)[0]
    if task.config.weights or task.spec.stored or draft.weights == best:
        return
    dtype = compute_dtype(task.device)
    native = replace(draft, weights=best, dtype=dtype, kv=dtype, placement=Placement())
    needed = required_bytes(task.spec, native, task.around)
    if needed > task.budget_bytes:
        yield f"{draft.weights} weights: {best} would need {format_bytes(needed)} of {format_bytes(task.budget_bytes)}"
    elif task.config.max_wait_seconds is not None:
        seconds = estimate_seconds(task.spec, native, task.device, task.video).total_seconds
        yield f"{draft.weights} weights: {best} would take about {seconds:.0f} s"


def _kv_limit(task: "Task", draft: Draft) -> Iterator[str]:
    if draft.kv == "int8" and not task.config.kv:
        native = replace(draft, kv=draft.dtype)
        needed = required_bytes(task.spec, native, task.around)
        yield f"int8 KV cache: {draft.dtype} would need {format_bytes(needed)} of {format_bytes(task.budget_bytes)}"


def _placement_limits(task: "Task", draft: Draft) -> Iterator[str]:
    if task.config.placement is None:
        as_stored = _QUANTIZED_LEVERS if task.spec.stored else ()
        for name, told in _LEVERS.items():
            if getattr(draft.placement, name) and name not in as_stored:
                yield f"{told}, to save memory"


def _chunk_limit(task: "Task", draft: Draft) -> Iterator[str]:
    config, (vision, prefill) = task.config, task.chunks[0]
    smaller = draft.vision_chunk < vision or draft.prefill_chunk < prefill
    if not smaller or config.vision_chunk is not None or config.prefill_chunk is not None:
        return
    slices = f"{draft.vision_chunk} slice{'s' * (draft.vision_chunk != 1)}"
    told = f"{slices} and {draft.prefill_chunk} tokens at a time"
    if config.step_seconds is None or not _as_quick_as_asked(task, draft, config.step_seconds):
        yield f"{told}, to save memory"
        return
    longest = max(look_seconds(task.spec, draft, task.device))
    if longest <= config.step_seconds:
        yield f"{told}, so that a stop takes no longer than {config.step_seconds:g} s"
    else:
        yield f"{told}, the fewest there are: a stop may still take {longest:.1f} s on {task.device.name}"


def _as_quick_as_asked(task: "Task", draft: Draft, seconds: float) -> bool:
    """Whether twice a chunk would take too long: the step is what made it small."""
    slices, tokens = most_at_once(task.spec, draft, task.device, seconds)
    vision, prefill = task.chunks[0]
    return 2 * draft.vision_chunk > min(slices, vision) and 2 * draft.prefill_chunk > min(tokens, prefill)


def _asked_frames(task: "Task", draft: Draft) -> Iterator[str]:
    asked = task.request.frames
    if asked is not None and asked > 1 and asked != draft.frames:
        yield f"{draft.frames} frames instead of {asked}: an even number, and no more than there are"


def _beyond_training(task: "Task", draft: Draft) -> Iterator[str]:
    tokens = task.spec.visual_tokens(draft.frames, draft.height, draft.width)
    if tokens > quality.MOST_TRAINED_TOKENS:
        yield f"{tokens:,} visual tokens: past {quality.MOST_TRAINED_TOKENS:,} scores fall; no model was trained there"
