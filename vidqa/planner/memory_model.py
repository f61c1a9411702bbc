"""Memory of a run, part by part and phase by phase. Arithmetic only.

Phases follow each other (load, vision, prefill, decode): the peak is the largest phase, and a phase is the sum of the
parts that are alive in it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vidqa.devices.device import BLOCK
from vidqa.models.spec import ModelSpec
from vidqa.planner import activation_memory as activations
from vidqa.planner.activation_memory import candidate_tokens, drops_tokens, kept_visual_tokens
from vidqa.planner.budget import RuntimeOverhead
from vidqa.planner.focus_memory import focus_parts
from vidqa.planner.weight_memory import parameters, part_bytes, part_precision, staging_bytes
from vidqa.types import ELEMENT_BYTES, PHASES, MemoryLine, Plan, RunConfig

RUNTIME = "runtime"  # the line of what the process holds before any tensor
KV_CACHE, KV_SCRATCH = "KV cache", "KV scratch"
GROUPS_AHEAD = 2  # groups of frames that may be decoded before the vision tower takes them
MARGIN_LIMIT_BYTES = 300 * 2**20
_MARGIN_SHARE = 0.03  # of the predicted peak: what a prediction may be off by
_LEAST_MARGIN_BYTES = 64 * 2**20
_SMALL_TENSORS = 64
_AFTER_LOAD, _FROM_PREFILL = ("vision", "prefill", "decode"), ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """Bytes of one kind of tensor, the phases in which it is alive, and how the bytes are computed."""

    name: str
    phases: tuple[str, ...]
    bytes: int
    formula: Callable[[], str]


def kv_capacity(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the tokens that the KV cache holds: prompt, answer and spare ones, in whole blocks."""
    tokens = activations.prompt_tokens(spec, run_config) + run_config.max_tokens + run_config.spare_tokens
    return activations.whole_blocks(tokens)


def kv_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of the KV cache on device or host: 2 · layers · kv_heads · head_dim values a token.

    An int8 cache has a scale more for each key and value.
    """
    tokens = kv_capacity(spec, run_config) * run_config.batch
    if run_config.kv != "int8":
        return tokens * spec.kv_bytes_per_token(ELEMENT_BYTES[run_config.kv])
    return tokens * spec.kv_bytes_per_token(1) + _scale_bytes(spec, run_config)


def _scale_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of an int8 cache's float16 scales: one for each key and value of a token and layer."""
    if run_config.kv != "int8":
        return 0
    return kv_capacity(spec, run_config) * run_config.batch * 2 * spec.layers * spec.kv_heads * 2


def _kv_scratch_bytes(spec: ModelSpec, run_config: RunConfig, *, on_host: bool) -> int:
    """Return the bytes of one layer's keys and values in the compute precision, if the cache is int8 or on the host."""
    if run_config.kv != "int8" and not run_config.placement.kv_on_host:
        return 0
    tokens = kv_capacity(spec, run_config) * run_config.batch
    copied = run_config.kv == "int8" and run_config.placement.kv_on_host and not on_host  # int8 from the host: a byte
    return tokens * 2 * spec.kv_heads * spec.head_dim * (ELEMENT_BYTES[run_config.dtype] + copied)


def frames_ahead_bytes(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    """Return the bytes of frames that wait for the tower if the device is the host, and of one that is being resized.

    A source frame of P pixels: itself, in float32, with resized rows (P · w/W, about sqrt(P·h·w)), and the result.
    """
    if not host_pixels:
        return 0
    pixels = run_config.height * run_config.width
    waiting = min(
        (GROUPS_AHEAD + 1) * run_config.vision_chunk * spec.vision.temporal_patch,
        activations.encoded_frames(run_config),
    )
    return 3 * (waiting * pixels + 5 * host_pixels + 4 * math.isqrt(host_pixels * pixels) + 5 * pixels)


def memory_parts(spec: ModelSpec, run_config: RunConfig, host_pixels: int = 0) -> tuple[MemoryPart, ...]:
    """Return all tensors of a run; parts of 0 bytes are among them. `host_pixels` as in RuntimeOverhead."""
    return (
        *_weight_parts(spec, run_config, on_host=host_pixels > 0),
        *_vision_parts(spec, run_config, host_pixels),
        *_cache_parts(spec, run_config, on_host=host_pixels > 0),
        *_language_parts(spec, run_config, on_host=host_pixels > 0),
    )


def _weight_parts(spec: ModelSpec, run_config: RunConfig, *, on_host: bool) -> Iterator[MemoryPart]:
    weights, dtype, place = run_config.weights, run_config.dtype, run_config.placement

    def part(name: str, which: str, phases: tuple[str, ...] = PHASES, *, on_device: bool = True) -> MemoryPart:
        def formula() -> str:
            precision = part_precision(which, weights, dtype, place)
            whole = spec.experts and which == "layers" and precision != dtype and spec.stored is None
            return f"{parameters(spec, which):,} parameters in {precision}" + f", experts in {dtype}" * bool(whole)

        size = part_bytes(spec, which, weights, dtype, place) if on_device else 0
        return MemoryPart(f"weights: {name}", phases, size, formula)

    offloaded = place.vision_offloaded and not on_host
    yield part("language model", "layers")
    yield part("embedding table", "embedding", on_device=on_host or not place.embedding_on_host)
    yield part("lm_head", "lm_head")
    yield part("vision tower", "vision", on_device=not offloaded)
    yield part("vision tower, until the prefill", "vision", ("load", "vision"), on_device=offloaded)
    staging = staging_bytes(spec, weights, dtype, place)
    yield MemoryPart("quantization staging", ("load",), staging, lambda: "the largest matrix, one at a time")


def _vision_parts(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> Iterator[MemoryPart]:
    slices = activations.group_slices(spec, run_config)
    patches = activations.patches_per_slice(spec, run_config)
    pixels = 9 * slices * patches * spec.vision.patch_values  # of a group on its way to patches: uint8, float32 twice
    row = spec.embedding_width * ELEMENT_BYTES[run_config.dtype]
    tokens = candidate_tokens(spec, run_config) or kept_visual_tokens(spec, run_config)
    compared = spec.slice_tokens(run_config.height, run_config.width) if drops_tokens(run_config) else 0

    def waiting_formula() -> str:
        group = activations.group_tokens(spec, run_config)
        return f"a group of {group} tokens, chunks of {run_config.prefill_chunk} · {spec.embedding_width}"

    yield MemoryPart(
        "vision activations", ("vision",), max(activations.vision_bytes(spec, run_config), pixels),
        lambda: f"{slices} slices of {patches} patches · {spec.vision.embed_dim}",
    )  # fmt: skip
    yield MemoryPart(
        "frames on their way", ("vision", "prefill"), frames_ahead_bytes(spec, run_config, host_pixels),
        lambda: f"{GROUPS_AHEAD} groups of pictures, and one that is resized",
    )  # fmt: skip
    for name, phase in (("vision embeddings, waiting", "vision"),
                        ("vision embeddings, waiting for a chunk", "prefill")):  # fmt: skip
        size = activations.waiting_rows(spec, run_config, phase) * row
        yield MemoryPart(name, (phase,), size, waiting_formula)
    yield MemoryPart(
        "vision embeddings, compared", ("vision", "prefill"),
        compared * spec.hidden * ELEMENT_BYTES[run_config.dtype],
        lambda: f"the last kept of {compared} places · {spec.hidden}",
    )  # fmt: skip
    yield MemoryPart(  # the prefix cache stores them on the host
        "vision embeddings, kept", _AFTER_LOAD, tokens * run_config.batch * row if host_pixels else 0,
        lambda: f"{tokens} tokens · {spec.embedding_width} · {ELEMENT_BYTES[run_config.dtype]} B",
    )  # fmt: skip


def _cache_parts(spec: ModelSpec, run_config: RunConfig, *, on_host: bool) -> Iterator[MemoryPart]:
    """Yield the KV cache and its scratch; where the vision tower is offloaded, they are allocated after the vision."""
    place, capacity = run_config.placement, kv_capacity(spec, run_config)
    on_device = kv_bytes if on_host or not place.kv_on_host else _scale_bytes
    cache, scratch = on_device(spec, run_config), _kv_scratch_bytes(spec, run_config, on_host=on_host)
    heads = f"{spec.layers} layers · {spec.kv_heads} heads · {spec.head_dim}"
    phases = _FROM_PREFILL if place.vision_offloaded or run_config.candidate_frames else _AFTER_LOAD
    yield MemoryPart(KV_CACHE, phases, cache, lambda: f"{capacity} tokens · 2 · {heads} in {run_config.kv}")
    yield MemoryPart(KV_SCRATCH, phases, scratch, lambda: f"{capacity} tokens of one layer in {run_config.dtype}")


def _language_parts(spec: ModelSpec, run_config: RunConfig, *, on_host: bool) -> Iterator[MemoryPart]:
    chunk = activations.chunk_tokens(spec, run_config)
    workspace = activations.attention_workspace_bytes(spec, run_config, chunk)
    logits = activations.logits_bytes(spec, run_config)
    capacity = kv_capacity(spec, run_config)
    scores = 0 if on_host else activations.decode_scores_bytes(spec, run_config, capacity)
    scores = max(scores, activations.attention_workspace_bytes(spec, run_config, 1))
    copied = activations.quantized_copy_bytes(spec, run_config, "lm_head") if run_config.batch > 1 else 0
    positions = 3 * 8 * activations.prompt_tokens(spec, run_config) if on_host else 0  # M-RoPE's, int64
    yield MemoryPart(  # or the last token's logits, after a very small chunk
        "prefill chunk", ("prefill",), max(activations.tokens_bytes(spec, run_config, chunk), logits - workspace),
        lambda: activations.chunk_formula(spec, run_config),
    )  # fmt: skip
    yield MemoryPart(
        "attention workspace", ("prefill",), workspace,
        lambda: f"{run_config.attention}, {chunk} tokens, whatever the cache holds",
    )  # fmt: skip
    step = activations.tokens_bytes(spec, run_config, run_config.batch) + scores
    yield MemoryPart("decode step", ("decode",), step, lambda: "1 token")
    yield MemoryPart(
        "small tensors", _AFTER_LOAD, _SMALL_TENSORS * BLOCK + positions,
        lambda: f"{_SMALL_TENSORS} tensors, {BLOCK} B of rounding each",
    )  # fmt: skip
    if run_config.candidate_frames:
        for name, size, formula in focus_parts(spec, run_config):
            yield MemoryPart(name, ("prefill",), size, partial(str, formula))
    yield MemoryPart("logits", ("decode",), logits + copied, lambda: f"{spec.vocabulary} · last position only")


def tensor_bytes(spec: ModelSpec, run_config: RunConfig, *, host_pixels: int = 0) -> dict[str, int]:
    """Return the bytes of live tensors at each phase's peak."""
    parts = memory_parts(spec, run_config, host_pixels)
    return {phase: _bytes_in(parts, phase) for phase in PHASES}


def _bytes_in(parts: Sequence[MemoryPart], phase: str) -> int:
    return sum(part.bytes for part in parts if phase in part.phases)


def phase_bytes(spec: ModelSpec, run_config: RunConfig, overhead: RuntimeOverhead) -> dict[str, int]:
    """Return the bytes of the process at each phase's peak, without the margin."""
    tensors = tensor_bytes(spec, run_config, host_pixels=overhead.host_pixels)
    return {phase: size + overhead.total_bytes for phase, size in tensors.items()}


def margin_bytes(peak_bytes: int) -> int:
    """Return the bytes to leave free for prediction errors: 3 % of the peak, between 64 and 300 MiB."""
    return min(max(round(peak_bytes * _MARGIN_SHARE), _LEAST_MARGIN_BYTES), MARGIN_LIMIT_BYTES)


def required_bytes(spec: ModelSpec, run_config: RunConfig, overhead: RuntimeOverhead) -> int:
    """Return the budget that a run needs: the largest phase and the margin."""
    peak = max(phase_bytes(spec, run_config, overhead).values())
    return peak + margin_bytes(peak)


def lines_of(
    parts: Sequence[MemoryPart], overhead: RuntimeOverhead
) -> tuple[dict[str, int], str, tuple[MemoryLine, ...]]:
    """Return the process's bytes in each phase, the largest phase, and its lines; they have the margin too."""
    phases = {phase: _bytes_in(parts, phase) + overhead.total_bytes for phase in PHASES}
    worst = max(phases, key=lambda phase: phases[phase])
    lines = [MemoryLine(part.name, part.bytes, part.formula()) for part in parts if worst in part.phases and part.bytes]
    lines += [
        _runtime_line(overhead),
        MemoryLine("matrix library workspace", overhead.workspace_bytes, "cuBLAS, one a stream", "process"),
        MemoryLine(
            "allocator rounding", overhead.allocator_bytes, "a large and a small segment begun, twice", "process"
        ),
        _margin_line(phases[worst]),
    ]
    return phases, worst, tuple(line for line in lines if line.bytes)


def _runtime_line(overhead: RuntimeOverhead) -> MemoryLine:
    return MemoryLine(RUNTIME, overhead.context_bytes, overhead.context_source, "process")


def _margin_line(peak_bytes: int) -> MemoryLine:
    return MemoryLine("margin", margin_bytes(peak_bytes), "3 % of the peak, 64 to 300 MiB", "margin")


def with_runtime(plan: Plan, overhead: RuntimeOverhead) -> Plan:
    """Return the plan with the runtime line of another overhead, measured after the plan was made."""
    line = _runtime_line(overhead)
    more = line.bytes - sum(one.bytes for one in plan.lines if one.name == RUNTIME)
    phases = {phase: size + more for phase, size in plan.phase_bytes.items()}
    margin = _margin_line(phases[plan.peak_phase])
    changed = {RUNTIME: line, margin.name: margin}
    lines = tuple(changed.get(one.name, one) for one in plan.lines)
    return replace(plan, lines=lines, phase_bytes=phases, margin_bytes=margin.bytes)


SHARES = ("weights", "KV cache", "activations", "runtime", "margin")


def memory_shares(plan: Plan) -> Mapping[str, int]:
    """Return a plan's bytes for each of SHARES, for bars; they add up to its `required_bytes`."""
    shares = dict.fromkeys(SHARES, 0)
    for line in plan.lines:
        shares[memory_share(line)] += line.bytes
    return shares


def memory_share(line: MemoryLine) -> str:
    """Return which of SHARES a line of a plan's memory belongs to."""
    if line.kind != "tensors":
        return "margin" if line.kind == "margin" else "runtime"
    if line.name.startswith(("weights", "quantization")):
        return "weights"
    return "KV cache" if line.name.startswith("KV") else "activations"
