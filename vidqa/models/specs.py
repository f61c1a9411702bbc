"""What a checkpoint's own files say about it: config.json and the video processor's config.

Pure reading: no torch, no transformers, no weights. Costs are methods of the description.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError
from vidqa.models.stored import StoredWeights, read_stored
from vidqa.types import PixelBounds

# qwen-vl-utils 0.0.14, vision_process.py: tokens of 28x28 pixels per temporal slice, frames, fps.
_TOKEN_PIXELS = 28 * 28
REFERENCE_BOUNDS = PixelBounds(
    min_pixels=128 * _TOKEN_PIXELS,
    max_pixels=768 * _TOKEN_PIXELS,
    total_pixels=int(128_000 * _TOKEN_PIXELS * 0.9),
    min_frames=4,
    max_frames=768,
    fps=2.0,
    source="qwen-vl-utils",
)
SUPPORTED_TYPES = ("qwen2_vl",)
PLANNED_TYPES = ("qwen2_vl", "qwen2_5_vl")


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """The vision tower: `patch` pixels a side, `temporal_patch` frames deep, `merge`² patches per token.

    `mlp_hidden` is the width inside a block's MLP; `gated` towers (Qwen2.5-VL) have three
    matrices there, and attend within windows of `window` pixels but in `full_attention` blocks.
    """

    depth: int
    embed_dim: int
    heads: int
    patch: int
    temporal_patch: int
    merge: int
    mlp_hidden: int
    gated: bool = False
    window: int = 0
    full_attention: tuple[int, ...] = ()

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: 3 colours of `temporal_patch` frames."""
        return 3 * self.temporal_patch * self.patch * self.patch

    def matrices(self, hidden: int) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every matrix of the tower, by name; a block's ones occur `depth` times."""
        wide = self.embed_dim * self.merge**2
        block = {"qkv": (self.embed_dim, 3 * self.embed_dim), "proj": (self.embed_dim, self.embed_dim)}
        block |= {"gate": (self.embed_dim, self.mlp_hidden)} if self.gated else {}
        block |= {"up": (self.embed_dim, self.mlp_hidden), "down": (self.mlp_hidden, self.embed_dim)}
        return block | {"merger.0": (wide, wide), "merger.2": (wide, hidden)}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A Qwen2-VL or Qwen2.5-VL checkpoint in numbers.

    `tied`: lm_head is the embedding table. `stored`: how the weights are quantized in the files, if they are.
    """

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_tokens: int
    video_token: int
    tied: bool
    vision: VisionSpec
    stored: StoredWeights | None = None

    @property
    def pixel_factor(self) -> int:
        """Both sides of a frame are multiples of this many pixels (28)."""
        return self.vision.patch * self.vision.merge

    def visual_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens of a video: one per `pixel_factor`² pixels of each temporal slice."""
        slices = -(-frames // self.vision.temporal_patch)
        return slices * (height // self.pixel_factor) * (width // self.pixel_factor)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values per token: 2 · layers · kv_heads · head_dim · element_bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes


def read_spec(folder: Path) -> ModelSpec:
    """Read config.json of a checkpoint folder; raises ModelError for what cannot be planned."""
    config = _read_json(folder / "config.json")
    return replace(parse_spec(config, folder.name), stored=read_stored(folder, config))


def parse_spec(config: Mapping[str, Any], name: str) -> ModelSpec:
    """A checkpoint's config as numbers; raises ModelError for other models and for missing values."""
    model_type = str(config.get("model_type"))
    if model_type not in PLANNED_TYPES:
        raise ModelError(
            f"{name} is a {model_type!r} checkpoint; vidqa runs {' and '.join(SUPPORTED_TYPES)}.",
            "Choose for example --model Qwen/Qwen2-VL-2B-Instruct.",
        )
    text = config.get("text_config") or config  # hub checkpoints are flat, saved ones nested
    try:
        return _spec_from(model_type, config, text, config["vision_config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"config.json of {name} lacks or misstates {error}.", "Fetch the model again.") from error


def check_supported(spec: ModelSpec, name: str) -> None:
    """Refuse what can be planned but not run yet, or not without a library that is missing; raises ModelError."""
    if spec.stored is not None:
        spec.stored.check_installed(name)
    if spec.model_type not in SUPPORTED_TYPES:
        raise ModelError(
            f"{name} is a {spec.model_type!r} checkpoint: it can be planned, but vidqa runs "
            f"{' and '.join(SUPPORTED_TYPES)} so far.",
            "Choose for example --model Qwen/Qwen2-VL-2B-Instruct.",
        )


def _spec_from(
    model_type: str, config: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]
) -> ModelSpec:
    heads = int(text["num_attention_heads"])
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return ModelSpec(
        model_type=model_type,
        layers=int(text["num_hidden_layers"]),
        hidden=int(text["hidden_size"]),
        intermediate=int(text["intermediate_size"]),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text["hidden_size"]) // heads,
        vocabulary=int(text["vocab_size"]),
        context_tokens=int(text["max_position_embeddings"]),
        video_token=int(config.get("video_token_id", 151656)),
        tied=bool(tied),
        vision=_gated_vision(vision) if model_type == "qwen2_5_vl" else _vision(vision),
    )


def _vision(vision: Mapping[str, Any]) -> VisionSpec:
    width = int(vision.get("embed_dim", 1280))
    return VisionSpec(
        depth=int(vision.get("depth", 32)),
        embed_dim=width,
        heads=int(vision.get("num_heads", 16)),
        patch=int(vision.get("patch_size", vision.get("spatial_patch_size", 14))),
        temporal_patch=int(vision.get("temporal_patch_size", 2)),
        merge=int(vision.get("spatial_merge_size", 2)),
        mlp_hidden=int(width * vision.get("mlp_ratio", 4)),
    )


def _gated_vision(vision: Mapping[str, Any]) -> VisionSpec:
    """Qwen2.5-VL's tower: its `hidden_size` is the tower's own width."""
    return VisionSpec(
        depth=int(vision.get("depth", 32)),
        embed_dim=int(vision.get("hidden_size", 1280)),
        heads=int(vision.get("num_heads", 16)),
        patch=int(vision.get("patch_size", vision.get("spatial_patch_size", 14))),
        temporal_patch=int(vision.get("temporal_patch_size", 2)),
        merge=int(vision.get("spatial_merge_size", 2)),
        mlp_hidden=int(vision.get("intermediate_size", 3420)),
        gated=True,
        window=int(vision.get("window_size", 112)),
        full_attention=tuple(vision.get("fullatt_block_indexes", (7, 15, 23, 31))),
    )


def read_bounds(folder: Path) -> PixelBounds:
    """Pixel and frame bounds of a checkpoint's *video* processor, else qwen-vl-utils' video constants.

    The image processor's bounds are never used: they allow 1,196 tokens per slice at 720p
    where the reference gives 720.
    """
    processor = _video_processor(folder)
    size = processor.get("size") or {}
    low = processor.get("min_pixels", size.get("shortest_edge", size.get("min_pixels")))
    high = processor.get("max_pixels", size.get("longest_edge", size.get("max_pixels")))
    if low is None or high is None:
        return REFERENCE_BOUNDS
    return PixelBounds(
        min_pixels=int(low),
        max_pixels=int(high),
        total_pixels=int(processor.get("max_video_tokens", 128_000) * _TOKEN_PIXELS * 0.9),
        min_frames=int(processor.get("min_frames", REFERENCE_BOUNDS.min_frames)),
        max_frames=int(processor.get("max_frames", REFERENCE_BOUNDS.max_frames)),
        fps=float(processor.get("fps") or REFERENCE_BOUNDS.fps),
        source="checkpoint",
    )


def _video_processor(folder: Path) -> dict[str, Any]:
    own = folder / "video_preprocessor_config.json"
    if own.exists():
        return _read_json(own)
    shared = folder / "processor_config.json"
    return dict(_read_json(shared).get("video_processor") or {}) if shared.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}.", "Fetch the model again with `vidqa pull`.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object.", "Fetch the model again with `vidqa pull`.")
    return content
