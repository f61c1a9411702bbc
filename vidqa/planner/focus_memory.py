"""Memory and time of a question that selects its frames (`--focus`). Arithmetic only.

The candidates' embeddings wait on the host. Parts of them are scored one after the other, in a KV cache of the layers
before the reference layer, beside the keys and the last queries of that layer.
"""

from collections.abc import Iterator

from vidqa.models.block_sizes import PROBE_ROWS
from vidqa.models.family import family_of
from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import (
    attention_workspace_bytes,
    candidate_tokens,
    chunk_tokens,
    tokens_bytes,
    whole_blocks,
)
from vidqa.types import ELEMENT_BYTES, RunConfig

_LEAST_SCORED = 4  # slices that compete for a question's attention in a part of the video
_FLOAT32_BYTES = 4


def reference_layer(spec: ModelSpec) -> int:
    """Return the index of the layer whose attention ranks slices: the family's share of the depth."""
    return min(round(family_of(spec).FOCUS_DEPTH * spec.layers), spec.layers - 1)


def scored_slices(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the slices that are scored together: a prefill chunk of them, if there are so many."""
    each = spec.slice_tokens(run_config.height, run_config.width) + spec.slice_text_tokens
    return max(min(run_config.prefill_chunk // each, spec.slices(run_config.candidate_frames)), _LEAST_SCORED)


def scoring_tokens(spec: ModelSpec, run_config: RunConfig, text_tokens: int) -> int:
    """Return the tokens of a part of the video with the text around it."""
    slices = scored_slices(spec, run_config)
    return slices * (spec.slice_tokens(run_config.height, run_config.width) + spec.slice_text_tokens) + text_tokens


def parked_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of the candidates' embeddings on the host."""
    return candidate_tokens(spec, run_config) * spec.embedding_width * ELEMENT_BYTES[run_config.dtype]


def focus_parts(spec: ModelSpec, run_config: RunConfig) -> Iterator[tuple[str, int, str]]:
    """Yield name, bytes and formula of what the scoring takes in the prefill, beside the cache of the last question."""
    text_tokens = _asked_tokens(run_config)
    layer, tokens = reference_layer(spec), scoring_tokens(spec, run_config, text_tokens)
    capacity = whole_blocks(tokens)
    keys = capacity * spec.kv_heads * spec.head_dim * ELEMENT_BYTES[run_config.dtype]
    queries = 2 * text_tokens * spec.query_width * ELEMENT_BYTES[run_config.dtype]
    yield (
        "focus: first layers' cache", (2 * layer + 1) * keys + queries,
        f"{capacity} tokens · {layer} of {spec.layers} layers, and the keys of one",
    )  # fmt: skip
    rows = min(run_config.prefill_chunk, tokens)
    chunk, planned = (_chunk_bytes(spec, run_config, many) for many in (rows, chunk_tokens(spec, run_config)))
    yield "focus: chunk", max(chunk - planned, 0), f"{rows} tokens, beyond those of a prefill chunk"
    attention = PROBE_ROWS * spec.heads * capacity * (2 * _FLOAT32_BYTES + ELEMENT_BYTES[run_config.dtype]) + keys
    yield (
        "focus: attention", max(attention - chunk, 0),
        f"{PROBE_ROWS} tokens · {spec.heads} heads · {capacity}, beyond a prefill chunk",
    )  # fmt: skip


def _asked_tokens(run_config: RunConfig) -> int:
    """Return the text tokens beside a scored part: subtitles are left out."""
    return run_config.text_tokens - run_config.subtitle_tokens


def _chunk_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    return tokens_bytes(spec, run_config, tokens) + attention_workspace_bytes(spec, run_config, tokens)


def scored_text_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the tokens of all parts of the video with their texts, which run through the first layers."""
    slices = spec.slices(run_config.candidate_frames)
    parts = -(-slices // scored_slices(spec, run_config))
    return slices * spec.slice_text_tokens + parts * _asked_tokens(run_config) + candidate_tokens(spec, run_config)
