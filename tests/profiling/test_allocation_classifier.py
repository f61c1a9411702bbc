"""Classification of allocations, with operators and shapes of Qwen2-VL-2B as the profiler writes them."""

import inspect
from importlib import import_module
from types import ModuleType

import pytest
from torch import nn
from transformers.models.qwen2_vl import modeling_qwen2_vl

from tests.planner.plan_builders import SPEC_2B
from vidqa.profiling.allocation_classifier import (
    KINDS,
    LAYERS,
    CallSite,
    Shape,
    classify,
    code_of,
    cumulative_score_bytes,
    model_shapes,
    peak_score_bytes,
    phase_of,
)
from vidqa.types import PHASE_MARK

MODEL = model_shapes(SPEC_2B)
TOKENS = 3626
GIB = 2**30


def test_a_profiles_33_gb_are_cumulative() -> None:
    """Published for Qwen2-VL-2B at 10 frames: "33 GB" of bmm and softmax on a card of 15 GB."""
    assert (MODEL.layers, MODEL.heads) == (28, 12)  # the post says 32 layers
    cumulative = cumulative_score_bytes(28, 12, TOKENS, 8)
    assert cumulative == 28 * 12 * TOKENS**2 * 8
    assert cumulative / GIB == pytest.approx(32.9, abs=0.05)
    assert peak_score_bytes(12, TOKENS, 8) / GIB == pytest.approx(1.18, abs=0.01)
    assert peak_score_bytes(12, 10_826, 8) / GIB == pytest.approx(10.5, abs=0.05)  # one layer at 30 frames


@pytest.mark.parametrize(
    ("operator", "shapes", "function", "kind"),
    [
        ("aten::bmm", ((12, TOKENS, 128), (12, 128, TOKENS)), "", "score matrices"),
        ("aten::_softmax", ((1, 12, TOKENS, TOKENS),), "", "score matrices"),
        ("aten::_to_copy", ((1, 12, TOKENS, TOKENS),), "", "score matrices"),
        ("aten::_scaled_dot_product_attention_math aten::bmm", ((12, TOKENS, 128), (12, 128, TOKENS)), "",
         "score matrices"),
        ("aten::bmm", ((12, TOKENS, TOKENS), (12, TOKENS, 128)), "", "other"),  # scores · values
        ("aten::mul", ((1, 12, TOKENS, 128), (1, 1, TOKENS, 128)), "nn.Module: Qwen2VLAttention_3",
         "queries, keys and values"),
        ("aten::cat", ((1, 2, TOKENS, 128), (1, 2, 1, 128)), "", "KV concatenation"),
        ("aten::cat", ((1, 2, 1, 64), (1, 2, 1, 64)), "transformers/cache_utils.py(90): update", "KV concatenation"),
        ("aten::cat", ((1, 2, 1, 64), (1, 2, 1, 64)), "nn.Module: Qwen2VLAttention_0", "queries, keys and values"),
        ("aten::mm", ((1, 1536), (1536, 151936)), "", "logits"),
        ("aten::_to_copy", ((1, TOKENS, 151936),), "", "logits"),
        ("aten::index_select", ((151936, 1536), (26,)), "vidqa/models/vlm.py(131): embed",
         "embeddings of the prompt"),
        ("aten::mm", ((TOKENS, 1536), (1536, 8960)), "nn.Module: Qwen2MLP_7", "MLP"),
        ("aten::silu", ((1, TOKENS, 8960),), "", "MLP"),
        ("aten::sigmoid", ((2048, 5120),), "nn.Module: VisionMlp_1", "MLP"),
        ("aten::_scaled_dot_product_flash_attention", ((1, 12, TOKENS, 128),) * 3, "", "attention output"),
        ("aten::empty_strided", (), "/lib/transformers/modeling_utils.py(3): from_pretrained", "weights"),
        ("aten::zeros", (), "vidqa/engine/kv_cache.py(30): __init__", "KV cache"),
        ("aten::zeros", (), "vidqa/models/attention/flex.py(45): _causal_blocks", "attention mask"),
        ("aten::pow", ((1, 20, 1536), ()), "nn.Module: Qwen2VLRMSNorm_1", "norms"),
        ("aten::cos", ((20, 1, 64),), "vidqa/models/decoder_layers.py(25): of_positions", "rotary embedding"),
        ("aten::_upsample_bicubic2d_aa", ((1, 3, 720, 1280),),
         "vidqa/models/vision_tower.py(30): resize_frame", "frames and patches"),
        ("aten::stack", (), "vidqa/video/reader.py(27): frames", "frames and patches"),
        ("aten::frobnicate", ((3, 3),), "", "other"),
    ],
)  # fmt: skip
def test_kinds(operator: str, shapes: tuple[Shape, ...], function: str, kind: str) -> None:
    operators = tuple(operator.split())
    site = CallSite(operators, ((),) * (len(operators) - 1) + (shapes,), (function,) if function else ())
    assert classify(site, MODEL) == kind


def test_the_innermost_mark_is_the_phase() -> None:
    vision, decode = f"{PHASE_MARK}vision", f"{PHASE_MARK}decode"
    assert phase_of((decode, vision, "a user's own mark")) == "vision"
    assert phase_of((decode,)) == "decode"
    assert phase_of(("a user's own mark",)) == phase_of(()) == "elsewhere"


def resolve(code: str) -> object:
    """Import the module, function or method that an entry of `CODE` names; raises ImportError or AttributeError."""
    module, _, name = code.partition(":")
    found: object = import_module(module)
    for part in filter(None, name.split(".")):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("code", [code for kind in KINDS for code in code_of(kind)])
def test_the_code_that_kinds_are_known_by_exists(code: str) -> None:
    found = resolve(code)
    assert inspect.isroutine(found) if ":" in code else isinstance(found, ModuleType)
    if inspect.isroutine(found):  # the profiler writes the function's own name and file, not an alias's
        function = inspect.unwrap(getattr(found, "__func__", found))
        assert (function.__name__, function.__module__) == (
            code.rpartition(":")[2].rpartition(".")[2],
            code.partition(":")[0],
        )


@pytest.mark.parametrize("code", ["vidqa.engine.no_such_module", "vidqa.engine.kv_cache:no_such_function"])
def test_renamed_code_is_noticed(code: str) -> None:
    with pytest.raises((ImportError, AttributeError)):
        resolve(code)


@pytest.mark.parametrize("part", [part for parts in LAYERS.values() for part in parts])
def test_the_layers_that_kinds_are_known_by_exist(part: str) -> None:
    classes = [*vars(modeling_qwen2_vl).values(), *vars(nn).values()]
    assert any(part in cls.__name__ for cls in classes if inspect.isclass(cls) and issubclass(cls, nn.Module))
