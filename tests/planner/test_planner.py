"""Properties of plans for any budget, clip and question, and single plans in plain numbers."""

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planner.plan_builders import (
    GIB,
    SPEC_2B,
    SPEC_7B,
    made_cpu,
    made_device,
    made_problem,
    made_run_config,
    made_video,
)  # fmt: skip
from vidqa.config import QUALITY_CHOICES, EngineConfig
from vidqa.devices.device import find_device
from vidqa.devices.gpu_catalog import CATALOG, as_device
from vidqa.devices.host import usable_cores
from vidqa.errors import DoesNotFit, UsageError
from vidqa.models.families.qwen2_5_vl import RELEASED as RELEASED_25
from vidqa.models.families.qwen2_vl import MODEL_SCORES
from vidqa.models.registry import find_checkpoints
from vidqa.models.spec import ModelSpec
from vidqa.planner import quality
from vidqa.planner.activation_memory import prompt_tokens
from vidqa.planner.alternatives import alternatives
from vidqa.planner.explain import sampling_gap_note
from vidqa.planner.latency import cancel_check_seconds
from vidqa.planner.memory_model import MARGIN_LIMIT_BYTES, kv_bytes, required_bytes, tensor_bytes
from vidqa.planner.model_choice import plan_best
from vidqa.planner.placement import compute_dtype, weight_choices
from vidqa.planner.planner import plan_video, try_plan
from vidqa.planner.problem import PlanningProblem, planning_problems
from vidqa.planner.weight_memory import part_bytes
from vidqa.types import Placement, Plan, Request

BUDGETS = st.floats(3.0, 40.0)
SECONDS = st.floats(0.2, 8000.0)
SPEC_25_7B = RELEASED_25["Qwen/Qwen2.5-VL-7B-Instruct"]
SPECS = st.sampled_from([SPEC_2B, SPEC_7B, SPEC_25_7B])
PROBLEMS = st.builds(
    made_problem,
    BUDGETS,
    SECONDS,
    SPECS,
    st.sampled_from(["what happens?", "what does the sign read?"]),
    quality=st.sampled_from(QUALITY_CHOICES),
    max_tokens=st.integers(1, 2000),
)


def planned(problem: PlanningProblem) -> Plan | None:
    """The plan, or None where nothing fits."""
    try:
        return plan_video(problem)
    except DoesNotFit:
        return None


@settings(max_examples=100, deadline=None)
@given(PROBLEMS, st.none() | st.just("auto") | st.floats(0.5, 60.0))
def test_a_plan_keeps_its_budgets_and_adds_up(problem: PlanningProblem, wait: Any) -> None:
    limited = replace(problem, config=replace(problem.config, max_wait_seconds=wait))
    plan = planned(limited)
    if plan is None:
        return
    assert limited.max_wait_seconds is None or plan.seconds.first_token_seconds <= limited.max_wait_seconds
    assert sum(line.bytes for line in plan.lines) == plan.required_bytes <= plan.budget_bytes
    assert plan.required_bytes == required_bytes(problem.spec, plan.run_config, problem.overhead)
    assert plan.predicted_peak_bytes == max(plan.phase_bytes.values()) == plan.phase_bytes[plan.peak_phase]
    assert 0 < plan.margin_bytes <= MARGIN_LIMIT_BYTES
    assert all(line.bytes > 0 and line.formula for line in plan.lines)
    assert len(plan.indices) == len(plan.timestamps_seconds) == plan.run_config.frames
    tokens = plan.prompt_tokens + problem.request.max_tokens
    assert tokens <= min(plan.kv_capacity_tokens, problem.spec.context_tokens)
    assert plan.run_config.height % 28 == plan.run_config.width % 28 == 0


@settings(max_examples=60, deadline=None)
@given(PROBLEMS, st.floats(0.01, 20.0))
def test_more_memory_never_scores_less(problem: PlanningProblem, more_gib: float) -> None:
    small = planned(problem)
    large = planned(replace(problem, budget_bytes=problem.budget_bytes + int(more_gib * GIB)))
    if small is not None:
        assert large is not None
        assert large.score >= small.score


@settings(max_examples=40, deadline=None)
@given(
    st.floats(8.0, 24.0),
    st.sampled_from([4, 8, 30]),
    st.sampled_from([(448, 252), (1008, 560)]),
    st.sampled_from(["nf4", "int8"]),
)
def test_settings_of_the_user_are_kept(gib: float, frames: int, size: tuple[int, int], weights: str) -> None:
    problem = made_problem(gib, 60, SPEC_2B, frames=frames, size=size, weights=weights, kv="int8", prefill_chunk=96)
    one = plan_video(problem).run_config
    assert (one.frames, (one.width, one.height), one.weights, one.kv) == (frames, size, weights, "int8")
    assert one.prefill_chunk == 96


def test_frames_go_before_pixels_until_two_a_second() -> None:
    short, long = plan_video(made_problem(24, 10)).run_config, plan_video(made_problem(24, 600)).run_config
    assert (short.frames, short.width, short.height) == (20, 1008, 560)
    assert long.frames > 200 and long.width < 600


@pytest.mark.parametrize("gib", [5.0, 8.0, 24.0])
def test_slices_have_a_floor_and_questions_about_text_a_higher_one(gib: float) -> None:
    for question, least in (("what happens?", 128), ("what text is written on the sign?", 576)):
        plan = plan_video(made_problem(gib, 300, SPEC_2B, question))
        assert SPEC_2B.visual_tokens(2, plan.run_config.height, plan.run_config.width) >= least


def test_each_quality_caps_the_tokens() -> None:
    tokens = {name: plan_video(made_problem(80, 600, quality=name)).visual_tokens for name in QUALITY_CHOICES}
    assert tokens["fast"] <= 4_096 < tokens["balanced"] <= 16_384 < tokens["best"] <= 24_576


def test_the_published_order_of_frames() -> None:
    # BOLT and QuickVideo, Qwen2.5-VL-7B: 53.8, 58.8, 62.2, 62.4 on Video-MME for 8, 16, 32, 64 frames.
    points = [quality.frames_points(frames) for frames in (8, 16, 32, 64)]
    assert points == sorted(points) and len(set(points)) == 4
    scores = [plan_video(made_problem(80, 600, frames=frames, size=(448, 252))).score for frames in (8, 16, 32, 64)]
    assert scores == sorted(scores) and len(set(scores)) == 4
    assert quality.frames_points(1024) < quality.frames_points(256)


def test_every_score_has_a_source_and_frames_gain_more_than_pixels() -> None:
    rows = (*quality.FRAMES, *MODEL_SCORES)
    assert all(row.source and row.size > 0 for row in rows)
    gains = [high.points - low.points for low, high in zip(quality.FRAMES[:-1], quality.FRAMES[1:-1], strict=False)]
    assert min(gains) > quality.POINTS_PER_HALVED_SLICE  # frames before pixels


@pytest.mark.parametrize(
    ("gib", "weights"), [(7.6, "nf4"), (11.6, "nf4"), (15.5, "nf4"), (23.5, "bf16"), (39.4, "bf16")]
)
def test_7b_fits_every_card(gib: float, weights: str) -> None:
    plan = plan_video(made_problem(gib, 60, SPEC_7B))
    assert (plan.run_config.weights, plan.run_config.frames) == (weights, 120)


def test_the_2b_loses_less_in_int8() -> None:
    assert plan_video(made_problem(3.9, 60, SPEC_2B)).run_config.weights == "int8"


def test_every_lowered_choice_is_explained() -> None:
    limits = " | ".join(plan_video(made_problem(7.6, 600, SPEC_7B)).limits)
    assert "nf4 weights: bf16 would need 1" in limits
    assert "frames (2 per second)" in limits and "16,384 visual tokens" in limits
    assert "the embedding table stays in host memory" in limits
    waiting = plan_video(made_problem(24, 600, max_wait_seconds=20.0))
    assert any("--max-wait 20" in limit for limit in waiting.limits)
    assert plan_video(made_problem(24, 10)).limits == ()


def test_what_cannot_fit_names_the_smallest_budget_and_the_nearest_plan() -> None:
    with pytest.raises(DoesNotFit, match=r"7\.6 GiB are free on a GPU") as refused:
        plan_video(made_problem(7.6, 60, SPEC_7B, weights="bf16", frames=64))
    assert "What fits: --weights nf4 --frames 64 --size 1008x560" in refused.value.remedy
    smallest = refused.value.smallest_budget_bytes
    assert smallest is not None
    assert (
        plan_video(made_problem(smallest / GIB + 0.001, 60, SPEC_7B, weights="bf16", frames=64)).run_config.frames == 64
    )
    with pytest.raises(DoesNotFit, match=r"2\.0 GiB are free") as small:
        plan_video(made_problem(2.0, 60, SPEC_2B))
    assert "The smallest budget that would do is" in small.value.remedy


def test_a_video_beyond_the_context_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="context is 32,768"):
        plan_video(made_problem(80, 600, frames=768))


@pytest.mark.parametrize(("gib", "wait"), [(24, 0.1), (14.56, 0.2)])
def test_a_short_wait_is_refused_with_the_fastest_plan(gib: float, wait: float) -> None:
    with pytest.raises(
        DoesNotFit, match=rf"takes about (\d+) s to the first word, and the limit is {wait:g} s"
    ) as refused:
        plan_video(made_problem(gib, 60, max_wait_seconds=wait))
    fastest = re.search(r"about (\d+) s", refused.value.what)
    assert fastest is not None
    assert int(fastest.group(1)) <= plan_video(made_problem(gib, 60)).seconds.first_token_seconds
    assert refused.value.smallest_budget_bytes is None


def test_neighbours_of_a_plan() -> None:
    problem = made_problem(5.0, 60)
    plan = plan_video(problem)
    found = {other.kind: other for other in alternatives(problem, plan)}
    assert found["better"].plan.score > plan.score > found["cheaper"].plan.score
    assert found["better"].held_back_by and found["cheaper"].held_back_by is None
    assert found["cheaper"].plan.required_bytes <= plan.budget_bytes


def test_auto_takes_the_model_that_answers_best_and_says_why() -> None:
    def choose(gib: float) -> Plan:
        return plan_best(
            [made_problem(gib, 60, spec, model=name) for name, spec in (("2B", SPEC_2B), ("7B", SPEC_7B))]
        )[1]

    assert choose(7.6).model == "7B" and choose(7.6).run_config.weights == "nf4"
    assert "7B in nf4 is expected to answer best here" in choose(7.6).limits[0]
    assert choose(4.0).model == "2B" and "7B needs" in choose(4.0).limits[0]


def test_a_note_on_frames_far_apart_names_the_options_for_denser_ones() -> None:
    sparse = plan_video(made_problem(24, 1024))
    (note,) = sampling_gap_note(sparse, Request("clip.mp4", "what?", start_seconds=60.0))
    assert "frames every 4.6 s: shorter events may be missed" in note
    assert "--start 1:00.0 --end 2:52.0" in note
    assert not list(sampling_gap_note(plan_video(made_problem(24, 60)), Request("clip.mp4", "what?")))


@pytest.mark.parametrize("fields", [{}, {"weights": "nf4"}, {"max_wait_seconds": 30.0}, {"quality": "best"}])
def test_the_search_is_quick(fields: dict[str, Any]) -> None:
    """Far above the 20 ms that it takes: this guards against a search that explodes, not against noise."""
    problem = made_problem(6.0, 7200, SPEC_7B, **fields)
    began = time.process_time()
    plan_video(problem)
    assert time.process_time() - began < 0.5


def test_older_cards_compute_in_fp16() -> None:
    plan = plan_video(made_problem(14.56, 60, device=made_device(14.56, bf16=False)))
    assert (plan.run_config.weights, plan.run_config.dtype, plan.run_config.kv) == ("fp16", "fp16", "fp16")


def test_a_batch_multiplies_what_belongs_to_a_sequence() -> None:
    one, four = (tensor_bytes(SPEC_2B, made_run_config(batch=batch)) for batch in (1, 4))
    weights = tensor_bytes(SPEC_2B, made_run_config())["load"]
    assert one["load"] == four["load"] == weights
    cache = kv_bytes(SPEC_2B, made_run_config())
    assert kv_bytes(SPEC_2B, made_run_config(batch=4)) == 4 * cache
    for phase in ("vision", "prefill"):  # one sequence after the other
        assert four[phase] - one[phase] == 3 * cache
    assert (four["decode"] - weights) / (one["decode"] - weights) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("weights", "gib"),
    [("fp32", 33.17), ("bf16", 16.58), ("int8", 10.06), ("fp8", 10.06), ("nf4", 7.20), ("nf4-dq", 6.90)],
)
def test_weights_of_the_7b(weights: str, gib: float) -> None:
    dtype = weights if weights in ("fp32", "bf16") else "bf16"
    parts = ("embedding", "layers", "lm_head", "vision")
    total = sum(part_bytes(SPEC_7B, part, weights, dtype, Placement()) for part in parts)
    assert total / 1e9 == pytest.approx(gib, abs=0.01)


def test_one_frame_is_the_middle_one() -> None:
    plan = plan_video(made_problem(24, 60, frames=1))
    assert plan.indices == (749, 749) and plan.run_config.frames == 2


def test_limits_name_requests_that_cannot_be_met() -> None:
    assert "124 frames instead of 500" in plan_video(made_problem(24, 4.99, frames=500, size=(448, 252))).limits[0]
    far = plan_video(made_problem(80, 300, SPEC_25_7B, frames=256, size=(1008, 560)))
    assert any("past 32,768" in limit for limit in far.limits)
    tight = plan_video(made_problem(5.0, 10, placement=Placement(), weights="bf16", kv="native"))
    assert any("tokens at a time, to save memory" in limit for limit in tight.limits)


def test_a_size_beyond_the_cap_of_a_quality_is_kept() -> None:
    plan = plan_video(made_problem(80, 4, quality="fast", size=(1960, 1960)))
    assert (plan.run_config.width, plan.run_config.height) == (1960, 1960)


@pytest.mark.parametrize(
    ("question", "reads"),
    [
        ("what does the sign read?", True),
        ("What text is on the screen?", True),
        ("what does the shirt say?", True),
        ("which number is on the plate?", True),
        ("what number of cars pass?", False),
        ("what happens?", False),
        ("is the score close?", False),
    ],
)
def test_questions_about_text(question: str, reads: bool) -> None:
    assert quality.asks_to_read(question) == reads


@pytest.mark.parametrize("spec", [SPEC_2B, SPEC_7B])
@pytest.mark.parametrize("seconds", [10.0, 600.0])
def test_steps_are_short_enough_on_every_device(spec: ModelSpec, seconds: float) -> None:
    slow = replace(made_device(64), kind="cpu", flops_per_second=4e10, bandwidth_bytes_per_second=40e9)
    for device in (*map(as_device, CATALOG), slow):
        problem = made_problem(device.total_bytes / GIB, seconds, spec, device=device, step_seconds=0.5)
        plan = planned(problem)
        if plan is None:
            continue
        run_config, (group, chunk) = plan.run_config, cancel_check_seconds(problem, plan.run_config)
        assert group <= 0.5 or run_config.vision_chunk == 1
        assert chunk <= 0.5 or run_config.prefill_chunk == 16
        at_once = planned(replace(problem, config=replace(problem.config, step_seconds=None)))
        assert at_once is not None
        chunks = [(one.run_config.vision_chunk, one.run_config.prefill_chunk) for one in (plan, at_once)]
        if chunks[0] != chunks[1]:
            assert any("at a time" in limit and "stop" in limit for limit in plan.limits), plan.limits


def test_a_chunk_of_the_user_ignores_the_step_time() -> None:
    slow = replace(made_device(64), flops_per_second=1e12)
    run_config = plan_video(
        made_problem(64, device=slow, step_seconds=0.1, vision_chunk=8, prefill_chunk=2048)
    ).run_config
    assert (run_config.vision_chunk, run_config.prefill_chunk) == (8, 2048)


@settings(max_examples=40, deadline=None)
@given(PROBLEMS, st.floats(0.01, 2.0), st.floats(0.01, 20.0))
def test_with_a_step_time_more_memory_never_scores_less(problem: PlanningProblem, step: float, more_gib: float) -> None:
    quick = replace(problem, config=replace(problem.config, step_seconds=step))
    small, large = planned(quick), planned(replace(quick, budget_bytes=problem.budget_bytes + int(more_gib * GIB)))
    if small is not None:
        assert small.required_bytes <= small.budget_bytes
        assert large is not None and large.score >= small.score
    if planned(problem) is not None:  # smaller chunks never take more memory
        assert small is not None


def test_fewer_threads_are_planned_as_slower() -> None:
    cpu, checkpoint = find_device("cpu"), find_checkpoints("2b", local=False)
    config = EngineConfig(device="cpu", vram_bytes=64 * GIB)
    slower = replace(cpu, flops_per_second=cpu.flops_per_second / usable_cores(), free_bytes=64 * GIB)
    request = Request("clip.mp4", "what?")
    whole, one_thread = replace(cpu, free_bytes=64 * GIB), replace(config, cpu_threads=1)
    (one,) = planning_problems(checkpoint, made_video(60), request, one_thread, whole)
    (alone,) = planning_problems(checkpoint, made_video(60), request, config, slower)
    assert plan_video(one).seconds.total_seconds == plan_video(alone).seconds.total_seconds


@pytest.mark.parametrize("frames", [64, 100, 104, 108, 200])
def test_text_between_slices_counts_against_the_context(frames: int) -> None:
    spec = replace(SPEC_2B, context_tokens=8192, slice_text_tokens=12)
    problem = made_problem(80, 300, spec, frames=frames)
    forecast = try_plan(problem)
    if forecast.plan is not None:
        assert prompt_tokens(spec, forecast.plan.run_config) + problem.request.max_tokens <= 8192
    else:
        assert "context" in str(forecast.refusal)
    assert (forecast.plan is None) == (frames >= 104)


@pytest.mark.parametrize(
    ("bf16", "stored", "dtype"),
    [(True, "bf16", "bf16"), (True, "fp16", "bf16"), (True, "fp32", "fp32"), (False, "bf16", "fp32"),
     (False, "fp32", "fp32")],
)  # fmt: skip
def test_weights_on_a_cpu_stay_as_they_are_stored(bf16: bool, stored: str, dtype: str) -> None:
    device, spec = made_cpu(bf16=bf16), replace(SPEC_2B, stored_dtype=stored)
    assert compute_dtype(device, spec) == weight_choices(device, spec)[0] == dtype
    run_config = plan_video(made_problem(16, 4, spec, device=device)).run_config
    assert (run_config.weights, run_config.dtype, run_config.kv) == (dtype, dtype, dtype)


def test_a_cpu_with_bf16_plans_fp32_only_where_it_is_set() -> None:
    """2B in bf16 takes 4.4 GB, in fp32 8.8."""
    device = made_cpu(bf16=True)
    assert weight_choices(device, SPEC_2B)[-1] == "fp32"
    usual = plan_video(made_problem(16, 4, device=device))
    chosen = plan_video(made_problem(16, 4, device=device, weights="fp32"))
    assert (chosen.run_config.weights, chosen.run_config.dtype) == ("fp32", "fp32")
    weights = [sum(line.bytes for line in plan.lines if line.name.startswith("weights")) for plan in (usual, chosen)]
    assert weights[0] == pytest.approx(4.42e9, rel=0.01) and weights[1] == pytest.approx(2 * weights[0], rel=0.01)


def test_int4_weights_are_for_a_cpu() -> None:
    (found,) = find_checkpoints("Qwen/Qwen2-VL-2B-Instruct", local=False)
    request, config = Request("clip.mp4", "what?"), EngineConfig(weights="int4")
    with pytest.raises(UsageError, match="int4 weights run on a CPU, and the device is a GPU") as refused:
        planning_problems([found], made_video(4), request, config, made_device(8))
    assert "--weights nf4" in refused.value.remedy
    (problem,) = planning_problems([found], made_video(4), request, config, made_cpu(bf16=True))
    assert plan_video(problem).run_config.weights == "int4"


@pytest.mark.parametrize(("gib", "weights"), [(18, "bf16"), (14, "int8"), (8.5, "int4")])
def test_a_7b_on_a_cpu_takes_the_weights_that_fit(gib: float, weights: str) -> None:
    run_config = plan_video(made_problem(gib, 4, SPEC_7B, device=made_cpu(bf16=True), frames=8)).run_config
    assert (run_config.weights, run_config.dtype) == (weights, "bf16")


def test_int8_rows_cost_more_than_int8_weights_alone() -> None:
    points = {kind: quality.placement_points(SPEC_7B, made_run_config(weights="int8", device=kind, prefill_chunk=512))
              for kind in ("cuda", "cpu")}  # fmt: skip
    assert points["cpu"] == pytest.approx(points["cuda"] - 0.2)
