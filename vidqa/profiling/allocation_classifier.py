"""What an allocation is, in plain words: from its operator, its shapes and where it was made.

A short ordered table of rules; the first that holds names it. Arithmetic on plain data: knows
no torch and no trace format.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vidqa.models.spec import ModelSpec

Shape = tuple[int, ...]
SCORES, CONCATENATION, LOGITS, WEIGHTS, MLP = "score matrices", "KV concatenation", "logits", "weights", "MLP"
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Facts:
    """The model's own numbers, by which shapes are known."""

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


def facts_of(spec: "ModelSpec") -> Facts:
    """The facts of a checkpoint."""
    vision = spec.vision
    return Facts(
        layers=spec.layers, heads=spec.heads, kv_heads=spec.kv_heads, head_dim=spec.head_dim, hidden=spec.hidden,
        intermediate=spec.intermediate, vocabulary=spec.vocabulary, vision_heads=vision.heads,
        vision_head_dim=vision.embed_dim // vision.heads, vision_intermediate=vision.mlp_hidden,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """Where memory was asked for.

    `operators` and `shapes` (of each one's inputs) go from the outermost to the innermost;
    `functions` are Python's, outermost first, as `file: name` or `nn.Module: name`.
    """

    operators: tuple[str, ...]
    shapes: tuple[tuple[Shape, ...], ...]
    functions: tuple[str, ...] = ()

    def inputs(self) -> Iterator[Shape]:
        """Every input's shape of every operator around the allocation."""
        return (shape for shapes in self.shapes for shape in shapes if shape)

    def called(self, *words: str) -> bool:
        """Whether a Python function around it carries one of the words, in its file or its name."""
        return any(word in function for function in self.functions for word in words)

    def within(self, *words: str) -> bool:
        """Whether an operator around it carries one of the words."""
        return any(word in operator for operator in self.operators for word in words)


Rule = Callable[[Site, Facts], bool]


def _loads_weights(site: Site, facts: Facts) -> bool:
    return site.called("from_pretrained", "models/loader.py", "core_model_loading", "_apply")


def _concatenates_kv(site: Site, facts: Facts) -> bool:
    """`cat` of a layer's past and new keys or values: (1, kv_heads, n, head_dim) each."""
    if not site.within("aten::cat"):
        return False
    pasts = [shape for shape in site.inputs() if len(shape) == 4 and shape[1] == facts.kv_heads]
    return site.called("cache_utils.py") or (len(pasts) > 1 and all(shape[3] == facts.head_dim for shape in pasts))


def _scores(site: Site, facts: Facts) -> bool:
    """Anything of heads · rows · columns: the product of queries and keys, its softmax, its casts and masks."""
    if site.within("_scaled_dot_product_attention_math"):
        return site.within("aten::bmm", "softmax", "aten::matmul", "aten::add", "aten::where", "aten::baddbmm")
    if site.within("aten::bmm", "aten::baddbmm"):
        return _is_score_product(site, facts)
    return any(_is_square_of_tokens(shape, facts) for shape in site.inputs())


def _is_score_product(site: Site, facts: Facts) -> bool:
    """(b, n, d) · (b, d, m), where d is a head's width and n, m are not."""
    dims = {facts.head_dim, facts.vision_head_dim}
    cubes = [shape for shape in site.inputs() if len(shape) == 3]
    pairs = pairwise(cubes)
    return any(left[2] == right[1] and left[2] in dims and right[2] not in dims for left, right in pairs)


def _is_square_of_tokens(shape: Shape, facts: Facts) -> bool:
    """(1, heads, n, m) with more than one row, where m is not a head's width."""
    heads = {facts.heads, facts.vision_heads}
    dims = {facts.head_dim, facts.vision_head_dim, facts.head_dim // 2, facts.vision_head_dim // 2}
    return len(shape) == 4 and shape[1] in heads and shape[2] > 1 and shape[3] not in dims and shape[3] >= shape[2]


def _logits(site: Site, facts: Facts) -> bool:
    """A row per token over the vocabulary: lm_head's product, its casts, and what sampling makes of it."""
    if site.within("aten::embedding", "index_select"):
        return False
    return any(facts.vocabulary in (shape[-1], shape[0]) for shape in site.inputs())


def _mlp(site: Site, facts: Facts) -> bool:
    wide = {facts.intermediate, facts.vision_intermediate}
    return site.called("MLP", "Mlp") or any(shape[-1] in wide for shape in site.inputs())


def _frames(site: Site, facts: Facts) -> bool:
    return site.called("vidqa/video/", "video_processing", ": _patches", ": _frames")


def _called(*words: str) -> Rule:
    return lambda site, facts: site.called(*words)


def _within(*words: str) -> Rule:
    return lambda site, facts: site.within(*words)


RULES: tuple[tuple[str, Rule], ...] = (
    (WEIGHTS, _loads_weights),
    ("frames and patches", _frames),
    (CONCATENATION, _concatenates_kv),
    ("KV cache", _called("kv_cache.py")),
    ("attention mask", _called("_mask", "masking_utils.py", "_causal_blocks")),
    (SCORES, _scores),
    ("attention output", _within("scaled_dot_product", "_attention")),
    (LOGITS, _logits),
    ("rotary embedding", _called("rotary", "Rotary", ": rotate", ": _turned")),
    (MLP, _mlp),
    ("vision merger", _called("PatchMerger")),
    ("norms", _called("RMSNorm", "LayerNorm")),
    ("queries, keys and values", _called("Attention", "_attend_within_slices", ": _projected", ": _mixed")),
    ("embeddings of the prompt", _called("prefix_cache.py", "embed_patches", ": embed", "get_input_embeddings")),
    ("hidden states", _called("DecoderLayer", "VisionBlock", "encode_slices", "TextModel", ": run_layers")),
)


def name_allocation(site: Site, facts: Facts) -> str:
    """The words of the first rule that holds, else `other`."""
    return next((words for words, holds in RULES if holds(site, facts)), OTHER)


_PHASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("load", ("models/loader.py", "from_pretrained")),
    ("video", (": resize_frame", "video/frame_decoder.py", "video/reader.py", "video_processing")),
    ("vision", ("engine/vision.py", "VisionTransformer", "Qwen2VisionTransformer", "get_video_features")),
    ("prefill", ("engine/prefill.py", ": _prefill")),
    ("decode", ("engine/decode.py", "engine/decode_runners.py", "engine/sampler.py", ": _sample")),
)
_PHASES_BY_OWNER = (("prefill", "kv_cache.py"), ("vision", "prefix_cache.py"))
ELSEWHERE = "elsewhere"


def name_phase(functions: tuple[str, ...]) -> str:
    """The stage of the innermost function that belongs to one; a cache or buffer by whom it is for."""
    for function in reversed(functions):
        for phase, signs in _PHASES:
            if any(sign in function for sign in signs):
                return phase
    return next((phase for phase, sign in _PHASES_BY_OWNER if any(sign in one for one in functions)), ELSEWHERE)


def cumulative_score_bytes(layers: int, heads: int, tokens: int, bytes_per_score: int) -> int:
    """What all layers' score matrices add up to, though only one layer's live at a time.

    layers · heads · tokens² · bytes. A profile of Qwen2-VL-2B at 3,626 tokens showed "33 GB":
    28 · 12 · 3626² · 8 B = 32.9 GiB, of which 1.2 GiB lived at once.
    """
    return layers * peak_score_bytes(heads, tokens, bytes_per_score)


def peak_score_bytes(heads: int, tokens: int, bytes_per_score: int) -> int:
    """One layer's score matrices: heads · tokens² · bytes."""
    return heads * tokens * tokens * bytes_per_score
