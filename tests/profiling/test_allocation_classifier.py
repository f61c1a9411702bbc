"""Allocations in plain words, from operators and shapes of Qwen2-VL-2B as the profiler writes them."""

import pytest

from tests.planner.plan_builders import SPEC_2B
from vidqa.profiling.allocation_classifier import (
    Shape,
    Site,
    cumulative_score_bytes,
    facts_of,
    name_allocation,
    name_phase,
    peak_score_bytes,
)

FACTS = facts_of(SPEC_2B)
TOKENS = 3626
GIB = 2**30


def named(operator: str, *shapes: Shape, inside: tuple[str, ...] = (), functions: tuple[str, ...] = ()) -> str:
    operators = (*inside, operator)
    return name_allocation(Site(operators, ((),) * len(inside) + (shapes,), functions), FACTS)


def test_a_profiles_33_gb_are_cumulative() -> None:
    """Published for Qwen2-VL-2B at 10 frames: "33 GB" of bmm and softmax on a card of 15 GB."""
    assert (FACTS.layers, FACTS.heads) == (28, 12)  # the post says 32 layers
    cumulative = cumulative_score_bytes(28, 12, TOKENS, 8)
    assert cumulative == 28 * 12 * TOKENS**2 * 8
    assert cumulative / GIB == pytest.approx(32.9, abs=0.05)
    assert peak_score_bytes(12, TOKENS, 8) / GIB == pytest.approx(1.18, abs=0.01)
    assert peak_score_bytes(12, 10_826, 8) / GIB == pytest.approx(10.5, abs=0.05)  # one layer at 30 frames


@pytest.mark.parametrize(
    ("operator", "shapes", "how", "words"),
    [
        ("aten::bmm", ((12, TOKENS, 128), (12, 128, TOKENS)), {}, "score matrices"),
        ("aten::_softmax", ((1, 12, TOKENS, TOKENS),), {}, "score matrices"),
        ("aten::_to_copy", ((1, 12, TOKENS, TOKENS),), {}, "score matrices"),
        ("aten::bmm", ((12, TOKENS, 128), (12, 128, TOKENS)),
         {"inside": ("aten::_scaled_dot_product_attention_math",)}, "score matrices"),
        ("aten::bmm", ((12, TOKENS, TOKENS), (12, TOKENS, 128)), {}, "other"),  # the mixed values, not scores
        ("aten::mul", ((1, 12, TOKENS, 128), (1, 1, TOKENS, 128)), {"functions": ("nn.Module: Qwen2VLAttention_3",)},
         "queries, keys and values"),
        ("aten::cat", ((1, 2, TOKENS, 128), (1, 2, 1, 128)), {}, "KV concatenation"),
        ("aten::cat", ((1, 2, 1, 64), (1, 2, 1, 64)), {"functions": ("nn.Module: Qwen2VLAttention_0",)},
         "queries, keys and values"),
        ("aten::mm", ((1, 1536), (1536, 151936)), {}, "logits"),
        ("aten::_to_copy", ((1, TOKENS, 151936),), {}, "logits"),
        ("aten::index_select", ((151936, 1536), (26,)),
         {"functions": ("vidqa/models/families/qwen2_vl/model.py(131): embed",)},
         "embeddings of the prompt"),
        ("aten::mm", ((TOKENS, 1536), (1536, 8960)), {"functions": ("nn.Module: Qwen2MLP_7",)}, "MLP"),
        ("aten::silu", ((1, TOKENS, 8960),), {}, "MLP"),
        ("aten::sigmoid", ((2048, 5120),), {"functions": ("nn.Module: VisionMlp_1",)}, "MLP"),
        ("aten::_scaled_dot_product_flash_attention", ((1, 12, TOKENS, 128),) * 3, {}, "attention output"),
        ("aten::empty_strided", (), {"functions": ("transformers/modeling_utils.py(3): from_pretrained",)}, "weights"),
        ("aten::zeros", (), {"functions": ("vidqa/engine/kv_cache.py(30): __init__",)}, "KV cache"),
        ("aten::zeros", (), {"functions": ("vidqa/models/attention/flex.py(45): _causal_blocks",)}, "attention mask"),
        ("aten::pow", ((1, 20, 1536), ()), {"functions": ("nn.Module: Qwen2VLRMSNorm_1",)}, "norms"),
        ("aten::_upsample_bicubic2d_aa", ((1, 3, 720, 1280),),
         {"functions": ("vidqa/models/families/qwen2_vl/image_processor.py(27): resize_frame",)}, "frames and patches"),
        ("aten::frobnicate", ((3, 3),), {}, "other"),
    ],
)  # fmt: skip
def test_words(operator: str, shapes: tuple[Shape, ...], how: dict[str, tuple[str, ...]], words: str) -> None:
    assert named(operator, *shapes, **how) == words


@pytest.mark.parametrize(
    ("functions", "phase"),
    [
        (("vidqa/engine/attempt.py(9): run", "vidqa/engine/prefill.py(30): prefill", "nn.Module: Linear_3"),
         "prefill"),
        (("vidqa/engine/attempt.py(9): run",
          "vidqa/models/families/qwen2_vl/image_processor.py(27): resize_frame"), "video"),
        # a stage that draws on another one: the inner one is at work
        (("vidqa/engine/prefill.py(30): prefill", "vidqa/engine/vision.py(45): flush",
          "vidqa/models/families/qwen2_vl/image_processor.py(47): to_patches"), "vision"),
        (("vidqa/engine/decode.py(20): decode", "vidqa/engine/sampler.py(9): choose"), "decode"),
        (("vidqa/engine/attempt.py(9): _read", "vidqa/engine/kv_cache.py(30): __init__"), "prefill"),
        (("vidqa/engine/prompt_runner.py(120): _see", "vidqa/engine/prefix_cache.py(49): reserve"), "vision"),
        (("transformers/generation/utils.py(3): _sample", "transformers/generation/utils.py(9): _prefill"), "prefill"),
        (("transformers/generation/utils.py(3): _sample", "nn.Module: Qwen2VLModel_0"), "decode"),
        (("vidqa/cli/main.py(1): run",), "elsewhere"),
        ((), "elsewhere"),
    ],
)  # fmt: skip
def test_phases(functions: tuple[str, ...], phase: str) -> None:
    assert name_phase(functions) == phase
