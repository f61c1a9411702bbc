"""A second model family for the tests: what Qwen2-VL does not have, in one folder.

Text with the time stands before every slice, queries and keys are normalised, heads together are wider than the hidden
state, rotary frequencies are interleaved, and one more vision feature is added after the first layer.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidqa.models.config_validation import Integer, Values
from vidqa.models.families.qwen2_vl import MODEL_SCORES, PRECISION_SCORES, REFERENCE_BOUNDS, TOKENIZER_PATTERNS
from vidqa.models.family import FamilyRuntime, Shape
from vidqa.models.spec import ModelSpec, VisionSpec
from vidqa.types import ELEMENT_BYTES, Flops, PixelBounds, RunConfig

__all__ = [
    "ALLOCATION_CODE", "FOCUS_DEPTH", "MODEL_SCORES", "PLANNED_TYPES", "PRECISION_SCORES", "REFERENCE_BOUNDS",
    "RELEASED", "RUNNABLE_TYPES", "SHORT_NAMES", "TITLE", "TOKENIZER_PATTERNS", "canonical_name", "check_config",
    "load_runtime", "read_bounds", "spec_of", "vision_bytes", "vision_flops", "vision_shapes",
]  # fmt: skip

TITLE = "Toy-VL"
RUNNABLE_TYPES = PLANNED_TYPES = ("toy_vl",)
RELEASED: Mapping[str, ModelSpec] = {}
SHORT_NAMES: Mapping[str, str] = {}
_KEYS = (
    "layers", "hidden", "intermediate", "heads", "kv_heads", "head_dim", "vocabulary",
    "video_token", "width", "eos_token_id",
)  # fmt: skip
SLICE_TEXT_TOKENS = 24
FOCUS_DEPTH = 0.5
ALLOCATION_CODE: Mapping[str, tuple[str, ...]] = {}


def check_config(config: Values) -> dict[str, Any]:
    """Return the checked values: whole numbers, all of them."""
    return {"model_type": "toy_vl", **{key: config.take(key, Integer(0, 2**20)) for key in _KEYS}}


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """Return checked values as a spec."""
    return ModelSpec(
        "toy_vl", config["layers"], config["hidden"], config["intermediate"], config["heads"], config["kv_heads"],
        config["head_dim"], config["vocabulary"], 4096, config["video_token"], False,
        VisionSpec(depth=1, embed_dim=config["width"], heads=1, patch=14, temporal_patch=2, merge=2, mlp_hidden=1),
        stop_tokens=(config["eos_token_id"],), attention_bias=False, qk_norm=True, deepstack=1,
        slice_text_tokens=SLICE_TEXT_TOKENS,
    )  # fmt: skip


def read_bounds(folder: Path, spec: ModelSpec) -> PixelBounds:
    """Return Qwen2-VL's bounds."""
    return REFERENCE_BOUNDS


def canonical_name(name: str) -> str:
    """Return the name as it is."""
    return name


def vision_shapes(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    """Yield the tower's tensors."""
    width = spec.vision.embed_dim
    for name, inputs, outputs in (
        ("embed", spec.vision.patch_values, width), ("merger", 4 * width, spec.hidden),
        ("deep", 4 * width, spec.hidden),
    ):  # fmt: skip
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)


def vision_bytes(spec: ModelSpec, run_config: RunConfig) -> int:
    """Return the bytes of a group of slices: patches, two tensors of the tower's width, and the result twice."""
    element, vision = ELEMENT_BYTES[run_config.dtype], spec.vision
    patches = 4 * spec.slice_tokens(run_config.height, run_config.width)
    rows = patches * min(run_config.vision_chunk, spec.slices(run_config.frames))
    embedded = element * rows * (vision.patch_values + 2 * vision.embed_dim)
    return max(embedded, element * rows * (vision.embed_dim + spec.embedding_width // 2))


def vision_flops(spec: ModelSpec, run_config: RunConfig) -> Flops:
    """Return 2 per weight and patch."""
    weights = sum(shape[0] * shape[1] for _, shape in vision_shapes(spec) if len(shape) == 2)
    return Flops(8.0 * weights * spec.visual_tokens(run_config.frames, run_config.height, run_config.width), 0.0)


def load_runtime() -> FamilyRuntime:
    """Import and return what runs the model."""
    from vidqa.models.families.toy_vl import runtime  # type: ignore[attr-defined]

    module: FamilyRuntime = runtime
    return module
