"""Latency of a plan: FLOPs and bytes over the shares of a device's peak rates that are reached. Arithmetic only.

A prediction chooses between plans and keeps a time limit; it is not a benchmark.
"""

from dataclasses import replace

from vidqa.devices.gpu_catalog import OLDEST_FOR_TRITON
from vidqa.models.family import family_of
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import chunk_tokens, group_slices, prompt_tokens
from vidqa.planner.memory_model import kv_bytes, kv_capacity
from vidqa.planner.weight_memory import parameters, part_bytes
from vidqa.types import Device, RunConfig, TimeEstimate, VideoInfo

# Share of the peak that large matrix products reach in a model (gpt-fast and others: 0.4 to 0.6).
_FLOPS_SHARE = 0.45
# HF transformers on A100, Qwen2-VL README: 7B 39 tokens/s moves 27 % of the bandwidth, and the
# 2B is no faster: 28 layers take about 25 ms whatever they read, about 0.9 ms a layer.
_BANDWIDTH_SHARE = 0.7
_LAYER_SECONDS = {"cuda": 0.9e-3, "mps": 0.9e-3, "cpu": 0.1e-3}
# A captured step (decode_runners.py) launches nothing, but each of its operations takes a few microseconds. Counted
# by tests/engine/test_fused_decoder_selection.py: 10 a layer where Triton runs, else 50. 3 µs are assumed.
_OPERATION_SECONDS = 3e-6
_FUSED_OPERATIONS, _PLAIN_OPERATIONS = 10, 50
# bitsandbytes 0.45 at batch 1, Llama-3.1-8B on H100: bf16 41.0, NF4 30.1, NF4 nested 24.3, int8 19.2.
_SLOWER = {"int8": 2.1, "nf4": 1.4, "nf4-dq": 1.7}
# Measured on 2 cores: 64 frames of a 5-minute 1080p H.264 clip (GOP 250) in 16.6 s, for which about
# 8,000 frames were decoded: 1.0e9 pixels a second.
_DECODED_PIXELS_PER_SECOND = 1.0e9
_DECODED_PER_FRAME = 125  # half a long group of pictures
_HOST_BUS_BYTES_PER_SECOND = 12e9  # PCIe 3.0 x16, practice


def estimate_seconds(spec: ModelSpec, run_config: RunConfig, device: Device, video: VideoInfo) -> TimeEstimate:
    """Return the seconds of each stage, with the model loaded."""
    flops = device.flops_per_second * _FLOPS_SHARE
    decoded_frames = min(video.frame_count, run_config.frames * _DECODED_PER_FRAME)
    return TimeEstimate(
        video_seconds=decoded_frames * video.coded_width * video.coded_height / _DECODED_PIXELS_PER_SECOND,
        vision_seconds=family_of(spec).vision_flops(spec, run_config) / flops + _vision_start(spec, device),
        prefill_seconds=prefill_flops(spec, run_config) / flops + _prefill_overhead(spec, run_config, device),
        decode_seconds=run_config.max_tokens * token_seconds(spec, run_config, device),
    )


def prefill_flops(spec: ModelSpec, run_config: RunConfig) -> float:
    """Return 2 per weight and token, and 4 · n²/2 · hidden per layer of causal attention."""
    tokens = prompt_tokens(spec, run_config)
    return 2 * parameters(spec, "layers") * tokens + 2 * tokens * tokens * spec.query_width * spec.layers


def cancel_check_seconds(spec: ModelSpec, run_config: RunConfig, device: Device) -> tuple[float, float]:
    """Return the longest seconds between two checks for a cancellation, in a vision group and in a prefill chunk.

    A GPU gets a chunk's work at once; on a CPU the engine checks before every layer.
    """
    slices, tokens = group_slices(spec, run_config), chunk_tokens(spec, run_config)
    group = slices * _slice_seconds(spec, run_config, device) + _vision_start(spec, device)
    chunk = tokens * _row_seconds(spec, run_config, device) + _chunk_start(spec, run_config, device)
    vision_checks, checks = _checks(spec, device)
    return group / vision_checks, chunk / checks


def most_at_once(spec: ModelSpec, run_config: RunConfig, device: Device, seconds: float) -> tuple[float, float]:
    """Return the temporal slices and prefill tokens whose `cancel_check_seconds` are so many; below 1 if none are."""
    vision_checks, checks = _checks(spec, device)
    slices = (seconds * vision_checks - _vision_start(spec, device)) / _slice_seconds(spec, run_config, device)
    tokens = (seconds * checks - _chunk_start(spec, run_config, device)) / _row_seconds(spec, run_config, device)
    return slices, tokens


def _checks(spec: ModelSpec, device: Device) -> tuple[int, int]:
    return (spec.vision.depth, spec.layers) if device.kind == "cpu" else (1, 1)


def _slice_seconds(spec: ModelSpec, run_config: RunConfig, device: Device) -> float:
    one = replace(run_config, frames=spec.vision.temporal_patch)
    return family_of(spec).vision_flops(spec, one) / (device.flops_per_second * _FLOPS_SHARE)


def _vision_start(spec: ModelSpec, device: Device) -> float:
    return spec.vision.depth * _LAYER_SECONDS[device.kind]


def _row_seconds(spec: ModelSpec, run_config: RunConfig, device: Device) -> float:
    """Return the seconds of a token of a chunk: 2 FLOPs per weight, and 4 · cached · hidden per layer."""
    flops = 2 * parameters(spec, "layers") + 4 * kv_capacity(spec, run_config) * spec.query_width * spec.layers
    return flops / (device.flops_per_second * _FLOPS_SHARE)


def _chunk_start(spec: ModelSpec, run_config: RunConfig, device: Device) -> float:
    """Return the seconds of even the shortest chunk: weights are read, layers launched, a cache on the host copied."""
    streaming = _part_bytes(spec, run_config, "layers") / (device.bandwidth_bytes_per_second * _BANDWIDTH_SHARE)
    return streaming + spec.layers * _LAYER_SECONDS[device.kind] + _cache_copy_seconds(spec, run_config)


def _prefill_overhead(spec: ModelSpec, run_config: RunConfig, device: Device) -> float:
    """Return the seconds to launch every layer once a chunk, to copy half of a cache on the host, and to offload."""
    chunks = -(-prompt_tokens(spec, run_config) // run_config.prefill_chunk)
    moved = 2 * _part_bytes(spec, run_config, "vision") if run_config.placement.vision_offloaded else 0
    start = spec.layers * _LAYER_SECONDS[device.kind] + _cache_copy_seconds(spec, run_config) / 2
    return chunks * start + moved / _HOST_BUS_BYTES_PER_SECOND


def token_seconds(spec: ModelSpec, run_config: RunConfig, device: Device) -> float:
    """Return the seconds per decoded token: every weight and the filled cache are read once."""
    parts = ("layers", "embedding" if spec.tied else "lm_head")
    read = sum(_part_bytes(spec, run_config, part) for part in parts) + kv_bytes(spec, run_config)
    streaming = read / (device.bandwidth_bytes_per_second * _BANDWIDTH_SHARE)
    launching = spec.layers * _step_seconds(run_config, device) * _SLOWER.get(run_config.weights, 1.0)
    return max(streaming, launching) + _cache_copy_seconds(spec, run_config)


def _part_bytes(spec: ModelSpec, run_config: RunConfig, part: str) -> int:
    return part_bytes(spec, part, run_config.weights, run_config.dtype, run_config.placement)


def _cache_copy_seconds(spec: ModelSpec, run_config: RunConfig) -> float:
    """Return the seconds to copy the whole KV cache from the host; 0 if it is on the device."""
    return kv_bytes(spec, run_config) / _HOST_BUS_BYTES_PER_SECOND if run_config.placement.kv_on_host else 0.0


def _step_seconds(run_config: RunConfig, device: Device) -> float:
    """Return the seconds of a layer of a decode step however little it reads."""
    captured = device.kind == "cuda" and not (run_config.placement.kv_on_host or run_config.placement.embedding_on_host)
    if not captured:
        return _LAYER_SECONDS[device.kind]
    fused = (device.compute_capability or (0, 0)) >= OLDEST_FOR_TRITON and run_config.dtype != "fp16"
    return (_FUSED_OPERATIONS if fused else _PLAIN_OPERATIONS) * _OPERATION_SECONDS
