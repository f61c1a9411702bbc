"""Memory of plain transformers: one pass over the whole prompt with unfused attention. Arithmetic only.

That is what runs where no fused kernel accepts grouped queries, as on a T4. `vidqa plan` prints it for comparison.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from vidqa.models.spec import ModelSpec
from vidqa.planner.activation_memory import kept_video_tokens, tokens_bytes
from vidqa.planner.memory_model import kv_capacity, margin_bytes, required_bytes
from vidqa.planner.problem import PlanningProblem
from vidqa.planner.weight_memory import parameters, part_bytes
from vidqa.types import ELEMENT_BYTES, Plan, RunConfig

_PARTS = ("embedding", "layers", "lm_head", "vision")  # of the weights
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
    cache = tokens * spec.kv_bytes_per_token(element)
    inputs = _input_bytes(spec, visual_tokens, tokens, element)
    return element * parameters(spec) + cache + inputs + _attention_bytes(spec, tokens, element)


def _input_bytes(spec: ModelSpec, visual_tokens: int, tokens: int, element_bytes: int) -> int:
    """Return the bytes of the processor's float32 pixels and of the embeddings."""
    pixels = visual_tokens * spec.vision.merge**2 * spec.vision.patch_values * _FLOAT32_BYTES
    return pixels + element_bytes * spec.hidden * (tokens + visual_tokens)


def _attention_bytes(spec: ModelSpec, tokens: int, element_bytes: int) -> int:
    """Return the bytes of a layer's input, its norm and the queries, and of unfused attention over all tokens."""
    layer = element_bytes * 3 * tokens * spec.hidden
    widened = _FLOAT32_BYTES * tokens * (4 * spec.hidden + 2 * spec.kv_heads * spec.head_dim)
    return layer + widened + math_attention_bytes(spec.heads, tokens, tokens)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Budgets, in bytes, of a plan and of plain transformers with the plan's weights, runtime and margin rule.

    `most_frames` are those that the budget holds with the plan's size and settings, in the video and the model's
    context; `plain_frames` those that it holds in one pass.
    """

    plain_bytes: int
    most_frames: int
    most_bytes: int
    plain_most_bytes: int
    plain_frames: int


def compare(problem: PlanningProblem, plan: Plan) -> Comparison:
    """Compare a plan with one pass over its prompt by plain transformers, for its frames and for the most frames."""

    def with_frames(count: int) -> RunConfig:
        return replace(plan.run_config, frames=count, candidate_frames=0)

    def here(count: int) -> int:
        return required_bytes(problem.spec, with_frames(count), problem.overhead)

    def plain(count: int) -> int:
        return plain_required_bytes(problem, with_frames(count))

    def fits(budget: Callable[[int], int]) -> Callable[[int], bool]:
        return lambda count: (
            budget(count) <= problem.budget_bytes
            and kept_video_tokens(problem.spec, with_frames(count)) <= problem.context_left
        )

    limit = min(problem.bounds.max_frames, max(problem.video.frame_count, plan.run_config.frames))
    most = _most(fits(here), limit, plan.run_config.frames)
    return Comparison(plain(plan.run_config.frames), most, here(most), plain(most), _most(fits(plain), limit, 0))


def plain_required_bytes(problem: PlanningProblem, run_config: RunConfig) -> int:
    """Return the budget of plain transformers for a run configuration: all weights on the device, runtime, margin.

    The largest step of a layer is attention, or for short prompts the MLP with its dequantized weights.
    """
    spec, dtype, place = problem.spec, run_config.dtype, run_config.placement
    element, visual = ELEMENT_BYTES[dtype], kept_video_tokens(spec, run_config)
    tokens = visual + run_config.text_tokens
    weights = sum(part_bytes(spec, part, run_config.weights, dtype, place) for part in _PARTS)
    cache = kv_capacity(spec, run_config) * spec.kv_bytes_per_token(element)
    step = max(_attention_bytes(spec, tokens, element), tokens_bytes(spec, run_config, tokens))
    peak = weights + cache + _input_bytes(spec, visual, tokens, element) + step + problem.overhead.total_bytes
    return peak + margin_bytes(peak)


def _most(fits: Callable[[int], bool], limit: int, least: int) -> int:
    """Return the largest even count up to `limit` that fits; `least` if none above it does."""
    low, high = least // 2, limit // 2  # pairs: `low` fits, what is above `high` does not
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(2 * middle) else (low, middle - 1)
    return max(2 * low, least)
