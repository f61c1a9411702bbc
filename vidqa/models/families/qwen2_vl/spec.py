"""What a checkpoint's own files say about it: config.json and the video processor's config.

Pure reading: no torch, no transformers, no weights. Costs are methods of the description.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidqa.errors import ModelError
from vidqa.models.config_rules import SUPPORTED_TYPES, check_config
from vidqa.models.json_rules import Integer, Number, Rule, Values, read_object
from vidqa.models.quantized_checkpoint import StoredWeights, check_quantization, read_stored
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
    `stop_tokens`: what ends an answer where generation_config.json names nothing.
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
    stop_tokens: tuple[int, ...] = ()

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
    config = read_config(folder)
    return replace(_spec_from(config), stored=read_stored(folder, config.get("quantization_config")))


def read_config(folder: Path) -> dict[str, Any]:
    """The checked values of config.json, as transformers' Qwen2VLConfig takes them; raises ModelError."""
    path = folder / "config.json"
    values = Values(path, "", read_object(path))
    config, quantization = check_config(values), check_quantization(values)
    return config if quantization is None else config | {"quantization_config": quantization}


def parse_spec(config: Mapping[str, Any], name: str) -> ModelSpec:
    """A checkpoint's config as numbers; raises ModelError for other models and for values that cannot be."""
    return _spec_from(check_config(Values(name, "", config)))


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


def _spec_from(config: Mapping[str, Any]) -> ModelSpec:
    text, vision = config["text_config"], config["vision_config"]
    gated = config["model_type"] == "qwen2_5_vl"
    return ModelSpec(
        model_type=config["model_type"],
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        head_dim=text["hidden_size"] // text["num_attention_heads"],
        vocabulary=text["vocab_size"],
        context_tokens=text["max_position_embeddings"],
        video_token=config["video_token_id"],
        tied=config["tie_word_embeddings"],
        vision=VisionSpec(
            depth=vision["depth"],
            embed_dim=vision["hidden_size"] if gated else vision["embed_dim"],  # Qwen2.5-VL's is the tower's own
            heads=vision["num_heads"],
            patch=vision["patch_size"],
            temporal_patch=vision["temporal_patch_size"],
            merge=vision["spatial_merge_size"],
            mlp_hidden=vision["intermediate_size"] if gated else vision["embed_dim"] * vision["mlp_ratio"],
            gated=gated,
            window=vision.get("window_size", 0),
            full_attention=vision.get("fullatt_block_indexes", ()),
        ),
        stop_tokens=tuple(text["eos_token_id"]),
    )


_PIXELS = Integer(1, 2**31, None)
_PROCESSOR: dict[str, Rule] = {
    "min_pixels": _PIXELS,
    "max_pixels": _PIXELS,
    "max_video_tokens": Integer(1, 2**24, 128_000),
    "min_frames": Integer(1, 2**20, REFERENCE_BOUNDS.min_frames),
    "max_frames": Integer(1, 2**20, REFERENCE_BOUNDS.max_frames),
    "fps": Number(0.001, 1000.0, REFERENCE_BOUNDS.fps),
}
_SIZE: dict[str, Rule] = dict.fromkeys(("shortest_edge", "longest_edge", "min_pixels", "max_pixels"), _PIXELS)


def read_bounds(folder: Path) -> PixelBounds:
    """Pixel and frame bounds of a checkpoint's *video* processor, else qwen-vl-utils' video constants.

    The image processor's bounds are never used: they allow 1,196 tokens per slice at 720p
    where the reference gives 720.
    """
    processor = _video_processor(folder)
    if processor is None:
        return REFERENCE_BOUNDS
    own, size = processor.checked(_PROCESSOR), processor.inner("size", optional=True).checked(_SIZE)
    low = own["min_pixels"] or size["shortest_edge"] or size["min_pixels"]
    high = own["max_pixels"] or size["longest_edge"] or size["max_pixels"]
    if low is None or high is None:
        return REFERENCE_BOUNDS
    if low > high:
        processor.refuse("min_pixels or size", low, f"must not be above max_pixels, {high}")
    if own["min_frames"] > own["max_frames"]:
        processor.refuse("min_frames", own["min_frames"], f"must not be above max_frames, {own['max_frames']}")
    return PixelBounds(
        min_pixels=low,
        max_pixels=high,
        total_pixels=int(own["max_video_tokens"] * _TOKEN_PIXELS * 0.9),
        min_frames=own["min_frames"],
        max_frames=own["max_frames"],
        fps=own["fps"],
        source="checkpoint",
    )


def _video_processor(folder: Path) -> Values | None:
    """The video processor's own file, else its part of the processor's; None where there is neither."""
    own, shared = folder / "video_preprocessor_config.json", folder / "processor_config.json"
    if own.exists():
        return Values(own, "", read_object(own))
    if shared.exists():
        return Values(shared, "", read_object(shared)).inner("video_processor", optional=True)
    return None
