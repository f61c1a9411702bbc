"""A draft's memory, part by part and phase by phase: the sum of the parts that are alive.

Phases follow each other (load, vision, prefill, decode), so the peak is the largest of them
and not their sum. Every part says its bytes, its formula and when it is there. Arithmetic
only: this file looks at no device.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from vidqa.devices.device import BLOCK
from vidqa.models.spec import ModelSpec
from vidqa.planner import activation_memory
from vidqa.planner.weight_memory import part_bytes, part_precision, staging_bytes
from vidqa.types import ELEMENT_BYTES, PHASES, MemoryLine, Placement, Plan, RunConfig

KV_ROUND_TOKENS = 128  # the cache holds whole attention blocks
MARGIN_LIMIT_BYTES = 300 * 2**20
RUNTIME = "runtime"  # the line of what the process holds before any tensor
GROUPS_AHEAD = 2  # groups of pictures that may be ready before the vision tower takes them
_MARGIN_SHARE = 0.03  # of the predicted peak: what a prediction may be off by
_LEAST_MARGIN_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class RuntimeOverhead:
    """What a process takes on a device before any tensor: the runtime's own memory and its workspaces.

    `host_pixels`: where the device is the host itself, the pixels of a source frame that is resized
    there; else 0. Moving something to the host saves nothing then.
    """

    context_bytes: int
    context_source: str
    workspace_bytes: int
    allocator_bytes: int
    host_pixels: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One line of the table: when it is alive, its bytes and its formula for a draft."""

    name: str
    phases: frozenset[str]
    bytes: Callable[[ModelSpec, RunConfig, int], int]
    formula: Callable[[ModelSpec, RunConfig], str]


def kv_capacity(spec: ModelSpec, run_config: RunConfig) -> int:
    """Tokens that the KV cache holds: prompt, answer and what is kept free for more, in whole blocks."""
    tokens = activation_memory.prompt_tokens(spec, run_config) + run_config.max_tokens + run_config.spare_tokens
    return -(-tokens // KV_ROUND_TOKENS) * KV_ROUND_TOKENS


def kv_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """The whole KV cache, wherever it lies: 2 · layers · kv_heads · head_dim values a token, int8 with a scale."""
    tokens = kv_capacity(spec, run_config) * run_config.batch
    if run_config.kv != "int8":
        return tokens * spec.kv_bytes_per_token(ELEMENT_BYTES[run_config.kv])
    return tokens * spec.kv_bytes_per_token(1) + _scale_bytes(spec, run_config)


def _scale_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """The float16 scales of an int8 cache: one for each key and value of a token and layer."""
    return (
        kv_capacity(spec, run_config) * run_config.batch * 2 * spec.layers * spec.kv_heads * 2
        if run_config.kv == "int8"
        else 0
    )


def _kv_on_device(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    if run_config.placement.kv_on_host and not host_pixels:
        return _scale_bytes(spec, run_config)
    return kv_bytes(spec, run_config)


def _kv_scratch(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    """One layer's keys and values as they are read, where the cache cannot be read as it lies."""
    if run_config.kv != "int8" and not run_config.placement.kv_on_host:
        return 0
    tokens = kv_capacity(spec, run_config) * run_config.batch
    arriving = (
        1 if run_config.kv == "int8" and run_config.placement.kv_on_host and not host_pixels else 0
    )  # byte per value
    return tokens * 2 * spec.kv_heads * spec.head_dim * (ELEMENT_BYTES[run_config.dtype] + arriving)


def _waiting(phase: str) -> Callable[[ModelSpec, RunConfig, int], int]:
    def count(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
        rows = activation_memory.waiting_rows(spec, run_config, phase)
        return rows * spec.embedding_width * ELEMENT_BYTES[run_config.dtype]

    return count


def _kept_rows(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    """All vision embeddings, which are kept on the host, where that is the device."""
    tokens = spec.visual_tokens(run_config.frames, run_config.height, run_config.width) * run_config.batch
    return tokens * spec.embedding_width * ELEMENT_BYTES[run_config.dtype] if host_pixels else 0


def _streaming(kv: Callable[[ModelSpec, RunConfig, int], int]) -> Callable[[ModelSpec, RunConfig, int], int]:
    """The KV cache while vision and prefill take turns; where the tower leaves first, it is made later."""

    def count(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
        return 0 if run_config.placement.vision_offloaded else kv(spec, run_config, host_pixels)

    return count


@cache
def _part(spec: ModelSpec, part: str, weights: str, dtype: str, placement: Placement) -> int:
    return part_bytes(spec, part, weights, dtype, placement)


def _weights(part: str) -> Callable[[ModelSpec, RunConfig, int], int]:
    def count(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
        if part == "embedding" and run_config.placement.embedding_on_host and not host_pixels:
            return 0
        return _part(spec, part, run_config.weights, run_config.dtype, run_config.placement)

    return count


def _resident_vision(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    return (
        _weights("vision")(spec, run_config, host_pixels)
        if host_pixels or not run_config.placement.vision_offloaded
        else 0
    )


def _passing_vision(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    return _weights("vision")(spec, run_config, host_pixels) - _resident_vision(spec, run_config, host_pixels)


def _precision(part: str) -> Callable[[ModelSpec, RunConfig], str]:
    def formula(spec: ModelSpec, run_config: RunConfig) -> str:
        from vidqa.planner.weight_memory import parameters

        precision = part_precision(part, run_config.weights, run_config.dtype, run_config.placement)
        return f"{parameters(spec, part):,} parameters in {precision}"

    return formula


def _staging(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    return staging_bytes(spec, run_config.weights, run_config.dtype, run_config.placement)


def _pixels(spec: ModelSpec, run_config: RunConfig) -> int:
    """A group of V values on its way from pictures to patches: uint8 once, float32 twice."""
    return (
        9
        * activation_memory.group_slices(spec, run_config)
        * activation_memory.patches_per_slice(spec, run_config)
        * (spec.vision.patch_values)
    )


def _vision(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    """The tower, or the pixels that become its input."""
    return max(activation_memory.vision_bytes(spec, run_config), _pixels(spec, run_config))


def frames_ahead_bytes(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    """Pictures that wait for the tower, where the device is the host, and a source frame of P pixels that is resized:
    itself, in float32, its rows resized (P · w/W, about sqrt(P·h·w)), the result."""
    if not host_pixels:
        return 0
    picture = run_config.height * run_config.width
    waiting = min((GROUPS_AHEAD + 1) * run_config.vision_chunk * spec.vision.temporal_patch, run_config.frames)
    return 3 * (waiting * picture + 5 * host_pixels + 4 * math.isqrt(host_pixels * picture) + 5 * picture)


def _one_token(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    capacity = kv_capacity(spec, run_config)
    scores = 0 if host_pixels else activation_memory.decode_scores_bytes(spec, run_config, capacity)
    workspace = activation_memory.attention_workspace(spec, run_config, 1, capacity).bytes
    return activation_memory.tokens_bytes(spec, run_config, run_config.batch) + max(scores, workspace)


def _chunk(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    """A chunk in its layers, or the last token's logits after a very small one."""
    logits = activation_memory.logits_bytes(spec, run_config) - _workspace(spec, run_config).bytes
    return max(activation_memory.chunk_bytes(spec, run_config), logits)


def _workspace(spec: ModelSpec, run_config: RunConfig) -> activation_memory.Workspace:
    return activation_memory.attention_workspace(spec, run_config, *activation_memory.worst_pass(spec, run_config))


def _logits(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    copied = activation_memory.quantized_copy_bytes(spec, run_config, "lm_head") if run_config.batch > 1 else 0
    return activation_memory.logits_bytes(spec, run_config) + copied


_SMALL_TENSORS = 64


def _small(spec: ModelSpec, run_config: RunConfig, host_pixels: int) -> int:
    """Rounding of small tensors; on the host also the whole prompt's M-RoPE positions (3 int64)."""
    positions = 3 * 8 * activation_memory.prompt_tokens(spec, run_config) if host_pixels else 0
    return _SMALL_TENSORS * BLOCK + positions


def _waiting_formula(spec: ModelSpec, run_config: RunConfig) -> str:
    group = activation_memory.group_tokens(spec, run_config)
    return f"a group of {group} tokens, chunks of {run_config.prefill_chunk} · {spec.embedding_width}"


def _kv_formula(spec: ModelSpec, run_config: RunConfig) -> str:
    heads = f"{spec.layers} layers · {spec.kv_heads} heads · {spec.head_dim}"
    return f"{kv_capacity(spec, run_config)} tokens · 2 · {heads} in {run_config.kv}"


def _scratch_formula(spec: ModelSpec, run_config: RunConfig) -> str:
    return f"{kv_capacity(spec, run_config)} tokens of one layer in {run_config.dtype}"


_ALWAYS = frozenset(PHASES)
_SEEN = frozenset(("vision", "prefill", "decode"))
_READING = frozenset(("prefill", "decode"))
PARTS = (
    MemoryPart("weights: language model", _ALWAYS, _weights("layers"), _precision("layers")),
    MemoryPart("weights: embedding table", _ALWAYS, _weights("embedding"), _precision("embedding")),
    MemoryPart("weights: lm_head", _ALWAYS, _weights("lm_head"), _precision("lm_head")),
    MemoryPart("weights: vision tower", _ALWAYS, _resident_vision, _precision("vision")),
    MemoryPart("weights: vision tower, until the prefill", frozenset(("load", "vision")), _passing_vision,
         _precision("vision")),
    MemoryPart("quantization staging", frozenset(("load",)), _staging,
         lambda spec, run: "the largest matrix, one at a time"),
    MemoryPart("vision activations", frozenset(("vision",)), _vision,
         lambda spec, run: f"{activation_memory.group_slices(spec, run)} slices of "
         f"{activation_memory.patches_per_slice(spec, run)} patches · {spec.vision.embed_dim}"),
    MemoryPart("frames on their way", frozenset(("vision", "prefill")), frames_ahead_bytes,
         lambda spec, run: f"{GROUPS_AHEAD} groups of pictures, and one that is resized"),
    MemoryPart("vision embeddings, waiting", frozenset(("vision",)), _waiting("vision"), _waiting_formula),
    MemoryPart("vision embeddings, waiting for a chunk", frozenset(("prefill",)), _waiting("prefill"),
         _waiting_formula),
    MemoryPart("vision embeddings, kept", _SEEN, _kept_rows,
         lambda spec, run: f"{spec.visual_tokens(run.frames, run.height, run.width)} tokens · {spec.embedding_width} · "
         f"{ELEMENT_BYTES[run.dtype]} B"),
    MemoryPart("KV cache", frozenset(("vision",)), _streaming(_kv_on_device), _kv_formula),
    MemoryPart("KV scratch", frozenset(("vision",)), _streaming(_kv_scratch), _scratch_formula),
    MemoryPart("KV cache", _READING, _kv_on_device, _kv_formula),
    MemoryPart("KV scratch", _READING, _kv_scratch, _scratch_formula),
    MemoryPart("prefill chunk", frozenset(("prefill",)), _chunk,
         activation_memory.chunk_formula),
    MemoryPart("attention workspace", frozenset(("prefill",)), lambda spec, run, _: _workspace(spec, run).bytes,
         lambda spec, run: f"{run.attention}, {_workspace(spec, run).formula}"),
    MemoryPart("decode step", frozenset(("decode",)), _one_token, lambda spec, run: "1 token"),
    MemoryPart("small tensors", _SEEN,
         _small,
         lambda spec, run: f"{_SMALL_TENSORS} tensors, {BLOCK} B of rounding each"),
    MemoryPart("logits", frozenset(("decode",)), _logits, lambda spec, run: f"{spec.vocabulary} · last position only"),
)  # fmt: skip


def tensor_bytes(spec: ModelSpec, run_config: RunConfig, *, host_pixels: int = 0) -> dict[str, int]:
    """Bytes of living tensors at each phase's worst moment."""
    sizes = [(part.phases, part.bytes(spec, run_config, host_pixels)) for part in PARTS]
    return {phase: sum(size for phases, size in sizes if phase in phases) for phase in PHASES}


def phase_bytes(spec: ModelSpec, run_config: RunConfig, around: RuntimeOverhead) -> dict[str, int]:
    """Bytes of the process at each phase's worst moment, without the margin."""
    fixed = around.context_bytes + around.workspace_bytes + around.allocator_bytes
    return {
        phase: size + fixed for phase, size in tensor_bytes(spec, run_config, host_pixels=around.host_pixels).items()
    }


def margin_bytes(peak_bytes: int) -> int:
    """What is kept free for what no formula knows: 3 % of the peak, between 64 and 300 MiB."""
    return min(max(round(peak_bytes * _MARGIN_SHARE), _LEAST_MARGIN_BYTES), MARGIN_LIMIT_BYTES)


def required_bytes(spec: ModelSpec, run_config: RunConfig, around: RuntimeOverhead) -> int:
    """What a budget must hold for this draft: the largest phase and the margin."""
    peak = max(phase_bytes(spec, run_config, around).values())
    return peak + margin_bytes(peak)


def memory_lines(spec: ModelSpec, run_config: RunConfig, around: RuntimeOverhead) -> tuple[str, tuple[MemoryLine, ...]]:
    """The phase that takes most, and its parts with their formulas; they add up to `required_bytes`."""
    phases = phase_bytes(spec, run_config, around)
    worst = max(phases, key=lambda phase: phases[phase])
    lines = [
        MemoryLine(part.name, size, part.formula(spec, run_config))
        for part in PARTS
        if worst in part.phases and (size := part.bytes(spec, run_config, around.host_pixels))
    ]
    lines += [
        MemoryLine(RUNTIME, around.context_bytes, around.context_source, "process"),
        MemoryLine("matrix library workspace", around.workspace_bytes, "cuBLAS, one a stream", "process"),
        MemoryLine("allocator rounding", around.allocator_bytes, "a large and a small segment begun, twice", "process"),
        _margin_line(phases[worst]),
    ]
    return worst, tuple(line for line in lines if line.bytes)


def _margin_line(peak_bytes: int) -> MemoryLine:
    return MemoryLine("margin", margin_bytes(peak_bytes), "3 % of the peak, 64 to 300 MiB", "margin")


def with_runtime(plan: Plan, around: RuntimeOverhead) -> Plan:
    """The plan with another runtime line: what the process holds is known better than when it was made."""
    line = MemoryLine(RUNTIME, around.context_bytes, around.context_source, "process")
    more = line.bytes - sum(one.bytes for one in plan.lines if one.name == RUNTIME)
    phases = {phase: size + more for phase, size in plan.phase_bytes.items()}
    margin = _margin_line(phases[plan.peak_phase])
    changed = {RUNTIME: line, margin.name: margin}
    lines = tuple(changed.get(one.name, one) for one in plan.lines)
    return replace(plan, lines=lines, phase_bytes=phases, margin_bytes=margin.bytes)


def breakdown(lines: tuple[MemoryLine, ...]) -> Mapping[str, int]:
    """Bytes by name, for bars and tables."""
    return {line.name: line.bytes for line in lines}


def rounding_bytes() -> int:
    """A large and a small segment of CUDA's caching allocator that are begun but not filled: 20 and 2 MiB.

    Of the usual pool, and of the captured decode step's.
    """
    return 2 * (20 * 2**20 + 2 * 2**20 + BLOCK)
