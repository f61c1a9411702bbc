"""A checkpoint in numbers: the language model, the vision tower, and its parameters. No torch."""

from dataclasses import dataclass

from vidqa.models.quantized_checkpoint import StoredWeights


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A vision tower: `patch` pixels a side, `temporal_patch` frames deep, `merge`² patches per token.

    `mlp_hidden` is the width inside a block's MLP; `gated` MLPs have three matrices. Attention stays within windows of
    `window` pixels except in the blocks of `full_attention`; 0 means no windows.
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


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A vision-language checkpoint in numbers.

    `model_type` is config.json's, by which the family is found (`models/family.py`). `tied`: lm_head is the embedding
    table. `stored`: how the weights are quantized in the files, None if they are not. `stop_tokens` end an answer where
    generation_config.json names none. `attention_bias`: queries, keys and values have biases; `qk_norm`:
    queries and keys are normalised per head. `deepstack`: after so many of the first decoder layers more vision
    features are added. `slice_text_tokens`: most text tokens that a prompt has between two temporal slices.
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
    attention_bias: bool = True
    qk_norm: bool = False
    deepstack: int = 0
    slice_text_tokens: int = 0

    @property
    def pixel_factor(self) -> int:
        """Both sides of a frame are multiples of this many pixels."""
        return self.vision.patch * self.vision.merge

    @property
    def query_width(self) -> int:
        """Values of all query heads of a token."""
        return self.heads * self.head_dim

    @property
    def embedding_width(self) -> int:
        """Values of a prompt row: the embedding, and the features that `deepstack` layers add."""
        return self.hidden * (1 + self.deepstack)

    def slices(self, frames: int) -> int:
        """Temporal slices of so many frames."""
        return -(-frames // self.vision.temporal_patch)

    def slice_tokens(self, height: int, width: int) -> int:
        """Tokens of one temporal slice: one per `pixel_factor`² pixels."""
        return (height // self.pixel_factor) * (width // self.pixel_factor)

    def visual_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens of a video's pictures."""
        return self.slices(frames) * self.slice_tokens(height, width)

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values per token: 2 · layers · kv_heads · head_dim · element_bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes
