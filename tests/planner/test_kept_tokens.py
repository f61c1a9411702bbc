"""Plans that drop visual tokens: their numbers, the forecast of repeats, and their memory as it is replayed."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.planner.plan_builders import SPEC_2B, SPEC_7B, made_problem, made_run_config
from tests.planner.test_replay import SHALLOW, check_plans
from vidqa.engine import token_pruning
from vidqa.models.registry import released
from vidqa.planner import quality
from vidqa.planner.activation_memory import kept_tokens, kept_visual_tokens
from vidqa.planner.memory_model import kv_capacity, required_bytes
from vidqa.planner.planner import plan_video, try_plan
from vidqa.planner.repeat_forecast import changes_of_slices, kept_share, shares_of_counts
from vidqa.planner.search import placed_frames, search_space
from vidqa.types import Placement, RunConfig
from vidqa.video.change_signal import ChangeSignal


def signal(seconds: int, change: float, *, per_second: int = 25, complete: bool = True) -> ChangeSignal:
    """A signal whose every second changes so much of the picture, spread evenly."""
    times = tuple(number / per_second for number in range(seconds * per_second))
    return ChangeSignal(times, (0.0, *[change / per_second] * (len(times) - 1)), complete=complete)


def test_a_share_is_of_all_tokens_and_every_slice_keeps_a_16th() -> None:
    # 360 tokens in each of 16 slices
    assert kept_tokens(SPEC_2B, 32, 280, 1008, 0.25) == 1440
    assert kept_tokens(SPEC_2B, 32, 280, 1008, 0.01) == 360 + 15 * 23
    assert kept_tokens(SPEC_2B, 32, 280, 1008, 1.0) == 5760
    assert kept_tokens(SPEC_2B, 2, 280, 1008, 0.1) == 360  # the first slice is whole


@given(st.integers(1, 400), st.floats(0.001, 1), st.floats(0.001, 1))
def test_more_frames_or_a_larger_share_never_keep_fewer(frames: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    kept = kept_tokens(SPEC_2B, frames, 112, 140, low)
    assert kept <= kept_tokens(SPEC_2B, frames, 112, 140, high) <= SPEC_2B.visual_tokens(frames, 112, 140)
    assert kept <= kept_tokens(SPEC_2B, frames + 2, 112, 140, low)


def test_share_one_plans_what_off_plans() -> None:
    assert plan_video(made_problem(8, prune=1.0)) == plan_video(made_problem(8))


@pytest.mark.parametrize("gib", [5, 8, 24])
def test_a_share_buys_frames_or_pixels(gib: float) -> None:
    plain, pruned = (plan_video(made_problem(gib, 600, SPEC_2B, prune=prune)) for prune in ("off", 0.25))
    assert pruned.video_tokens > 3.5 * plain.visual_tokens  # both have as many tokens as the quality allows
    assert pruned.visual_tokens == kept_visual_tokens(SPEC_2B, pruned.run_config)
    assert pruned.prompt_tokens - pruned.run_config.text_tokens == pruned.visual_tokens
    assert pruned.kv_capacity_tokens == kv_capacity(SPEC_2B, pruned.run_config)
    assert pruned.required_bytes <= pruned.budget_bytes


def test_auto_without_a_scan_plans_the_worst_case() -> None:
    problem = made_problem(8, 600)
    off, auto = plan_video(problem), plan_video(replace(problem, config=replace(problem.config, prune="auto")))
    assert (auto.indices, auto.visual_tokens, auto.score) == (off.indices, off.visual_tokens, off.score)
    assert auto.run_config == replace(off.run_config, drop_repeats=True)


def test_what_was_not_scanned_may_all_change() -> None:
    keyframes = ChangeSignal((0.0, 1.0, 4.0, 5.0), (0.0, 0.0, 0.1, 0.0), complete=False)
    assert changes_of_slices(keyframes, [0, 1, 2, 3, 4, 5], 1) == pytest.approx([0.0, 1.0, 1.0, 0.1, 0.0])
    ended = signal(10, 0.0, complete=False)
    off, auto = plan_video(made_problem(8, 600)), plan_video(made_problem(8, 600, prune="auto", signal=ended))
    assert auto.visual_tokens > 0.9 * auto.video_tokens and auto.run_config.frames == off.run_config.frames
    seen = plan_video(made_problem(8, 600, prune="auto", signal=signal(600, 0.001, complete=False)))
    assert seen.visual_tokens < 0.3 * seen.video_tokens


def test_repeats_alone_buy_frames_beyond_those_that_more_score_less() -> None:
    problem = made_problem(24, 600, SPEC_2B, prune="auto", signal=signal(600, 0.0))
    auto, off = plan_video(problem), plan_video(made_problem(24, 600, SPEC_2B))
    assert off.run_config.frames <= 256 < auto.run_config.frames <= 1024
    points = [quality.frames_points(frames, drop_repeats=True) for frames in (128, 256, 512, 1024)]
    assert points == sorted(points) and quality.frames_points(512) < quality.frames_points(256)
    fast = plan_video(replace(problem, config=replace(problem.config, quality="fast")))
    assert fast.run_config.frames <= 256


@pytest.mark.parametrize("spec", [SPEC_2B, SPEC_7B])
def test_a_static_screen_gets_at_least_four_times_the_frames(spec: Any) -> None:
    """The same size and memory, where memory is what limits the frames."""
    gib = 5.5 if spec is SPEC_2B else 17.0
    fields: dict[str, Any] = {"size": (1008, 560), "weights": "bf16"}
    still = made_problem(gib, 600, spec, prune="auto", signal=signal(600, 0.0), **fields)
    off, auto = plan_video(made_problem(gib, 600, spec, **fields)), plan_video(still)
    assert auto.run_config.frames >= 4 * off.run_config.frames
    assert auto.required_bytes <= auto.budget_bytes
    moving = plan_video(replace(still, signal=signal(600, 0.9)))
    assert moving.run_config.frames <= off.run_config.frames


def test_the_forecast_of_a_share() -> None:
    assert kept_share([0.0] * 15) == pytest.approx((1 + 15 / 16) / 16)
    assert kept_share([1.0] * 15) == 1.0
    assert kept_share([]) == 1.0
    assert kept_share([0.1, 0.9]) == pytest.approx((1 + 1 / 16 + 0.3 + 1) / 3)


def test_changes_are_summed_from_a_slice_to_the_next() -> None:
    scan = ChangeSignal((0.0, 1.0, 2.0, 3.0, 4.0), (0.0, 0.1, 0.2, 0.4, 0.8))
    assert changes_of_slices(scan, [0, 1, 2, 3], 2) == pytest.approx([0.7])
    assert changes_of_slices(scan, [0, 1, 2, 3, 4], 2) == pytest.approx([0.7, 1.0])  # 0.2 + 0.4 + 0.8, an odd frame
    assert changes_of_slices(scan, [0.5, 1.5, 3.5], 1) == pytest.approx([0.1, 0.6])
    assert changes_of_slices(scan, [0.0], 2) == []


@given(st.lists(st.floats(0, 1), min_size=2, max_size=60))
def test_planned_slices_never_fall_with_the_frames(changes: list[float]) -> None:
    scan = ChangeSignal(tuple(map(float, range(len(changes)))), tuple(changes))
    problem = made_problem(8, float(len(changes)), prune="auto", signal=scan)
    counts = (2, 4, 8, 16, 24)

    def indices(count: int) -> Sequence[int]:
        return placed_frames(problem, count)[0]

    shares = shares_of_counts(problem, counts, indices)
    kept = [share * count for share, count in zip(shares, counts, strict=True)]
    assert all(after >= before - 1e-9 for before, after in pairwise(kept))
    assert 0 < min(shares) <= max(shares) <= 1


def test_counts_and_sizes_are_found_without_a_forecast_of_what_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session's panel needs no more of them, at every key."""
    problem = made_problem(8, 600, prune="auto", sample="auto", signal=signal(600, 0.01))
    space = search_space(problem)
    assert min(space.shares) < 1
    monkeypatch.setattr("vidqa.planner.search.shares_of_counts", None)
    whole = search_space(problem, forecast=False)
    assert (whole.counts, whole.sizes, whole.wanted_frames) == (space.counts, space.sizes, space.wanted_frames)


def test_a_quarter_of_the_tokens_costs_points_and_repeats_cost_none() -> None:
    whole = made_run_config(frames=64)
    quarter = replace(whole, visual_share=0.25)
    lost = quality.score(SPEC_2B, whole, 720) - quality.score(SPEC_2B, quarter, 720)
    assert lost == pytest.approx(1.95, abs=0.05)
    assert quality.score(SPEC_2B, replace(quarter, drop_repeats=True), 720) == quality.score(SPEC_2B, whole, 720)


def test_a_refusal_names_the_kept_tokens() -> None:
    problem = made_problem(8, 600, frames=768, size=(1008, 560), prune=0.5)
    refusal = try_plan(problem).refusal
    assert refusal is not None and "138,240 visual tokens" in str(refusal)


def scripted(similarities: Tensor) -> list[float]:
    """Similarities on the host: fake tensors have none."""
    return [0.2 + 0.8 * place / len(similarities) for place in range(len(similarities))]


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-4B-Instruct"]
)
@pytest.mark.parametrize("place", [Placement(), Placement(vision_offloaded=True)], ids=["streamed", "offloaded"])
def test_memory_with_dropped_tokens_is_planned_as_it_is_replayed(
    name: str, place: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_pruning, "on_host", scripted)
    spec = released()[name]
    tower = replace(spec.vision, depth=4, full_attention=(1,) if spec.vision.window else ())
    spec = replace(spec, layers=4, vision=replace(tower, deepstack_blocks=(0, 1, 2)[: spec.deepstack]))
    factor = spec.pixel_factor
    fields: dict[str, Any] = {"height": 9 * factor, "width": 16 * factor, "placement": place}
    check_plans(
        spec,
        tuple(
            made_run_config(frames=frames, visual_share=share, vision_chunk=group, prefill_chunk=chunk, **fields)
            for frames, share, group, chunk in ((8, 0.5, 1, 256), (16, 0.25, 2, 512), (32, 0.15, 8, 1024))
        ),
    )


def test_less_memory_is_required_with_a_smaller_share() -> None:
    run_config: RunConfig = made_run_config(frames=128)
    overhead = made_problem(8).overhead
    needed = [
        required_bytes(SHALLOW["7B"], replace(run_config, visual_share=share), overhead) for share in (1.0, 0.5, 0.25)
    ]
    assert needed == sorted(needed, reverse=True) and needed[0] > needed[2]
