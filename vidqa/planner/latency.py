"""Latency of a plan: FLOPs and bytes over a device's rates, corrected by past answers. Arithmetic only."""

from dataclasses import replace

from vidqa.devices.gpu_catalog import OLDEST_FOR_TRITON
from vidqa.models.family import family_of
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import chunk_tokens, encoded_frames, group_slices, prompt_tokens
from vidqa.planner.calibration import Rates
from vidqa.planner.focus_memory import reference_layer, scored_text_tokens
from vidqa.planner.memory_model import kv_bytes, kv_capacity
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.weight_memory import active_layer_bytes, active_parameters, part_bytes
from vidqa.types import Device, Flops, RunConfig, TimeEstimate
from vidqa.video.frame_sampling import CLOSE_SECONDS, are_kept_before_scan

# Share of the peak that large matrix products reach in a model (gpt-fast and others: 0.4 to 0.6).
_FLOPS_SHARE = 0.45
_BANDWIDTH_SHARE = 0.7
# Device operations of a decoder layer that are launched one by one, and as fused Triton kernels. Counted by
# tests/engine/test_fused_decoder_selection.py.
_PLAIN_OPERATIONS, _FUSED_OPERATIONS = 50, 10
# HF transformers on A100, Qwen2-VL README: 7B 39 tokens/s moves 27 % of the bandwidth, and the 2B is no faster:
# 28 layers take about 25 ms whatever they read, about 0.9 ms a layer.
_OPERATION_SECONDS = {"cuda": 0.9e-3 / _PLAIN_OPERATIONS, "mps": 0.9e-3 / _PLAIN_OPERATIONS, "cpu": 4e-6}
# A captured step (decode_runners.py) launches nothing, but each of its operations takes a few microseconds: assumed.
_CAPTURED_OPERATION_SECONDS = 3e-6
# FLOP/s of a CPU's products in each precision, relative to fp32: 2 cores of an EPYC with AVX512-BF16, 512 rows.
# Without such instructions bf16 products are converted number by number (the same CPU, oneDNN limited to AVX2).
_CPU_PRECISIONS = {"fp32": 1.0, "bf16": 2.4, "int8": 3.5, "int4": 1.8, "nf4": 2.2, "nf4-dq": 2.2}
_SLOW_BF16 = 0.25
# bitsandbytes 0.45 at batch 1, Llama-3.1-8B on H100: bf16 41.0, NF4 30.1, NF4 nested 24.3, int8 19.2.
_SLOWER_ON_GPU = {"int8": 2.1, "nf4": 1.4, "nf4-dq": 1.7}
# Sampling, detokenizing and reporting a token on a CPU: the demo model's tokens take 3 ms, its layers 0.8.
_TOKEN_SECONDS = 2e-3
# Planning and the chat template; what vision and prefill take beside their layers. 2 cores, the demo model.
_START_SECONDS, _VISION_SECONDS, _PROMPT_SECONDS = 15e-3, 5e-3, 15e-3
# Measured on 2 cores: 64 frames of a 5-minute 1080p H.264 clip (GOP 250) in 16.6 s, for which about
# 8,000 frames were decoded: 1.0e9 pixels a second.
_DECODED_PIXELS_PER_SECOND = 1.0e9
_DECODED_PER_FRAME = 125  # half a long group of pictures
_HOST_BUS_BYTES_PER_SECOND = 12e9  # PCIe 3.0 x16, practice


def estimate_seconds(problem: PlanningProblem, run_config: RunConfig) -> TimeEstimate:
    """Return the seconds of each stage, with the model loaded."""
    corrections = problem.speed.corrections.get(run_config.weights, {})

    def corrected(stage: str, seconds: float) -> float:
        return seconds * corrections.get(stage, 1.0)

    return TimeEstimate(
        start_seconds=corrected("start", _START_SECONDS),
        video_seconds=corrected("video", _video_seconds(problem, run_config)),
        vision_seconds=corrected("vision", _vision_seconds(problem, run_config)),
        prefill_seconds=corrected("prefill", _prefill_seconds(problem, run_config)),
        decode_seconds=corrected("decode", run_config.max_tokens * _token_seconds(problem, run_config)),
        calibrated=_measured_rates(problem, run_config) is not None,
        scan_seconds=_scan_seconds(problem, run_config),
    )


def _scan_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the seconds of a scan; none where it would change nothing (`needs_scan`)."""
    request = problem.request
    if not problem.scan_seconds or problem.signal is not None or run_config.drop_repeats:
        return problem.scan_seconds
    close = CLOSE_SECONDS if request.sample == "auto" and not run_config.candidate_frames else None
    frames = run_config.candidate_frames or run_config.frames
    kept = are_kept_before_scan(problem.video, request.start_seconds, request.end_seconds, frames, close)
    return 0.0 if kept else problem.scan_seconds


def prefill_flops(spec: ModelSpec, run_config: RunConfig) -> Flops:
    """Return 2 per weight that a token goes through, and 4 · n²/2 · width per layer of causal attention."""
    tokens = prompt_tokens(spec, run_config)
    return Flops(2 * active_parameters(spec) * tokens, 2 * tokens * tokens * spec.query_width * spec.layers)


def cancel_check_seconds(problem: PlanningProblem, run_config: RunConfig) -> tuple[float, float]:
    """Return the longest seconds between two checks for a cancellation, in a vision group and in a prefill chunk.

    A GPU gets a chunk's work at once; on a CPU the engine checks before every layer.
    """
    slices, tokens = group_slices(problem.spec, run_config), chunk_tokens(problem.spec, run_config)
    group = slices * _slice_seconds(problem, run_config) + _group_start(problem, run_config)
    chunk = tokens * _row_seconds(problem, run_config) + _chunk_start(problem, run_config)
    vision_checks, checks = _checks(problem)
    return group / vision_checks, chunk / checks


def most_at_once(problem: PlanningProblem, run_config: RunConfig, seconds: float) -> tuple[float, float]:
    """Return the temporal slices and prefill tokens whose `cancel_check_seconds` are so many; below 1 if none are."""
    vision_checks, checks = _checks(problem)
    slices = (seconds * vision_checks - _group_start(problem, run_config)) / _slice_seconds(problem, run_config)
    tokens = (seconds * checks - _chunk_start(problem, run_config)) / _row_seconds(problem, run_config)
    return slices, tokens


def _checks(problem: PlanningProblem) -> tuple[int, int]:
    return (problem.spec.vision.depth, problem.spec.layers) if problem.device.kind == "cpu" else (1, 1)


def _measured_rates(problem: PlanningProblem, run_config: RunConfig) -> Rates | None:
    """Return the measured rates of a run: of its weights, or on a GPU of the precision that these are converted to."""
    measured = problem.speed.measured
    found = measured.get(run_config.weights)
    return found or (measured.get(run_config.dtype) if problem.device.kind != "cpu" else None)


def _rates(problem: PlanningProblem, run_config: RunConfig) -> Rates:
    device, weights = problem.device, run_config.weights
    if (found := _measured_rates(problem, run_config)) is not None:
        return found
    if (
        device.kind == "cpu" and problem.speed.measured
    ):  # else a busy machine's rates would be compared with a free one's
        known, rates = next(iter(problem.speed.measured.items()))
        share = _cpu_share(device, weights) / _cpu_share(device, known)
        return replace(rates, matmul_flops_per_second=rates.matmul_flops_per_second * share)
    return _estimated_rates(device, weights)


def _cpu_share(device: Device, weights: str) -> float:
    """Return the FLOP/s of a CPU's products in a precision, relative to fp32."""
    return _SLOW_BF16 if weights == "bf16" and not device.bf16 else _CPU_PRECISIONS.get(weights, 1.0)


def _estimated_rates(device: Device, weights: str) -> Rates:
    """Return rates from a device's peak rates and the shares of them that are usually reached."""
    flops = device.flops_per_second * _FLOPS_SHARE
    if device.kind == "cpu":
        flops *= _cpu_share(device, weights)
    return Rates(flops, flops, device.bandwidth_bytes_per_second * _BANDWIDTH_SHARE, _OPERATION_SECONDS[device.kind])


def _layer_seconds(spec: ModelSpec, run_config: RunConfig, device: Device, rates: Rates) -> float:
    """Return the seconds that a decode step needs for each layer however little it reads."""
    on_host = run_config.placement.kv_on_host or run_config.placement.embedding_on_host
    if device.kind != "cuda" or on_host:  # a step that waits for the host is not captured
        return _PLAIN_OPERATIONS * rates.operation_seconds
    fused = (device.compute_capability or (0, 0)) >= OLDEST_FOR_TRITON and run_config.dtype != "fp16"
    fused = fused and not spec.qk_norm  # the fused layer has no norms of queries and keys
    return (_FUSED_OPERATIONS if fused else _PLAIN_OPERATIONS) * _CAPTURED_OPERATION_SECONDS


def _compute_seconds(flops: Flops, rates: Rates) -> float:
    return flops.matmul / rates.matmul_flops_per_second + flops.attention / rates.attention_flops_per_second


def _video_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    video = problem.video
    decoded_frames = min(video.frame_count, encoded_frames(run_config) * _DECODED_PER_FRAME)
    return decoded_frames * video.coded_width * video.coded_height / _DECODED_PIXELS_PER_SECOND


def _vision_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the seconds of the products and attention of all slices, and of launching every block once a group."""
    spec, run_config = problem.spec, replace(run_config, frames=encoded_frames(run_config))
    groups = -(-spec.slices(run_config.frames) // group_slices(spec, run_config))
    computing = _compute_seconds(family_of(spec).vision_flops(spec, run_config), _rates(problem, run_config))
    return _VISION_SECONDS + computing + groups * _group_start(problem, run_config)


def _slice_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    spec = problem.spec
    one = replace(run_config, frames=spec.vision.temporal_patch)
    return _compute_seconds(family_of(spec).vision_flops(spec, one), _rates(problem, run_config))


def _group_start(problem: PlanningProblem, run_config: RunConfig) -> float:
    return problem.spec.vision.depth * _PLAIN_OPERATIONS * _rates(problem, run_config).operation_seconds


def _prefill_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the seconds of the products and attention of the prompt, and of what every chunk costs.

    A chunk launches every layer and copies, on average, half of a cache on the host. A vision tower that is offloaded
    moves twice.
    """
    spec, rates = problem.spec, _rates(problem, run_config)
    chunks = -(-prompt_tokens(spec, run_config) // run_config.prefill_chunk)
    moved = 2 * _part_bytes(spec, run_config, "vision") if run_config.placement.vision_offloaded else 0
    start = spec.layers * _PLAIN_OPERATIONS * rates.operation_seconds + _cache_copy_seconds(spec, run_config) / 2
    computing = _compute_seconds(prefill_flops(spec, run_config), rates)
    computing += _scoring_seconds(problem, run_config)
    return _PROMPT_SECONDS + computing + chunks * start + moved / _HOST_BUS_BYTES_PER_SECOND


def _scoring_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the seconds in which a question scores its candidates: all their tokens through the first layers."""
    if not run_config.candidate_frames:
        return 0.0
    spec, rates = problem.spec, _rates(problem, run_config)
    tokens, layer = scored_text_tokens(spec, run_config), reference_layer(spec)
    matmul = 2 * active_parameters(spec) * tokens * layer / spec.layers
    start = layer * _PLAIN_OPERATIONS * rates.operation_seconds
    return _compute_seconds(Flops(matmul, 0.0), rates) + tokens / run_config.prefill_chunk * start


def _row_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the seconds of a token of a chunk: 2 FLOPs per weight it goes through, 4 · cached · width per layer."""
    spec = problem.spec
    attention = 4 * kv_capacity(spec, run_config) * spec.query_width * spec.layers
    return _compute_seconds(Flops(2 * active_parameters(spec), attention), _rates(problem, run_config))


def _chunk_start(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the seconds of even the shortest chunk: weights are read, layers launched, a cache on the host copied."""
    spec, rates = problem.spec, _rates(problem, run_config)
    streaming = _part_bytes(spec, run_config, "layers") / rates.weight_bytes_per_second
    launching = spec.layers * _PLAIN_OPERATIONS * rates.operation_seconds
    return streaming + launching + _cache_copy_seconds(spec, run_config)


def _token_seconds(problem: PlanningProblem, run_config: RunConfig) -> float:
    """Return the seconds per decoded token: its weights and the filled cache are read once, every layer is launched.

    Of a layer's experts those of the token are read; a chunk of tokens reads them all (`_chunk_start`). A GPU reads
    while it is sent the next operations; a CPU does one after the other.
    """
    spec, device, rates = problem.spec, problem.device, _rates(problem, run_config)
    layers = active_layer_bytes(spec, run_config.weights, run_config.dtype, run_config.placement)
    logits = _part_bytes(spec, run_config, "embedding" if spec.tied else "lm_head")
    read = layers + logits + kv_bytes(spec, run_config)
    streaming = read / rates.weight_bytes_per_second
    launching = spec.layers * _layer_seconds(spec, run_config, device, rates)
    if device.kind == "cpu":
        return streaming + launching + _TOKEN_SECONDS
    launching *= _SLOWER_ON_GPU.get(run_config.weights, 1.0)
    return max(streaming, launching) + _cache_copy_seconds(spec, run_config)


def _part_bytes(spec: ModelSpec, run_config: RunConfig, part: str) -> int:
    return part_bytes(spec, part, run_config.weights, run_config.dtype, run_config.placement)


def _cache_copy_seconds(spec: ModelSpec, run_config: RunConfig) -> float:
    """Return the seconds to copy the whole KV cache from the host; 0 if it is on the device."""
    return kv_bytes(spec, run_config) / _HOST_BUS_BYTES_PER_SECOND if run_config.placement.kv_on_host else 0.0
