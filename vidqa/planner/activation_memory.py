"""Bytes of what lives only while the model runs: the vision tower, a prefill chunk, attention.

Each formula counts the tensors that are alive together at the worst moment of the engine's
own steps, in elements of the compute precision; the derivations stand beside them, and the
replay tests hold them against the real modules. Arithmetic only.
"""

from dataclasses import dataclass
from functools import lru_cache

from vidqa.models.family import family_of
from vidqa.models.spec import ModelSpec
from vidqa.planner.baseline_memory import math_attention_bytes
from vidqa.planner.weight_memory import QUANTIZED, weight_tensors
from vidqa.types import ELEMENT_BYTES, RunConfig

TILE_ROWS = 128  # query positions per tile of the tiled kernel, and rows in one of flex's blocks
BLOCK_KEYS = 1024  # keys that a tile meets at a time
_WIDE = 4  # bytes of float32, in which rotations and logits are computed


def patches_per_slice(spec: ModelSpec, run_config: RunConfig) -> int:
    """Patches of one temporal slice: (height / patch) · (width / patch)."""
    return run_config.height // spec.vision.patch * (run_config.width // spec.vision.patch)


def residual_element_bytes(run_config: RunConfig) -> int:
    """Bytes of an element of the residual streams: float32 beside float16 (models/fp16.py)."""
    return _WIDE if run_config.dtype == "fp16" else ELEMENT_BYTES[run_config.dtype]


def vision_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of a group of slices in the vision tower, and of the copy of its largest quantized matrix."""
    return family_of(spec).vision_bytes(spec, run_config) + quantized_copy_bytes(spec, run_config, "vision")


def group_slices(spec: ModelSpec, run_config: RunConfig) -> int:
    """Temporal slices that are encoded together: the chunk, or all that there are."""
    return min(run_config.vision_chunk, spec.slices(run_config.frames))


def group_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Visual tokens of one group of slices."""
    return group_slices(spec, run_config) * (patches_per_slice(spec, run_config) // spec.vision.merge**2)


def waiting_rows(spec: ModelSpec, run_config: RunConfig, phase: str) -> int:
    """Embeddings on the device that wait for their chunk to be full.

    In the prefill the last group of G, read in part, stays whole; the chunk's own rows are counted
    there. In the vision phase fewer than a chunk of n wait from the groups before: all in one group
    where n ≤ G, else in groups of less than n + G together (a bound that grows with G, as the search
    needs it). Where the tower is moved away first, they wait on the host, and only the group that was
    just encoded is on the device.
    """
    group, every = (
        group_tokens(spec, run_config),
        spec.visual_tokens(run_config.frames, run_config.height, run_config.width),
    )
    if run_config.placement.vision_offloaded:
        return group if phase == "vision" else 0
    if phase == "vision" and every <= group:
        return 0
    together = phase == "prefill" or run_config.prefill_chunk <= group
    return min(every, group if together else run_config.prefill_chunk + group)


def chunk_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """A prefill chunk of n tokens in one layer: H hidden, I inside the MLP.

    MLP, at the product of its two halves: the chunk's embeddings, the layer's input and its norm
    (3·n·H), and what `_mlp_bytes` says: the two halves and their product (3·n·I) where nothing is
    quantized. Attention, while the queries are rotated: also the queries before and after (5·n·H),
    and two halves in float32 (4 bytes · n·H), twice that where queries are normalised.
    Queries are as wide as all heads together, which may differ from H. To all of it what `deepstack` layers add, and
    cosine and sine (4 bytes · n·head_dim). A 4-bit
    layer makes a 16-bit copy of its matrix instead of the product. In float16 the layer's input is
    float32.
    """
    tokens, _ = worst_pass(spec, run_config)
    return tokens_bytes(spec, run_config, tokens)


@lru_cache(maxsize=4096)
def worst_pass(spec: ModelSpec, run_config: RunConfig) -> tuple[int, int]:
    """Tokens of the prefill pass that takes most, and tokens cached at its end.

    The last whole chunk, or the shorter rest behind it, which sees more of the cache.
    """
    total, chunk = prompt_tokens(spec, run_config), run_config.prefill_chunk
    whole = total // chunk * chunk
    passes = [(chunk, whole)] if whole else []
    passes += [(total - whole, total)] if total > whole else []
    return max(
        passes,
        key=lambda one: tokens_bytes(spec, run_config, one[0]) + attention_workspace(spec, run_config, *one).bytes,
    )


def chunk_formula(spec: ModelSpec, run_config: RunConfig) -> str:
    """The larger of the formulas of `chunk_bytes` with its numbers."""
    tokens, _ = worst_pass(spec, run_config)
    hidden, wide = spec.hidden, spec.intermediate
    rows = 2 + residual_element_bytes(run_config) // ELEMENT_BYTES[run_config.dtype]
    if run_config.weights == "int8":
        return f"{tokens} tokens · ({rows} · {hidden} + {wide} in {run_config.dtype}, int32, fp16 and cast)"
    if run_config.weights in QUANTIZED and hidden > tokens:
        return f"{tokens} tokens · ({rows} · {hidden} + 2 · {wide}) + {hidden} · {wide}"
    return f"{tokens} tokens · ({rows} · {hidden} + 3 · {wide})"


def tokens_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """`chunk_bytes` for a given number of tokens."""
    element, rows, queries = ELEMENT_BYTES[run_config.dtype], tokens * spec.hidden, tokens * spec.query_width
    mlp = element * 3 * rows + _mlp_bytes(spec, run_config, tokens)
    halves = (2 if spec.qk_norm else 1) * _WIDE * queries
    rotation = element * (3 * rows + 2 * queries) + halves
    added = element * tokens * (spec.embedding_width - spec.hidden)
    positions = 3 * 8 * tokens  # M-RoPE, int64
    wider = (residual_element_bytes(run_config) - element) * rows
    return max(mlp, rotation) + wider + added + _WIDE * tokens * spec.head_dim + positions


def _mlp_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """The worst moment inside the MLP: the product of its halves, or the second half's matrix.

    int8 (bitsandbytes/backends/default/ops.py, int8_scaled_mm): beside the first half the rows as
    int8, the product in int32, in float16 and cast, and a 64th of the columns as outliers.
    """
    element, wide = ELEMENT_BYTES[run_config.dtype], tokens * spec.intermediate
    product = 3 * element * wide
    if run_config.weights == "int8":
        cast = 0 if run_config.dtype == "fp16" else element
        outliers = 3 * spec.intermediate * spec.hidden // _OUTLIER_SHARE
        return max(product, (element + _WIDE + 2 + cast) * wide + tokens * spec.hidden + outliers)
    if run_config.weights in QUANTIZED and tokens > FUSED_4BIT_ROWS:
        matrix = spec.hidden * spec.intermediate
        # nested: the scales are unpacked to float32 twice (_dequant_linear_fallback)
        scales = 2 * _WIDE * matrix // 64 if run_config.weights == "nf4-dq" else 0
        return max(product, element * (2 * wide + matrix) + scales)
    return product


_OUTLIER_SHARE = 64  # LLM.int8() finds outliers in 0.1 to 1 % of the columns (Dettmers et al. 2022, section 4)
FUSED_4BIT_ROWS = 4  # up to here bitsandbytes 0.50 multiplies without a copy on every GPU (backends/cuda/ops.py)


def quantized_copy_bytes(spec: ModelSpec, run_config: RunConfig, part: str) -> int:
    """The 16-bit copy of a part's largest matrix, where that part is quantized."""
    if run_config.weights not in QUANTIZED:
        return 0
    element = ELEMENT_BYTES[run_config.dtype]
    if part == "vision" and run_config.placement.vision_quantized:
        matrices = (one for one in weight_tensors(spec) if one.part == "vision" and one.matrix)
        return element * max(one.rows * one.columns for one in matrices)
    if part == "lm_head" and run_config.placement.lm_head_quantized:
        return element * spec.vocabulary * spec.hidden
    return 0


# Bytes a vocabulary entry that choosing a token takes beside its logits (engine/sampler.py): whether all are finite;
# with a temperature also probabilities, sorted with their places (int64), summed twice, and masked.
_GREEDY, _SAMPLING = 8, 32


def logits_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Logits of the last position only, in float32, and what they are made of or chosen with: vocabulary · (4 + 8).

    Before they are in float32 they are in the compute precision, beside those of the step before: at most 8 bytes.
    """
    return spec.vocabulary * (_WIDE + (_SAMPLING if run_config.sampled else _GREEDY)) * run_config.batch


def prompt_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Tokens to prefill: the video's, the text's, and the text between slices."""
    between = spec.slices(run_config.frames) * spec.slice_text_tokens
    return spec.visual_tokens(run_config.frames, run_config.height, run_config.width) + run_config.text_tokens + between


@dataclass(frozen=True, slots=True)
class Workspace:
    """What an attention kernel allocates beside its output: bytes and their formula."""

    bytes: int
    formula: str


def attention_workspace(spec: ModelSpec, run_config: RunConfig, chunk: int, cached: int) -> Workspace:
    """What the chosen kernel takes beyond `tokens_bytes` in a pass of `chunk` tokens that ends with `cached` ones.

    None of vidqa's kernels grows with the cache. math: the score matrices that nothing in vidqa
    allocates, for comparison.
    """
    if run_config.attention == "math":
        scores = math_attention_bytes(spec.heads, chunk, cached)
        return Workspace(scores, f"{chunk} · {cached} · ({spec.heads} heads · 9 B + 4 B)")
    beyond = _attend_bytes(spec, run_config, chunk) - tokens_bytes(spec, run_config, chunk)
    return Workspace(max(beyond, 0), f"{chunk} tokens, whatever the cache holds")


def _attend_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """A layer inside the attention: embeddings, the layer's input, queries (3·n·H), keys and values (2·n·K), and

    flash, cudnn: outputs for the past and for the chunk itself with their log-sum-exps.
    efficient: the same, the queries folded, and the output unfolded.
    flex: queries and output padded to whole blocks. tiled: the output, and for a tile its queries
    in float32 (three times, with two running outputs), scores twice and a block of keys.
    """
    element, rows, queries = ELEMENT_BYTES[run_config.dtype], tokens * spec.hidden, tokens * spec.query_width
    added = tokens * (spec.embedding_width - spec.hidden)
    base = (residual_element_bytes(run_config) - element) * rows
    base += element * (2 * rows + queries + added + 2 * tokens * spec.kv_heads * spec.head_dim)
    sums = tokens * spec.heads * (3 * _WIDE + element)
    if run_config.attention == "flex":
        padded = -(-tokens // TILE_ROWS) * TILE_ROWS
        return base + element * 2 * padded * spec.query_width + padded * spec.heads * _WIDE
    if run_config.attention == "tiled":
        tile, block = min(tokens, TILE_ROWS), spec.kv_heads * BLOCK_KEYS * spec.head_dim
        return (
            base
            + element * queries
            + _WIDE * (6 * tile * spec.query_width + 2 * tile * spec.heads * BLOCK_KEYS + block)
        )
    return base + element * (4 if run_config.attention == "efficient" else 2) * queries + sums


INT8_BLOCK_TOKENS = 1024  # int8 keys or values that a decode step has in the compute precision at a time


def decode_scores_bytes(spec: ModelSpec, run_config: RunConfig, capacity: int) -> int:
    """Scores of one new token over the whole cache: in float32, their softmax, and that in the compute precision.

    Of an int8 cache also a block of its keys or values in the compute precision. The fused layers take less: for at
    least 128 tokens of a head one sum of d + 2 float32.
    """
    scores = run_config.batch * spec.heads * capacity * (2 * _WIDE + ELEMENT_BYTES[run_config.dtype])
    if run_config.kv != "int8":
        return scores
    block = min(INT8_BLOCK_TOKENS, capacity) * spec.kv_heads * spec.head_dim * ELEMENT_BYTES[run_config.dtype]
    return scores + run_config.batch * block
