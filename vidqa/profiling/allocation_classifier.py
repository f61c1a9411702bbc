"""Classification of tensor allocations by operator, input shapes and the code around them.

An ordered table of rules; the first that matches names the allocation. Works on plain data, without torch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from vidqa.models.family import families
from vidqa.types import PHASE_MARK

if TYPE_CHECKING:
    from vidqa.models.spec import ModelSpec

Shape = tuple[int, ...]
OTHER, SCORES, CONCATENATION, LOGITS = "other", "score matrices", "KV concatenation", "logits"
WEIGHTS, FRAMES, KV_CACHE, MASK = "weights", "frames and patches", "KV cache", "attention mask"
ROTARY, MLP, MERGER, NORMS = "rotary embedding", "MLP", "vision merger", "norms"
QUERIES, EMBEDDINGS, HIDDEN = "queries, keys and values", "embeddings of the prompt", "hidden states"

KINDS = (
    WEIGHTS, FRAMES, CONCATENATION, KV_CACHE, MASK, ROTARY, MLP, MERGER, NORMS, QUERIES, EMBEDDINGS, HIDDEN,
)  # fmt: skip

# Modules, functions and methods that allocate each kind, as `module` or `module:name`. A package stands for its
# modules. A test imports every one of them, so that a rename cannot break profiles silently.
CODE: dict[str, tuple[str, ...]] = {
    WEIGHTS: (
        "vidqa.models.loader", "transformers.core_model_loading",
        "transformers.modeling_utils:PreTrainedModel.from_pretrained", "torch.nn.modules.module:Module._apply",
    ),
    FRAMES: (
        "vidqa.video", "vidqa.engine.vision:GroupEncoder._patches", "vidqa.profiling.hf_baseline:stack_frames",
        "vidqa.models.vision_tower", "transformers.video_processing_utils",
    ),
    CONCATENATION: ("transformers.cache_utils",),
    KV_CACHE: ("vidqa.engine.kv_cache",),
    MASK: (
        "vidqa.models.attention.flex:_causal_blocks", "transformers.masking_utils",
        "transformers.generation.utils:GenerationMixin._prepare_attention_mask_for_generation",
    ),
    ROTARY: (
        "vidqa.models.decoder_layers:rotate", "vidqa.models.decoder_layers:Rotary.of_positions",
        "vidqa.models.decoder_layers:Rotary.of_text", "vidqa.models.vision_tower:axial_rotary",
    ),
    QUERIES: ("vidqa.models.decoder_layers:_attention", "vidqa.models.vision_tower:attend_within_slices"),
    EMBEDDINGS: (
        "vidqa.engine.prefix_cache", "vidqa.engine.token_pruning", "vidqa.models.vlm:VisionLanguageModel.embed",
    ),
    HIDDEN: ("vidqa.models.decoder_layers:run_layers", "vidqa.models.vision_tower:mlp_by_tiles"),
}  # fmt: skip
# Parts of the class names of the `nn.Module`s that allocate each kind, as transformers names them.
LAYERS: dict[str, tuple[str, ...]] = {
    ROTARY: ("RotaryEmbedding",),
    MLP: ("MLP", "Mlp"),
    MERGER: ("PatchMerger",),
    NORMS: ("Norm",),
    QUERIES: ("Attention",),
    EMBEDDINGS: ("PatchEmbed", "Embedding"),
    HIDDEN: ("DecoderLayer", "VisionBlock", "TextModel"),
}
_LAYER = "nn.Module: "  # how the profiler begins the name of a module's call


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """Dimensions of a model by which the shapes of its tensors are recognised."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    vision_heads: int
    vision_head_dim: int
    vision_intermediate: int


def model_shapes(spec: "ModelSpec") -> ModelShapes:
    """Return the dimensions of a checkpoint."""
    vision = spec.vision
    return ModelShapes(
        layers=spec.layers, heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim, hidden=spec.hidden,
        intermediate=spec.intermediate, vocabulary=spec.vocabulary, vision_heads=vision.heads,
        vision_head_dim=vision.embed_dim // vision.heads, vision_intermediate=vision.mlp_hidden,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallSite:
    """The operators and Python functions around an allocation, outermost first.

    `shapes` has the input shapes of each operator. `functions` are named as the profiler names them:
    `vidqa/engine/decode.py(20): decode` or `nn.Module: Linear_3`.
    """

    operators: tuple[str, ...]
    shapes: tuple[tuple[Shape, ...], ...]
    functions: tuple[str, ...] = ()

    def inputs(self) -> Iterator[Shape]:
        """Yield every input shape of every operator."""
        return (shape for shapes in self.shapes for shape in shapes if shape)

    def runs_code_of(self, kind: str) -> bool:
        """Return whether a function around the allocation is listed under `kind` in `CODE` or `LAYERS`."""
        return any(_is_code_of(kind, function) for function in self.functions)

    def has_operator(self, *parts: str) -> bool:
        """Return whether the name of an operator around the allocation contains one of `parts`."""
        return any(part in operator for operator in self.operators for part in parts)


def code_of(kind: str) -> tuple[str, ...]:
    """Return the entries of `CODE` and of every model family for a kind."""
    return CODE.get(kind, ()) + tuple(code for family in families() for code in family.ALLOCATION_CODE.get(kind, ()))


@cache
def _is_code_of(kind: str, function: str) -> bool:
    if function.startswith(_LAYER):
        return any(part in function for part in LAYERS.get(kind, ()))
    return any(_is_code(function, code) for code in code_of(kind))


def _is_code(function: str, code: str) -> bool:
    """Return whether `function` (`file(line): name`) is the function `code`, or lies in the module or package."""
    module, _, qualified_name = code.partition(":")
    path, name = module.replace(".", "/"), qualified_name.rpartition(".")[2]
    location, _, called = function.rpartition(": ")
    file = location.partition("(")[0]
    return (file.endswith(f"{path}.py") or f"{path}/" in file) and name in ("", called)


Rule = Callable[[CallSite, ModelShapes], bool]


def _concatenates_kv(site: CallSite, model: ModelShapes) -> bool:
    """Match `cat` of a layer's cached and new keys or values: (1, kv_heads, n, head_dim) each."""
    if not site.has_operator("aten::cat"):
        return False
    cached = [shape for shape in site.inputs() if len(shape) == 4 and shape[1] == model.kv_heads]
    return site.runs_code_of(CONCATENATION) or (len(cached) > 1 and all(shape[3] == model.head_dim for shape in cached))


def _scores(site: CallSite, model: ModelShapes) -> bool:
    """Match anything of heads · rows · columns: the product of queries and keys, its softmax, casts and masks."""
    if site.has_operator("_scaled_dot_product_attention_math"):
        return site.has_operator("aten::bmm", "softmax", "aten::matmul", "aten::add", "aten::where", "aten::baddbmm")
    if site.has_operator("aten::bmm", "aten::baddbmm"):
        return _is_score_product(site, model)
    return any(_is_square_of_tokens(shape, model) for shape in site.inputs())


def _is_score_product(site: CallSite, model: ModelShapes) -> bool:
    """Match (b, n, d) · (b, d, m) where d is a head's width and m is not."""
    widths = {model.head_dim, model.vision_head_dim}
    cubes = [shape for shape in site.inputs() if len(shape) == 3]
    return any(left[2] == right[1] and left[2] in widths and right[2] not in widths for left, right in pairwise(cubes))


def _is_square_of_tokens(shape: Shape, model: ModelShapes) -> bool:
    """Match (1, heads, n, m) with more than one row, where m is not a head's width or half of it."""
    heads = {model.heads, model.vision_heads}
    widths = {model.head_dim, model.vision_head_dim, model.head_dim // 2, model.vision_head_dim // 2}
    return len(shape) == 4 and shape[1] in heads and shape[2] > 1 and shape[3] not in widths and shape[3] >= shape[2]


def _logits(site: CallSite, model: ModelShapes) -> bool:
    """Match a row per token over the vocabulary: the product of lm_head, its casts, and sampling."""
    if site.has_operator("aten::embedding", "index_select"):
        return False
    return any(model.vocabulary in (shape[-1], shape[0]) for shape in site.inputs())


def _mlp(site: CallSite, model: ModelShapes) -> bool:
    wide = {model.intermediate, model.vision_intermediate}
    return site.runs_code_of(MLP) or any(shape[-1] in wide for shape in site.inputs())


def _attention_output(site: CallSite, model: ModelShapes) -> bool:
    return site.has_operator("scaled_dot_product", "_attention")


def _code_of(kind: str) -> tuple[str, Rule]:
    return kind, lambda site, model: site.runs_code_of(kind)


RULES: tuple[tuple[str, Rule], ...] = (
    _code_of(WEIGHTS), _code_of(FRAMES), (CONCATENATION, _concatenates_kv), _code_of(KV_CACHE), _code_of(MASK),
    (SCORES, _scores), ("attention output", _attention_output), (LOGITS, _logits), _code_of(ROTARY), (MLP, _mlp),
    _code_of(MERGER), _code_of(NORMS), _code_of(QUERIES), _code_of(EMBEDDINGS), _code_of(HIDDEN),
)  # fmt: skip


def classify(site: CallSite, model: ModelShapes) -> str:
    """Return the kind of the first rule that matches, else `other`."""
    return next((kind for kind, matches in RULES if matches(site, model)), OTHER)


NO_PHASE = "elsewhere"


def phase_of(marks: Sequence[str]) -> str:
    """Return the phase of the innermost mark (`Tracker.phase` sets them), else `elsewhere`."""
    return next((mark.removeprefix(PHASE_MARK) for mark in reversed(marks) if mark.startswith(PHASE_MARK)), NO_PHASE)


def cumulative_score_bytes(layers: int, heads: int, tokens: int, bytes_per_score: int) -> int:
    """Return the bytes of all layers' score matrices, of which one layer's live at a time.

    layers · heads · tokens² · bytes. A profile of Qwen2-VL-2B at 3,626 tokens showed "33 GB":
    28 · 12 · 3626² · 8 B = 32.9 GiB, of which 1.2 GiB lived at once.
    """
    return layers * peak_score_bytes(heads, tokens, bytes_per_score)


def peak_score_bytes(heads: int, tokens: int, bytes_per_score: int) -> int:
    """Return the bytes of one layer's score matrices: heads · tokens² · bytes."""
    return heads * tokens * tokens * bytes_per_score
