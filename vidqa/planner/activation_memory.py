"""Memory of activations: the vision tower, a prefill chunk, attention, logits. Arithmetic only.

Each formula counts the tensors that are alive together at the peak of the engine's steps. tests/planner/test_replay.py
compares them with the real modules.
"""

from vidqa.models.block_sizes import (
    CPU_LINEAR_COLUMNS,
    CPU_LINEAR_ROWS,
    FLEX_BLOCK,
    INT4_GROUP,
    INT4_PACKED_ROWS,
    INT8_BLOCK_TOKENS,
    KV_BLOCK_TOKENS,
    TILE_KEYS,
    TILE_QUERIES,
)
from vidqa.models.family import family_of
from vidqa.models.spec import ModelSpec
from vidqa.planner.weight_memory import QUANTIZED, runs_on_cpu_layers, weight_tensors
from vidqa.types import ELEMENT_BYTES, RunConfig

_FLOAT32_BYTES = 4  # rotations, log-sum-exps and logits are computed in float32
_OUTLIER_SHARE = 64  # LLM.int8() finds outliers in 0.1 to 1 % of the columns (Dettmers et al. 2022, section 4)
_FUSED_4BIT_ROWS = 4  # bitsandbytes 0.50 multiplies up to 4 rows without a copy on every GPU (backends/cuda/ops.py)
# Bytes per vocabulary entry to choose a token from float32 logits (engine/sampler.py): whether all are finite; with a
# temperature also probabilities, sorted with their indices (int64), their sums twice, and masked.
_GREEDY_BYTES, _SAMPLING_BYTES = 8, 32
# A text is planned as its UTF-8 bytes: of so short a one about 20 rows follow the video, which the margin holds.
_SHORT_TEXT_TOKENS = 100
# Of dropped tokens (`--prune`): every temporal slice keeps at least one token in so many, and the first one is whole.
LEAST_SHARE = 16


def least_slice_tokens(slice_tokens: int) -> int:
    """Return the fewest tokens that a slice keeps."""
    return -(-slice_tokens // LEAST_SHARE)


def kept_tokens(spec: ModelSpec, frames: int, height: int, width: int, share: float) -> int:
    """Return the most visual tokens of frames of which a share is kept, and what every slice keeps at least."""
    slices, each = spec.slices(frames), spec.slice_tokens(height, width)
    if share >= 1:
        return slices * each
    return max(int(share * slices * each), each + (slices - 1) * least_slice_tokens(each))


def kept_visual_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the most visual tokens of a run's prompt."""
    return kept_tokens(spec, run_config.frames, run_config.height, run_config.width, run_config.visual_share)


def kept_video_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the most tokens of a video in a prompt: its pictures', and the text's between its slices."""
    return kept_visual_tokens(spec, run_config) + spec.slices(run_config.frames) * spec.slice_text_tokens


def drops_tokens(run_config: RunConfig) -> bool:
    """Return whether a run drops visual tokens."""
    return run_config.drop_repeats or run_config.visual_share < 1


def patches_per_slice(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the patches of one temporal slice: (height / patch) · (width / patch)."""
    return run_config.height // spec.vision.patch * (run_config.width // spec.vision.patch)


def residual_element_bytes(run_config: RunConfig) -> int:
    """Return the bytes of an element of the residual streams: float32 beside float16 (models/fp16.py)."""
    return _FLOAT32_BYTES if run_config.dtype == "fp16" else ELEMENT_BYTES[run_config.dtype]


def vision_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of a group of slices in the vision tower, and of the copy of its largest quantized matrix."""
    return family_of(spec).vision_bytes(spec, run_config) + quantized_copy_bytes(spec, run_config, "vision")


def encoded_frames(run_config: RunConfig) -> int:
    """Return the frames that are decoded and go through the vision tower."""
    return run_config.candidate_frames or run_config.frames


def group_slices(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the temporal slices that are encoded together."""
    return min(run_config.vision_chunk, spec.slices(encoded_frames(run_config)))


def group_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the visual tokens of one group of slices."""
    return group_slices(spec, run_config) * (patches_per_slice(spec, run_config) // spec.vision.merge**2)


def waiting_rows(spec: ModelSpec, run_config: RunConfig, phase: str) -> int:
    """Return the embeddings on the device that wait for a full prefill chunk, in the `vision` or `prefill` phase.

    The chunk's own rows are counted in `tokens_bytes`. The text between slices waits with them. Frames that a question
    selects, and those of an offloaded tower, wait on the host.
    """
    return (
        _rows_waiting_in_prefill(spec, run_config) if phase == "prefill" else _rows_waiting_in_vision(spec, run_config)
    )


def _rows_waiting_in_vision(spec: ModelSpec, run_config: RunConfig) -> int:
    group, chunk = _group_rows(spec, run_config), run_config.prefill_chunk
    if _waits_on_host(run_config):  # all but the group that was just encoded
        return group
    total, subtitles = kept_video_tokens(spec, run_config), run_config.subtitle_tokens if spec.slice_text_tokens else 0
    lines = min(run_config.text_tokens, chunk) if subtitles else 0  # a piece of subtitles between slices stays whole
    if drops_tokens(run_config):  # groups may be small: less than a chunk and a group wait
        return min(total, chunk + group) + lines
    if total <= group:
        return 0
    # Fewer than a chunk wait from the groups before: all of them in one group where a chunk is no larger, else in
    # groups of less than a chunk and a group together. This bound grows with the group, as the search requires.
    return min(total + subtitles, (group if chunk <= group else chunk + group) + lines)


def _rows_waiting_in_prefill(spec: ModelSpec, run_config: RunConfig) -> int:
    # A long text (subtitles, a question or conversation) can fill a chunk beside the last group.
    long_text = run_config.subtitle_tokens > 0 or run_config.text_tokens > _SHORT_TEXT_TOKENS
    lines = min(run_config.text_tokens, run_config.prefill_chunk) if long_text else 0
    if not _waits_on_host(run_config):  # the last group stays whole
        return min(kept_video_tokens(spec, run_config), _group_rows(spec, run_config)) + lines
    # Where text between slices, or a selection, shifts the chunks, the slice of which a part was prefilled stays whole.
    shifted = spec.slice_text_tokens or run_config.candidate_frames
    slice_tokens = spec.slice_tokens(run_config.height, run_config.width) if shifted else 0
    return min(slice_tokens, run_config.prefill_chunk) + lines


def _group_rows(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the rows of one group of slices, with the text between them."""
    return group_tokens(spec, run_config) + group_slices(spec, run_config) * spec.slice_text_tokens


def _waits_on_host(run_config: RunConfig) -> bool:
    return run_config.placement.vision_offloaded or run_config.candidate_frames > 0


def candidate_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the visual tokens of all candidates; 0 where all frames are read."""
    return spec.visual_tokens(run_config.candidate_frames, run_config.height, run_config.width)


def whole_blocks(tokens: int) -> int:
    """Return the tokens that a KV cache for `tokens` holds, in whole blocks."""
    return -(-tokens // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS


def prompt_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the tokens to prefill: visual tokens, the text around the video, and text between slices."""
    return kept_video_tokens(spec, run_config) + run_config.text_tokens


def chunk_tokens(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the tokens of the largest prefill chunk."""
    return min(run_config.prefill_chunk, prompt_tokens(spec, run_config))


def chunk_formula(spec: ModelSpec, run_config: RunConfig) -> str:
    """Return the larger of the formulas of `tokens_bytes` with its numbers."""
    tokens, hidden, wide = chunk_tokens(spec, run_config), spec.hidden, spec.intermediate
    rows = 2 + spec.deepstack + residual_element_bytes(run_config) // ELEMENT_BYTES[run_config.dtype]
    if runs_on_cpu_layers(spec, run_config):
        return f"{tokens} tokens · ({rows} · {hidden} + 2 · {wide}), and a part of a layer"
    if run_config.weights == "int8":
        return f"{tokens} tokens · ({rows} · {hidden} + {wide} in {run_config.dtype}, int32, fp16 and cast)"
    if run_config.weights in QUANTIZED and hidden > tokens:
        return f"{tokens} tokens · ({rows} · {hidden} + 2 · {wide}) + {hidden} · {wide}"
    return f"{tokens} tokens · ({rows} · {hidden} + 3 · {wide})"


def tokens_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """Return the bytes of n tokens in one decoder layer: H hidden, Q wide queries, I inside the MLP.

    MLP, at the product of its two halves: the embeddings, the layer's input and its norm (3·n·H), and `_mlp_bytes`:
    the two halves and their product (3·n·I) if nothing is quantized. Attention, while the queries are rotated: the same
    three, the queries before and after (2·n·Q), and two halves in float32 (4 bytes · n·Q), twice that if queries are
    normalised. To the larger of both: the rows that `deepstack` layers add, cosine and sine (4 bytes · n·head_dim), and
    M-RoPE positions. In float16 the layer's input is float32.
    """
    element, rows, queries = ELEMENT_BYTES[run_config.dtype], tokens * spec.hidden, tokens * spec.query_width
    mlp = element * 3 * rows + _mlp_bytes(spec, run_config, tokens)
    halves = (2 if spec.qk_norm else 1) * _FLOAT32_BYTES * queries
    rotation = element * (3 * rows + 2 * queries) + halves
    added = element * tokens * (spec.embedding_width - spec.hidden)
    positions = 3 * 8 * tokens  # int64
    wider = (residual_element_bytes(run_config) - element) * rows
    return max(mlp, rotation) + wider + added + _FLOAT32_BYTES * tokens * spec.head_dim + positions


def _mlp_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """Return the peak inside the MLP: the product of its halves, or the 16-bit copy of the second half's matrix.

    int8 (bitsandbytes/backends/default/ops.py, int8_scaled_mm): beside the first half the rows as
    int8, the product in int32, in float16 and cast, and a 64th of the columns as outliers.
    """
    element, wide = ELEMENT_BYTES[run_config.dtype], tokens * spec.intermediate
    product, matrix = 3 * element * wide, spec.hidden * spec.intermediate
    if runs_on_cpu_layers(spec, run_config):
        return max(product, _cpu_layer_bytes(spec, run_config, tokens))
    if run_config.weights == "int8":
        cast = 0 if run_config.dtype == "fp16" else element
        outliers = 3 * matrix // _OUTLIER_SHARE
        return max(product, (element + _FLOAT32_BYTES + 2 + cast) * wide + tokens * spec.hidden + outliers)
    if run_config.weights in QUANTIZED and tokens > _FUSED_4BIT_ROWS:
        # nested: the scales are unpacked to float32 twice (_dequant_linear_fallback)
        scales = 2 * _FLOAT32_BYTES * matrix // 64 if run_config.weights == "nf4-dq" else 0
        return max(product, element * (2 * wide + matrix) + scales)
    return product


def _cpu_layer_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """Return the peak inside an MLP whose layers are models/cpu_linear.py's.

    int8: in the second half, beside the first: its result, and of some rows the codes, the product in int32 and float32
    and their part of the result's precision. int4: for some output channels of the last matrix their bf16 weights, with
    scales and offsets, and the product of one half of them, beside its input and its result.
    """
    element, wide, hidden = ELEMENT_BYTES[run_config.dtype], spec.intermediate, spec.hidden
    if run_config.weights == "int8":
        rows = min(tokens, CPU_LINEAR_ROWS)
        return 2 * element * tokens * wide + rows * (2 * _FLOAT32_BYTES * wide + hidden)
    if tokens <= INT4_PACKED_ROWS:
        return 0
    cast = element if run_config.dtype == "fp32" else 0

    def copied(inputs: int, outputs: int) -> int:
        channels = min(outputs, CPU_LINEAR_COLUMNS)
        return channels * inputs * (2 + cast) + 4 * channels * inputs // INT4_GROUP + element * tokens * channels // 2

    first = element * 2 * tokens * wide + copied(hidden, wide)
    return max(first, element * tokens * (wide + hidden) + copied(wide, hidden))


def quantized_copy_bytes(spec: ModelSpec, run_config: RunConfig, part: str) -> int:
    """Return the bytes of the 16-bit copy of a part's largest matrix; 0 if that part is not quantized."""
    if run_config.weights not in QUANTIZED or runs_on_cpu_layers(spec, run_config):
        return 0
    element = ELEMENT_BYTES[run_config.dtype]
    if part == "vision" and run_config.placement.vision_quantized:
        matrices = (one for one in weight_tensors(spec) if one.part == "vision" and one.matrix)
        return element * max(one.rows * one.columns for one in matrices)
    if part == "lm_head" and run_config.placement.lm_head_quantized:
        return element * spec.vocabulary * spec.hidden
    return 0


def logits_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of the last position's float32 logits and of choosing a token: vocabulary · (4 + 8), or 4 + 32.

    Before they are float32 they are in the compute precision, beside those of the step before: at most 8 bytes.
    """
    choosing = _SAMPLING_BYTES if run_config.sampled else _GREEDY_BYTES
    return spec.vocabulary * (_FLOAT32_BYTES + choosing) * run_config.batch


def attention_workspace_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """Return what the attention kernel takes beyond `tokens_bytes` in a pass of n tokens, however many are cached."""
    return max(_attention_bytes(spec, run_config, tokens) - tokens_bytes(spec, run_config, tokens), 0)


def _attention_bytes(spec: ModelSpec, run_config: RunConfig, tokens: int) -> int:
    """Return the bytes of a layer inside attention: embeddings and input (2·n·H), queries (n·Q), keys and values, and

    flash, cudnn: outputs for the past and for the chunk itself with their log-sum-exps.
    efficient: the same, the queries folded, and the output unfolded.
    flex: queries and output padded to whole blocks. tiled: the output, and for a tile its queries
    in float32 (three times, with two running outputs), scores twice and a block of keys.
    """
    element, rows, queries = ELEMENT_BYTES[run_config.dtype], tokens * spec.hidden, tokens * spec.query_width
    added = tokens * (spec.embedding_width - spec.hidden)
    base = (residual_element_bytes(run_config) - element) * rows
    base += element * (2 * rows + queries + added + 2 * tokens * spec.kv_heads * spec.head_dim)
    if run_config.attention == "flex":
        padded = -(-tokens // FLEX_BLOCK) * FLEX_BLOCK
        return base + element * 2 * padded * spec.query_width + padded * spec.heads * _FLOAT32_BYTES
    if run_config.attention == "tiled":
        tile, keys = min(tokens, TILE_QUERIES), spec.kv_heads * TILE_KEYS * spec.head_dim
        floats = 6 * tile * spec.query_width + 2 * tile * spec.heads * TILE_KEYS + keys
        return base + element * queries + _FLOAT32_BYTES * floats
    sums = tokens * spec.heads * (3 * _FLOAT32_BYTES + element)
    return base + element * (4 if run_config.attention == "efficient" else 2) * queries + sums


def decode_scores_bytes(spec: ModelSpec, run_config: RunConfig, capacity: int) -> int:
    """Return the bytes of one new token's scores over the whole cache: in float32, softmax, and compute precision.

    An int8 cache adds a block of its keys or values in the compute precision. The fused layers take less: for at
    least 128 tokens of a head one sum of d + 2 float32.
    """
    element = ELEMENT_BYTES[run_config.dtype]
    scores = run_config.batch * spec.heads * capacity * (2 * _FLOAT32_BYTES + element)
    if run_config.kv != "int8":
        return scores
    block = min(INT8_BLOCK_TOKENS, capacity) * spec.kv_heads * spec.head_dim * element
    return scores + run_config.batch * block
