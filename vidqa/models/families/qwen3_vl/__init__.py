"""Qwen3-VL: implements `vidqa.models.family.ModelFamily`."""

from vidqa.models.families.qwen3_vl.costs import (
    ALLOCATION_CODE,
    FOCUS_DEPTH,
    MODEL_SCORES,
    PRECISION_SCORES,
    canonical_name,
    vision_bytes,
    vision_flops,
    vision_shapes,
)
from vidqa.models.families.qwen3_vl.spec import (
    PLANNED_TYPES,
    REFERENCE_BOUNDS,
    RELEASED,
    RUNNABLE_TYPES,
    SHORT_NAMES,
    TITLE,
    TOKENIZER_PATTERNS,
    check_config,
    read_bounds,
    spec_of,
)
from vidqa.models.family import FamilyRuntime

__all__ = [
    "ALLOCATION_CODE", "FOCUS_DEPTH", "MODEL_SCORES", "PLANNED_TYPES", "PRECISION_SCORES", "REFERENCE_BOUNDS",
    "RELEASED", "RUNNABLE_TYPES", "SHORT_NAMES", "TITLE", "TOKENIZER_PATTERNS", "canonical_name", "check_config",
    "load_runtime", "read_bounds", "spec_of", "vision_bytes", "vision_flops", "vision_shapes",
]  # fmt: skip


def load_runtime() -> FamilyRuntime:
    """Import and return the family's runtime."""
    from vidqa.models.families.qwen3_vl import runtime as module

    return module
