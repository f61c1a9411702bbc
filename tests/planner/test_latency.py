"""The time of a plan: rates and corrections with plain numbers, and the automatic limit on the first word."""

from dataclasses import replace
from typing import Any

import pytest

from tests.planner.plan_builders import GIB, SPEC_2B, SPEC_7B, made_device, made_problem, made_run_config
from vidqa.errors import DoesNotFit
from vidqa.models.registry import released
from vidqa.planner.activation_memory import prompt_tokens
from vidqa.planner.calibration import DeviceSpeed, Rates
from vidqa.planner.latency import cancel_check_seconds, estimate_seconds, prefill_flops
from vidqa.planner.memory_model import kv_bytes
from vidqa.planner.model_choice import plan_best
from vidqa.planner.planner import plan_video, try_plan
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.weight_memory import active_layer_bytes, active_parameters, parameters
from vidqa.types import Device, Placement

CPU = replace(made_device(64), kind="cpu", compute_capability=None, bf16=False, flops_per_second=1e11,
              bandwidth_bytes_per_second=40e9)  # fmt: skip
RATES = Rates(2e11, 5e10, 20e9, 2e-6)
RUN = made_run_config(weights="fp32", kv="fp32", dtype="fp32", frames=8, height=280, width=392, text_tokens=40)


def on_cpu(seconds: float = 60.0, device: Device = CPU, **fields: Any) -> PlanningProblem:
    return made_problem(64, seconds, device=device, **fields)


def test_measured_rates_give_the_seconds() -> None:
    measured = estimate_seconds(on_cpu(speed=DeviceSpeed({"fp32": RATES})), RUN)
    # 4 slices of 560 patches; 665 million weights of the tower, 1,310 million of the decoder.
    products, attention = 4 * 560 * 2 * 665.3e6, 4 * 4 * 560**2 * 1280 * 32
    assert measured.vision_seconds == pytest.approx(
        5e-3 + products / 2e11 + attention / 5e10 + 2 * 32 * 50 * 2e-6, rel=2e-3
    )
    flops = prefill_flops(SPEC_2B, RUN)
    assert (flops.matmul, flops.attention) == pytest.approx((2 * 600 * 1310.3e6, 2 * 600**2 * 1536 * 28), rel=2e-3)
    chunks = 15e-3 + 2 * 28 * 50 * 2e-6
    assert measured.prefill_seconds == pytest.approx(flops.matmul / 2e11 + flops.attention / 5e10 + chunks, rel=1e-6)
    token = (1310.3e6 + 233.4e6) * 4 / 20e9 + 28 * 50 * 2e-6 + 2e-3
    assert measured.decode_seconds == pytest.approx(RUN.max_tokens * token, rel=0.02)  # and the cache
    assert measured.calibrated
    parts = (measured.start_seconds, measured.video_seconds, measured.vision_seconds, measured.prefill_seconds)
    assert measured.first_token_seconds == sum(parts)
    assert measured.total_seconds == measured.first_token_seconds + measured.decode_seconds


def test_corrections_multiply_the_stages_of_their_precision() -> None:
    plain = estimate_seconds(on_cpu(), RUN)
    speed = DeviceSpeed(corrections={"fp32": {"vision": 2.0, "decode": 0.5}, "bf16": {"prefill": 9.0}})
    corrected = estimate_seconds(on_cpu(speed=speed), RUN)
    assert corrected == replace(
        plain, vision_seconds=2 * plain.vision_seconds, decode_seconds=0.5 * plain.decode_seconds
    )
    assert not plain.calibrated and not corrected.calibrated


def test_a_gpu_runs_quantized_weights_at_the_rates_of_its_16_bit_products() -> None:
    speed = DeviceSpeed({"bf16": Rates(5e13, 2e13, 3e11, 5e-6)})
    nf4, bf16 = (
        estimate_seconds(made_problem(24, speed=speed), made_run_config(weights=weights)) for weights in ("nf4", "bf16")
    )
    assert nf4.calibrated and nf4.prefill_seconds == bf16.prefill_seconds


def test_a_cpus_precisions_that_were_not_measured_follow_from_one_that_was() -> None:
    busy = on_cpu(
        device=replace(CPU, bf16=True), speed=DeviceSpeed({"bf16": replace(RATES, matmul_flops_per_second=1e9)})
    )
    bf16 = estimate_seconds(busy, replace(RUN, weights="bf16", kv="bf16", dtype="bf16"))
    fp32 = estimate_seconds(busy, RUN)
    assert bf16.calibrated and not fp32.calibrated
    assert 2 * bf16.prefill_seconds < fp32.prefill_seconds < 3 * bf16.prefill_seconds


def test_fast_bf16_is_estimated_only_where_the_processor_has_it() -> None:
    run = replace(RUN, weights="bf16", kv="bf16", dtype="bf16")
    with_it, without = (
        estimate_seconds(on_cpu(device=replace(CPU, bf16=bf16)), run).prefill_seconds for bf16 in (True, False)
    )
    fp32 = estimate_seconds(on_cpu(), RUN).prefill_seconds
    assert with_it < fp32 / 2 < fp32 * 3 < without


def test_a_captured_step_with_norms_of_queries_and_keys_is_not_fused() -> None:
    run_config = made_run_config(frames=2, height=56, width=56, text_tokens=10)
    fast = replace(made_device(80), bandwidth_bytes_per_second=1e15)  # only launching counts
    plain, normed = (
        estimate_seconds(made_problem(80, spec=replace(SPEC_2B, qk_norm=norm), device=fast), run_config).decode_seconds
        for norm in (False, True)
    )
    assert normed == pytest.approx(5 * plain, rel=0.01)


def test_faster_rates_allow_larger_chunks_between_two_checks() -> None:
    slow, fast = (on_cpu(speed=DeviceSpeed({"fp32": replace(RATES, matmul_flops_per_second=r)})) for r in (1e10, 1e12))
    assert cancel_check_seconds(slow, RUN)[0] > 10 * cancel_check_seconds(fast, RUN)[0]


def test_only_the_experts_of_a_token_take_time() -> None:
    """30B-A3B: 48 layers, each with attention, a router and 8 of its 128 experts (3 matrices of 2048 · 768)."""
    attention, router, expert = 2048 * (2 * 4096 + 2 * 512) + 2 * (2048 + 128), 128 * 2048, 3 * 2048 * 768
    active, every = (2048 + 48 * (attention + router + count * expert) for count in (8, 128))  # and the last norm
    spec = released()["Qwen/Qwen3-VL-30B-A3B-Instruct"]
    run_config = made_run_config(frames=2, height=64, width=64, text_tokens=10)
    assert active_parameters(spec) == active and parameters(spec, "layers") == every
    tokens = prompt_tokens(spec, run_config)
    assert prefill_flops(spec, run_config).matmul == 2 * active * tokens
    rates = Rates(1e13, 1e13, 1e9, 0.0)  # reading weights is all that counts
    problem = made_problem(80, spec=spec, speed=DeviceSpeed({"bf16": rates}))
    token = estimate_seconds(problem, run_config).decode_seconds / run_config.max_tokens
    assert token == pytest.approx((2 * (active + 151_936 * 2048) + kv_bytes(spec, run_config)) / 1e9, rel=1e-5)
    nf4, bf16 = (active_layer_bytes(spec, weights, "bf16", Placement()) for weights in ("nf4", "bf16"))
    assert bf16 - nf4 == pytest.approx(48 * (attention + router) * (2 - 0.5625), rel=0.01)  # experts stay in 16 bit


@pytest.mark.parametrize(("device", "seconds"), [(CPU, 90.0), (made_device(24), 30.0)])
def test_the_automatic_limit_is_kept_and_named(device: Device, seconds: float) -> None:
    slow = replace(device, flops_per_second=2e11 if device.kind == "cpu" else 2e12)
    problem = made_problem(24, 120, device=slow, max_wait_seconds="auto")
    plan = plan_video(problem)
    assert problem.max_wait_seconds == seconds and plan.seconds.first_token_seconds <= seconds
    assert any(f"to the first word (--max-wait auto: {seconds:.0f} s on a" in limit for limit in plan.limits)
    longer = plan_video(replace(problem, config=replace(problem.config, max_wait_seconds=None)))
    assert longer.seconds.first_token_seconds > seconds and longer.score > plan.score


def test_the_best_quality_and_a_number_lift_the_automatic_limit() -> None:
    assert on_cpu(max_wait_seconds="auto").max_wait_seconds == 90
    assert on_cpu(max_wait_seconds="auto", quality="best").max_wait_seconds is None
    assert on_cpu(max_wait_seconds=500.0).max_wait_seconds == 500
    assert on_cpu(max_wait_seconds=None).max_wait_seconds is None


@pytest.mark.parametrize("asked", [{"frames": 64}, {"fps": 1.0}, {"frames": 64, "size": (560, 392)}])
def test_frames_that_were_asked_for_are_not_refused_for_their_time(asked: dict[str, Any]) -> None:
    problem = on_cpu(max_wait_seconds="auto", **asked)
    plan = plan_video(problem)
    assert plan.run_config.frames == asked.get("frames", 60) and plan.seconds.first_token_seconds > 90
    limit = plan.limits[0]
    assert f"these frames take about {plan.seconds.first_token_seconds:.0f} s to the first word" in limit
    assert "past the usual 90 s (--max-wait auto)" in limit
    frames, size = limit.split("--frames ")[1].split(" --size ")
    width, height = map(int, size.removesuffix(" would keep it").split("x"))
    kept = try_plan(on_cpu(max_wait_seconds="auto", frames=int(frames), size=(width, height))).plan
    assert kept is not None and kept.seconds.first_token_seconds <= 90


def test_the_choice_among_models_plans_what_was_asked_for_too() -> None:
    problems = [on_cpu(max_wait_seconds="auto", frames=64, model=name) for name in ("one", "two")]
    place, plan = plan_best(problems)
    assert problems[place].model == plan.model == "one" and plan.seconds.first_token_seconds > 90
    assert problems[place].raised_wait_seconds is None  # so that a plan by other rates raises its own limit
    fast = DeviceSpeed({"fp32": replace(RATES, matmul_flops_per_second=1e13, attention_flops_per_second=1e13)})
    raised = try_plan(problems[0]).problem
    assert raised.raised_wait_seconds is not None
    assert try_plan(replace(raised, speed=fast)).problem.raised_wait_seconds is None


def test_a_model_too_slow_for_any_frames_is_refused_with_the_time_it_needs() -> None:
    slow = replace(CPU, flops_per_second=2e9)
    with pytest.raises(DoesNotFit, match=r"the limit is 90 s \(--max-wait auto: 90 s on a CPU\)") as refused:
        plan_video(on_cpu(device=slow, spec=SPEC_7B, max_wait_seconds="auto"))
    needed = float(refused.value.remedy.split("--max-wait ")[1].split(",")[0])
    allowed = plan_video(on_cpu(device=slow, spec=SPEC_7B, max_wait_seconds=needed))
    assert 90 < allowed.seconds.first_token_seconds <= needed


def test_memory_is_named_before_time() -> None:
    slow = replace(CPU, flops_per_second=2e9)
    with pytest.raises(DoesNotFit, match="needs"):
        plan_video(on_cpu(device=slow, spec=SPEC_7B, max_wait_seconds="auto", frames=64, budget_bytes=2 * GIB))
