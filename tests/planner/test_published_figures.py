"""Published measurements that the formulas must reproduce; nothing is fitted to them."""

import pytest

from tests.planner.plan_builders import GIB, SPEC_2B, made_device, made_problem
from vidqa.models.families.qwen2_vl import REFERENCE_BOUNDS
from vidqa.planner.planner import plan_video
from vidqa.planner.transformers_memory import math_attention_bytes, score_matrix_bytes, vanilla_peak_bytes
from vidqa.video.frame_sampling import frame_size

T4_GIB = 14.56
TEXT_TOKENS = 26  # of "Describe what is happening in this video." in its template: 1,466 - 2 · 720


def vanilla_gib(frames: int) -> float:
    """Peak of a plain run over the sweep's 720p clip; odd frame counts are floored to even."""
    even = frames // 2 * 2
    height, width = frame_size(720, 1280, even, REFERENCE_BOUNDS, factor=28)
    visual = SPEC_2B.visual_tokens(even, height, width)
    return vanilla_peak_bytes(SPEC_2B, visual, TEXT_TOKENS, "fp16") / GIB


@pytest.mark.parametrize(
    ("frames", "tokens", "measured_gib"),
    [(5, 1466, 4.58), (10, 3626, 5.94), (15, 5066, 7.40), (20, 7226, 10.42), (25, 8666, 12.99)],
)
def test_the_t4_sweep(frames: int, tokens: int, measured_gib: float) -> None:
    # 360 tokens a frame follow from smart_resize (1008x560, 720 a slice); the post's "hard ceiling
    # of 729 tokens per frame" is not the rule.
    assert SPEC_2B.visual_tokens(frames // 2 * 2, 560, 1008) + TEXT_TOKENS == tokens
    assert vanilla_gib(frames) == pytest.approx(measured_gib, rel=0.05)


def test_30_frames_exceed_the_t4_where_a_plan_fits() -> None:
    assert vanilla_gib(25) < T4_GIB < vanilla_gib(30)
    problem = made_problem(
        T4_GIB, 59, frames=30, size=(1008, 560), weights="fp16", device=made_device(T4_GIB, bf16=False)
    )
    plan = plan_video(problem)
    assert (plan.run_config.frames, plan.visual_tokens) == (30, 10_800)
    assert plan.predicted_peak_bytes < 5.6 * GIB


def test_cumulative_scores_of_the_profiled_run() -> None:
    # "over 33 GB" at 10 frames: 28 layers of 12 heads with 8 bytes a score (the post says 32 layers).
    assert 28 * score_matrix_bytes(12, 3626, 3626, 8) == pytest.approx(33e9, rel=0.1)


@pytest.mark.parametrize(("tokens", "gib"), [(2048, 0.25), (4096, 1), (8192, 4), (16384, 16), (32768, 64)])
def test_the_score_matrix_table(tokens: int, gib: float) -> None:
    # That table is for Llama's 32 heads in fp16; Qwen2-VL-2B has 12.
    assert score_matrix_bytes(32, tokens, tokens, 2) == gib * GIB


def test_the_failed_allocation_of_8_gib() -> None:
    # "Tried to allocate 8.00 GiB" at 8,192 tokens: one float32 matrix of 32 heads.
    assert score_matrix_bytes(32, 8192, 8192, 4) == 8 * GIB
    assert math_attention_bytes(32, 8192, 8192) > 16 * GIB


@pytest.mark.parametrize(
    ("tokens", "layers", "kv_heads", "head_dim", "element_bytes", "claimed"),
    [(6000, 48, 40, 128, 1, 2_949_120_000), (7000, 48, 40, 128, 1, 3_440_640_000)],
)
def test_a_breakdown_without_grouped_queries(
    tokens: int, layers: int, kv_heads: int, head_dim: int, element_bytes: int, claimed: int
) -> None:
    # That document multiplies by the hidden size, as if all 40 heads had keys of their own:
    # Qwen2.5-14B has 8 KV heads, so its caches take a fifth of what it says.
    assert 2 * layers * tokens * kv_heads * head_dim * element_bytes == claimed
    assert 2 * layers * tokens * 8 * head_dim * element_bytes == claimed // 5
