"""Memory of plain transformers: one pass over the whole prompt with unfused attention. Arithmetic only.

That is what runs where no fused kernel accepts grouped queries, as on a T4. `vidqa plan` prints it for comparison.
"""

from vidqa.models.spec import ModelSpec
from vidqa.planner.weight_memory import parameters
from vidqa.types import ELEMENT_BYTES

_FLOAT32_BYTES = 4  # the math kernel computes 16-bit attention in float32


def score_matrix_bytes(heads: int, rows: int, columns: int, element_bytes: int) -> int:
    """Return the bytes of one score per head, query and key: heads · n · m · bytes."""
    return heads * rows * columns * element_bytes


def math_attention_bytes(heads: int, rows: int, columns: int) -> int:
    """Return the unbounded part of PyTorch's math kernel (aten/native/transformers/attention.cpp) in 16-bit.

    Scores and probabilities in float32, a bool per score inside _safe_softmax, and the causal
    mask in float32: n · m · (heads · (4 + 4 + 1) + 4).
    """
    return score_matrix_bytes(heads, rows, columns, 2 * _FLOAT32_BYTES + 1) + rows * columns * _FLOAT32_BYTES


def vanilla_peak_bytes(spec: ModelSpec, visual_tokens: int, text_tokens: int, dtype: str) -> int:
    """Return the peak of plain transformers in 16-bit with logits of the last token only.

    Weights, the whole-prompt KV cache, the processor's float32 pixels, the embeddings, and in
    the last layer: its input and norm, the queries, and for the math kernel the queries twice
    and the keys and values with repeated heads in float32.
    """
    element, tokens = ELEMENT_BYTES[dtype], visual_tokens + text_tokens
    pixels = visual_tokens * spec.vision.merge**2 * spec.vision.patch_values * _FLOAT32_BYTES
    embeddings = element * spec.hidden * (tokens + visual_tokens)
    layer = element * 3 * tokens * spec.hidden
    widened = _FLOAT32_BYTES * tokens * (4 * spec.hidden + 2 * spec.kv_heads * spec.head_dim)
    cache = tokens * spec.kv_bytes_per_token(element)
    attention = math_attention_bytes(spec.heads, tokens, tokens)
    return element * parameters(spec) + cache + pixels + embeddings + layer + widened + attention
