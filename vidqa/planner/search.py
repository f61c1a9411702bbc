"""Search for the run configuration with the highest score: precision and placement, frames, size and chunks.

The candidates do not depend on the budget, so more memory never scores less. Arithmetic only: the same numbers give
the same result on every machine.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from vidqa.planner import quality
from vidqa.planner.activation_memory import kept_tokens, kept_video_tokens, kept_visual_tokens
from vidqa.planner.latency import estimate_seconds, most_at_once
from vidqa.planner.memory_model import required_bytes
from vidqa.planner.placement import candidates
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.repeat_forecast import shares_of_counts
from vidqa.types import Plan, RunConfig
from vidqa.utils.frame_choice import Sampling
from vidqa.video.change_sampling import sample_by_change
from vidqa.video.frame_sampling import (
    CLOSE_SECONDS,
    check_counts,
    choose_indices,
    fitting_sizes,
    frames_at_rate,
    kept_before_scan,
)

# Smaller prefill chunks for a limit on the time of a step (`step_seconds`): below these a chunk's time is that of
# reading the weights.
QUICK_CHUNKS = ((1, 64), (1, 32), (1, 16))
_COUNTS = (
    2, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512,
    640, 768, 896,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Frame counts and sizes to choose from, both ascending, and the caps on tokens.

    `shares` are the planned shares of the visual tokens that are kept, for each frame count.
    """

    counts: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    wanted_frames: int
    most_tokens: int
    most_slice_tokens: int
    shares: tuple[float, ...]

    def with_frames(self, run_config: RunConfig, count: int) -> RunConfig:
        """Return a run configuration with so many frames, and their planned share."""
        return replace(run_config, frames=count, visual_share=self.shares[self.counts.index(count)])


def search_space(problem: PlanningProblem, *, forecast: bool = True) -> SearchSpace:
    """Return the counts and sizes that request, checkpoint and quality allow, whatever memory and time allow.

    Without `forecast` all tokens are kept: where frames lie by the video's change, a forecast of each count takes time.
    """
    request, spec = problem.request, problem.spec
    check_counts(request.frames, request.fps)
    caps = quality.CAPS[problem.config.quality]
    wanted = _wanted_frames(problem)
    fixed_count = request.frames is not None or request.fps is not None
    if fixed_count:
        counts: tuple[int, ...] = (len(frame_indices(problem, request.frames)),)
    else:
        repeats = problem.config.prune == "auto" and problem.signal is not None
        capped = caps.frames * (quality.REPEATED_FRAMES if repeats else 1)
        most = max(min(wanted, capped, problem.bounds.max_frames), 2)
        least = min(max(problem.bounds.min_frames, 2), most)
        largest = len(frame_indices(problem, most))
        counts = tuple(sorted({count for count in _COUNTS if least <= count < most} | {largest}))
    token = spec.pixel_factor**2
    floor = quality.slice_floor(problem.bounds, token, reading=quality.asks_to_read(request.question))
    sizes = fitting_sizes(problem.video, request.size, problem.bounds, floor * token, factor=spec.pixel_factor)
    if (most_slice := problem.most_slice_tokens) is not None:
        sizes = tuple(size for size in sizes if spec.slice_tokens(*size) <= most_slice) or sizes[:1]
    whole = problem.config.prune == "off" or not forecast
    shares = (1.0,) * len(counts) if whole else shares_of_counts(problem, counts, partial(_placed_indices, problem))
    least = kept_tokens(spec, counts[0], *sizes[0], shares[0])  # what the user set may exceed the quality's cap
    allowed = problem.context_left
    if not fixed_count:
        allowed = min(allowed, max(min(caps.visual_tokens, problem.bounds.total_pixels // token), least))
    if problem.most_visual_tokens is not None:
        allowed = min(allowed, problem.most_visual_tokens)
    return SearchSpace(counts, sizes, wanted, allowed, spec.slice_tokens(*sizes[-1]), shares)


def _wanted_frames(problem: PlanningProblem) -> int:
    """Return the frames at the families' rate; a short range gets more, and no video fewer than the checkpoint says."""
    request, least = problem.request, problem.bounds.min_frames
    if not request.segment and (request.start_seconds, request.end_seconds) != (None, None):
        least = max(least, quality.LEAST_RANGE_FRAMES)
    rate = quality.FRAMES_PER_SECOND
    return frames_at_rate(problem.video, request.start_seconds, request.end_seconds, rate, least)


def frame_indices(problem: PlanningProblem, frames: int | None) -> tuple[int, ...]:
    """Return the indices of so many frames of the requested part of the video; None is the request's fps."""
    request = problem.request
    return choose_indices(
        problem.video,
        frames=frames,
        fps=request.fps if frames is None else None,
        start_seconds=request.start_seconds,
        end_seconds=request.end_seconds,
        bounds=problem.bounds,
    )


def placed_frames(problem: PlanningProblem, count: int) -> tuple[tuple[int, ...], Sampling | None]:
    """Return the indices of a plan's frames, of which there are so many, and why they lie there after a scan."""
    request = problem.request
    return by_change(problem, frame_indices(problem, request.frames or (count if request.fps is None else None)))


def by_change(
    problem: PlanningProblem, even: tuple[int, ...], close: float = CLOSE_SECONDS
) -> tuple[tuple[int, ...], Sampling | None]:
    """Return as many indices as the `even` ones, by the video's change where the request says so, and why.

    Even ones that are at most `close` seconds apart stay unless the request is for change: that is known before a scan.
    """
    sample, signal = problem.request.sample, problem.signal
    if sample == "uniform":
        return even, None
    always = sample == "change"
    if signal is None:
        return even, kept_before_scan(problem.video, even, None if always else close)
    return sample_by_change(problem.video, even, signal, always=always, close=close)


def needs_scan(problem: PlanningProblem, plan: Plan) -> bool:
    """Return whether a scan of the video may change a plan: where frames lie, or how many its repeats make room for."""
    if problem.signal is not None or problem.request.sample == "uniform":
        return False
    return plan.sampling is None or plan.run_config.drop_repeats


def _placed_indices(problem: PlanningProblem, count: int) -> tuple[int, ...]:
    return placed_frames(problem, count)[0]


def best_run_config(problem: PlanningProblem, space: SearchSpace) -> RunConfig | None:
    """Return the run configuration with the highest score that fits; None if none does."""
    best, best_score, settled = None, float("-inf"), set[str]()
    for narrowed, candidate in _candidates_by_chunk(problem):
        if candidate.weights in settled:
            continue
        found = _best_of_candidate(narrowed, space, candidate, best_score)
        if found is not None:
            best, best_score = found, quality.score(problem.spec, found, space.most_slice_tokens)
            if _has_room(narrowed, space, found):  # memory limits nothing: candidates that save it only score less
                settled.add(candidate.weights)
    return best


def _best_of_candidate(
    problem: PlanningProblem, space: SearchSpace, candidate: RunConfig, to_beat: float
) -> RunConfig | None:
    """Return a candidate with the frames, size and chunks that score most; None if that is not above `to_beat`."""
    best, points = None, quality.placement_points(problem.spec, candidate)
    of_frames = partial(quality.frames_points, drop_repeats=candidate.drop_repeats)
    if points + of_frames(space.counts[-1]) <= to_beat:
        return None
    for count in reversed(_fitting_counts(problem, space, candidate)):
        if points + of_frames(count) + _most_slice_points(problem, space, count) <= to_beat:
            continue
        found = _largest_fitting(problem, space, space.with_frames(candidate, count))
        if found and (reached := quality.score(problem.spec, found, space.most_slice_tokens)) > to_beat:
            best, to_beat = found, reached
    return best


def _has_room(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> bool:
    """Return whether all frames, or the largest size, would still fit the memory."""
    most = space.with_frames(run_config, space.counts[-1])
    return fits_memory(problem, most) and fits_memory(problem, _sized(run_config, space.sizes[-1]))


def _candidates_by_chunk(problem: PlanningProblem) -> Iterator[tuple[PlanningProblem, RunConfig]]:
    """Yield every candidate with prefill chunks of a good size, and again with small ones, which score a little less.

    Candidates with the highest points come first: once one leaves room, those after it can only score less.
    """
    good = tuple(chunk for chunk in problem.chunks if chunk[1] >= quality.SMALL_CHUNK_TOKENS)
    small = tuple(chunk for chunk in problem.chunks if chunk not in good)
    for chunks in filter(None, (good, small)):
        narrowed = replace(problem, chunks=chunks)
        for candidate in sorted(candidates(problem), key=lambda one: -quality.placement_points(problem.spec, one)):
            yield narrowed, chunked(problem, candidate, *chunks[0])


def _fitting_counts(problem: PlanningProblem, space: SearchSpace, candidate: RunConfig) -> tuple[int, ...]:
    """Return the frame counts that fit at the smallest size: memory, time and tokens grow with the frames.

    But for the time of a scan, which is none where frames lie closely: counts above such a step are not tried.
    """
    least = _sized(candidate, space.sizes[0])
    many = bisect_left(
        space.counts, True, key=lambda count: fit(problem, space, space.with_frames(least, count)) is None
    )
    return space.counts[:many]


def _most_slice_points(problem: PlanningProblem, space: SearchSpace, frames: int) -> float:
    """Return the points of the largest slices that so many frames leave tokens for."""
    share = space.shares[space.counts.index(frames)]
    most = space.most_tokens if share >= 1 else int((space.most_tokens + 1) / share)
    tokens = max(most // problem.spec.slices(frames), 1)
    return quality.slice_points(tokens, space.most_slice_tokens)


def _largest_fitting(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> RunConfig | None:
    """Return the run configuration at the largest size that fits, with its chunks; None if no size fits."""
    many = bisect_left(space.sizes, True, key=lambda size: fit(problem, space, _sized(run_config, size)) is None)
    return fit(problem, space, _sized(run_config, space.sizes[many - 1])) if many else None


def smallest(space: SearchSpace, candidate: RunConfig) -> RunConfig:
    """Return a candidate with the fewest and smallest frames."""
    return space.with_frames(_sized(candidate, space.sizes[0]), space.counts[0])


def _sized(run_config: RunConfig, size: tuple[int, int]) -> RunConfig:
    return replace(run_config, height=size[0], width=size[1])


def has_too_many_tokens(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> bool:
    """Return whether a video exceeds the visual tokens that may be chosen, or the model's context with its text."""
    spec = problem.spec
    in_prompt = kept_video_tokens(spec, run_config)
    return kept_visual_tokens(spec, run_config) > space.most_tokens or in_prompt > problem.context_left


def fit(problem: PlanningProblem, space: SearchSpace, run_config: RunConfig) -> RunConfig | None:
    """Return the run configuration with the fastest chunks that fit; None if none do."""
    if has_too_many_tokens(problem, space, run_config):
        return None
    if not fits_wait(problem, chunked(problem, run_config, *problem.chunks[0])):  # cheaper to compute than memory
        return None
    chunks = allowed_chunks(problem)
    if not fits_memory(problem, chunked(problem, run_config, *chunks[-1])):
        return None
    fitting = next(one for chunk in chunks if fits_memory(problem, one := chunked(problem, run_config, *chunk)))
    return fitting if fits_wait(problem, fitting) else None


def allowed_chunks(problem: PlanningProblem) -> tuple[tuple[int, int], ...]:
    """Return the problem's chunks, and smaller ones if the time of a step is limited."""
    return problem.chunks if problem.config.step_seconds is None else (*problem.chunks, *QUICK_CHUNKS)


def chunked(problem: PlanningProblem, run_config: RunConfig, vision: int, prefill: int) -> RunConfig:
    """Return the run configuration in the user's chunks, else in these, or in smaller ones that keep `step_seconds`."""
    config = problem.config
    if config.step_seconds is not None:
        slices, tokens = most_at_once(problem, run_config, config.step_seconds)
        vision = _halved(vision, slices, 1)
        prefill = _halved(prefill, tokens, QUICK_CHUNKS[-1][1])
    return replace(
        run_config, vision_chunk=config.vision_chunk or vision, prefill_chunk=config.prefill_chunk or prefill
    )


def _halved(chunk: int, most: float, least: int) -> int:
    """Return `chunk` halved until it is at most `most`, or no more than `least`."""
    while chunk > max(most, least):
        chunk //= 2
    return chunk


def fits_memory(problem: PlanningProblem, run_config: RunConfig) -> bool:
    """Return whether the budget holds the run configuration."""
    return required_bytes(problem.spec, run_config, problem.overhead) <= problem.budget_bytes


def fits_wait(problem: PlanningProblem, run_config: RunConfig) -> bool:
    """Return whether the run configuration keeps `--max-wait`."""
    wait = problem.max_wait_seconds
    return wait is None or estimate_seconds(problem, run_config).first_token_seconds <= wait
