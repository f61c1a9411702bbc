"""The candidates of a plan and the one that scores best: a search over setups, frames and sizes.

Every candidate set is independent of the budget, so more memory never scores less. Arithmetic
only: the same numbers give the same draft on every machine.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vidqa.config import EngineConfig
from vidqa.models.spec import ModelSpec
from vidqa.planner import quality
from vidqa.planner.latency import estimate_seconds, most_at_once
from vidqa.planner.memory_model import RuntimeOverhead, required_bytes
from vidqa.planner.placement import setups
from vidqa.types import Device, PixelBounds, Placement, Request, RunConfig, VideoInfo
from vidqa.video.frame_sampling import check_counts, choose_indices, fitting_sizes, frames_at_rate

# Vision group (temporal slices) and prefill chunk (tokens), from the fastest to the smallest.
CHUNKS = ((8, 1024), (4, 1024), (2, 512), (1, 512), (1, 256), (1, 128))
# On a large GPU a chunk of 1,024 tokens is over before its kernels are launched.
LARGE_CHUNKS = ((16, 4096), (16, 2048))
_LARGE_BYTES = 20 * 2**30
# Where a chunk must not take long (`step_seconds`) prefill chunks may be smaller still: below these a chunk's
# time is that of reading the weights.
QUICK_CHUNKS = ((1, 64), (1, 32), (1, 16))
_COUNTS = (2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)


@dataclass(frozen=True, slots=True)
class PlanningProblem:
    """All that a plan is made from. `budget_bytes` is the memory, `config` holds what the user set.

    The rest narrows the search: to what a smaller plan may have after memory ran out, and to how
    the model is already loaded (`pinned_weights`, and the lasting parts of `pinned_placement`).
    """

    model: str
    spec: ModelSpec
    bounds: PixelBounds
    video: VideoInfo
    request: Request
    config: EngineConfig
    device: Device
    around: RuntimeOverhead
    budget_bytes: int
    text_tokens: int
    chunks: tuple[tuple[int, int], ...] = CHUNKS
    most_visual_tokens: int | None = None
    most_slice_tokens: int | None = None
    pinned_weights: str | None = None
    pinned_placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """What may be chosen for one task: frame counts and sizes, ascending, and the caps on them."""

    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    wanted_frames: int
    most_tokens: int
    most_slice_tokens: int


def chunks_for(device: Device) -> tuple[tuple[int, int], ...]:
    """The chunks that are tried on a device, from the fastest to the smallest."""
    large = device.kind == "cuda" and device.total_bytes >= _LARGE_BYTES
    return (*LARGE_CHUNKS, *CHUNKS) if large else CHUNKS


def search_space(task: PlanningProblem) -> SearchSpace:
    """Counts and sizes that the request and the quality allow, before memory and time are asked."""
    request, spec = task.request, task.spec
    check_counts(request.frames, request.fps)
    caps = quality.CAPS[task.config.quality]
    wanted = frames_at_rate(task.video, request.start_seconds, request.end_seconds, quality.FRAMES_PER_SECOND)
    fixed_count = request.frames is not None or request.fps is not None
    if fixed_count:
        counts: tuple[int, ...] = (_frames(task, request.frames),)
    else:
        most = max(min(wanted, caps.frames, task.bounds.max_frames), 2)
        least = min(max(task.bounds.min_frames, 2), most)
        counts = tuple(sorted({count for count in _COUNTS if least <= count < most} | {_frames(task, most)}))
    token = spec.pixel_factor**2
    floor = quality.slice_floor(task.bounds, token, reading=quality.asks_to_read(request.question))
    sizes = fitting_sizes(task.video, request.size, task.bounds, floor * token, factor=spec.pixel_factor)
    if task.most_slice_tokens is not None:
        sizes = tuple(size for size in sizes if spec.slice_tokens(*size) <= task.most_slice_tokens) or sizes[:1]
    context = spec.context_tokens - task.text_tokens - request.max_tokens - task.config.conversation_tokens
    least = spec.visual_tokens(counts[0], *sizes[0])  # what the user asked for may pass the quality's cap
    allowed = context if fixed_count else min(context, max(caps.visual_tokens, least))
    most_tokens = allowed if task.most_visual_tokens is None else min(allowed, task.most_visual_tokens)
    return SearchSpace(counts, sizes, wanted, most_tokens, spec.slice_tokens(*sizes[-1]))


def _frames(task: PlanningProblem, frames: int | None) -> int:
    request = task.request
    return len(
        choose_indices(
            task.video,
            frames=frames,
            fps=request.fps if frames is None else None,
            start_seconds=request.start_seconds,
            end_seconds=request.end_seconds,
            bounds=task.bounds,
        )
    )


def best_draft(task: PlanningProblem, space: SearchSpace) -> RunConfig | None:
    """The draft with the highest score that fits; None where none does."""
    best, best_score, settled = None, float("-inf"), set[str]()
    for narrowed, setup in _families(task):
        if setup.weights in settled:
            continue
        run_config = _best_of_setup(narrowed, space, setup, best_score)
        if run_config is not None:
            best, best_score = run_config, quality.score(task.spec, run_config, space.most_slice_tokens)
            if _has_room(narrowed, space, run_config):  # memory is no limit: the levers that save it can only cost
                settled.add(setup.weights)
    return best


def _best_of_setup(task: PlanningProblem, space: SearchSpace, setup: RunConfig, to_beat: float) -> RunConfig | None:
    """The best draft of one setup that scores more than `to_beat`."""
    best, points = None, quality.setup_points(task.spec, setup)
    if points + quality.frames_points(space.counts[-1]) <= to_beat:
        return None
    for count in reversed(_fitting_counts(task, space, setup)):
        if points + quality.frames_points(count) + _most_slice_points(task, space, count) <= to_beat:
            continue
        run_config = largest_fitting(task, space, replace(setup, frames=count))
        if run_config and (reached := quality.score(task.spec, run_config, space.most_slice_tokens)) > to_beat:
            best, to_beat = run_config, reached
    return best


def _has_room(task: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> bool:
    """Whether all frames, or the largest, would still fit the memory."""
    most = _sized(replace(run_config, frames=space.counts[-1]), (run_config.height, run_config.width))
    return fits_memory(task, most) and fits_memory(task, _sized(run_config, space.sizes[-1]))


def _families(task: PlanningProblem) -> Iterator[tuple[PlanningProblem, RunConfig]]:
    """Every setup with prefill chunks of a good size, and again with small ones, which score a little less."""
    good = tuple(chunk for chunk in task.chunks if chunk[1] >= quality.SMALL_CHUNK_TOKENS)
    small = tuple(chunk for chunk in task.chunks if chunk not in good)
    for chunks in filter(None, (good, small)):
        narrowed = replace(task, chunks=chunks)
        # What costs least first: once one leaves room, those after it can only score less.
        for setup in sorted(setups(task), key=lambda setup: -quality.setup_points(task.spec, setup)):
            yield narrowed, chunked(task, setup, *chunks[0])


def _fitting_counts(task: PlanningProblem, space: SearchSpace, setup: RunConfig) -> tuple[int, ...]:
    """The frame counts that fit at the smallest size: whatever is asked of a plan grows with its frames."""
    smallest = _sized(setup, space.sizes[0])
    many = bisect_left(space.counts, True, key=lambda count: fit(task, space, replace(smallest, frames=count)) is None)
    return space.counts[:many]


def _most_slice_points(task: PlanningProblem, space: SearchSpace, frames: int) -> float:
    """Points of the largest slices that this many frames leave room for."""
    slices = task.spec.slices(frames)
    return quality.slice_points(max(space.most_tokens // slices, 1), space.most_slice_tokens)


def largest_fitting(task: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> RunConfig | None:
    """The draft at the largest size that fits, with its chunks; None if none does."""
    many = bisect_left(space.sizes, True, key=lambda size: fit(task, space, _sized(run_config, size)) is None)
    return fit(task, space, _sized(run_config, space.sizes[many - 1])) if many else None


def smallest_of_setup(space: SearchSpace, setup: RunConfig) -> RunConfig:
    """A setup with the fewest and the smallest frames."""
    return replace(_sized(setup, space.sizes[0]), frames=space.counts[0])


def _sized(run_config: RunConfig, size: tuple[int, int]) -> RunConfig:
    return replace(run_config, height=size[0], width=size[1])


def fit(task: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> RunConfig | None:
    """The draft with the fastest chunks that fit; None where it does not fit at all."""
    if task.spec.visual_tokens(run_config.frames, run_config.height, run_config.width) > space.most_tokens:
        return None
    if not fits_wait(
        task, chunked(task, run_config, *task.chunks[0])
    ):  # the fastest chunks: the cheaper question first
        return None
    fitting = next((chunked for chunked in chunkings(task, run_config) if fits_memory(task, chunked)), None)
    return fitting if fitting and fits_wait(task, fitting) else None


def chunkings(task: PlanningProblem, run_config: RunConfig) -> Iterator[RunConfig]:
    """The draft in all allowed chunks, from the fastest to the smallest; nothing where the smallest is too large."""
    chunks = allowed_chunks(task)
    if fits_memory(task, chunked(task, run_config, *chunks[-1])):
        for vision, prefill in chunks:
            yield chunked(task, run_config, vision, prefill)


def allowed_chunks(task: PlanningProblem) -> tuple[tuple[int, int], ...]:
    """The task's chunks, and still smaller ones where a step must not take long."""
    return task.chunks if task.config.step_seconds is None else (*task.chunks, *QUICK_CHUNKS)


def chunked(task: PlanningProblem, run_config: RunConfig, vision: int, prefill: int) -> RunConfig:
    """The draft in these chunks, or in smaller ones that keep `step_seconds`; but for what the user set."""
    config = task.config
    if config.step_seconds is not None:
        slices, tokens = most_at_once(task.spec, run_config, task.device, config.step_seconds)
        vision = _halved(vision, slices, 1)
        prefill = _halved(prefill, tokens, QUICK_CHUNKS[-1][1])
    return replace(
        run_config, vision_chunk=config.vision_chunk or vision, prefill_chunk=config.prefill_chunk or prefill
    )


def _halved(chunk: int, most: float, least: int) -> int:
    """A power of two that is at most `chunk` and `most`, but no smaller than `least`."""
    while chunk > max(most, least):
        chunk //= 2
    return chunk


def fits_memory(task: PlanningProblem, run_config: RunConfig) -> bool:
    """Whether the budget holds the draft."""
    return required_bytes(task.spec, run_config, task.around) <= task.budget_bytes


def fits_wait(task: PlanningProblem, run_config: RunConfig) -> bool:
    """Whether the draft keeps `--max-wait`."""
    wait = task.config.max_wait_seconds
    return wait is None or estimate_seconds(task.spec, run_config, task.device, task.video).total_seconds <= wait
