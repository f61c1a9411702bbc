"""Sizes of a checkpoint: language model, vision tower, stored weights. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Quantized weights of a checkpoint; `weights` is their precision in a plan, `quantized` the quantized parts.

    `sizes` has (part, bytes if unquantized tensors become 16-bit, bytes if they become 32-bit), each tensor rounded as
    it is allocated.
    """

    method: str
    weights: str
    sizes: tuple[tuple[str, int, int], ...]
    quantized: tuple[str, ...]

    def part_bytes(self, part: str, element_bytes: int) -> int:
        """Return the bytes of a part (embedding, layers, lm_head, vision) once loaded."""
        return next(((half, full)[element_bytes == 4] for name, half, full in self.sizes if name == part), 0)


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A vision tower: `patch` pixels a side, `temporal_patch` frames deep, `merge`² patches per token.

    `mlp_hidden` is the width inside a block's MLP. Attention stays within windows of `window` pixels except in the
    blocks of `full_attention`; 0 means no windows. `tokens_per_second`: M-RoPE positions in time of a second; 0 counts
    slices instead. `position_rows`: rows of the table of learned positions. `deepstack_blocks`: the blocks whose
    features go into the first decoder layers.
    """

    depth: int
    embed_dim: int
    heads: int
    patch: int
    temporal_patch: int
    merge: int
    mlp_hidden: int
    window: int = 0
    full_attention: tuple[int, ...] = ()
    tokens_per_second: int = 0
    position_rows: int = 0
    deepstack_blocks: tuple[int, ...] = ()

    @property
    def patch_values(self) -> int:
        """Values of one patch: 3 colours of `temporal_patch` frames."""
        return 3 * self.temporal_patch * self.patch * self.patch


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Sizes of a vision-language checkpoint.

    `model_type` of config.json selects the family (`models/family.py`). `tied`: lm_head is the embedding table.
    `stored`: quantized weights in the files, None if they are not quantized. `stop_tokens` end an answer if
    generation_config.json names none. `attention_bias`: queries, keys and values have biases. `qk_norm`: queries and
    keys are normalised per head. `deepstack`: number of first decoder layers after which vision features are added.
    `slice_text_tokens`: most text tokens between two temporal slices of a prompt. `stored_dtype`: the precision of most
    unquantized weights in the files; released checkpoints are in bf16. `experts`: MLPs of `expert_width` in a layer, of
    which each token takes several, `intermediate` wide together; 0 for one MLP.
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
    stored_dtype: str = "bf16"
    experts: int = 0
    expert_width: int = 0

    @property
    def pixel_factor(self) -> int:
        """Pixels of which both sides of a frame are multiples."""
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
        """Return the temporal slices of a number of frames."""
        return -(-frames // self.vision.temporal_patch)

    def slice_tokens(self, height: int, width: int) -> int:
        """Return the tokens of one temporal slice: one per `pixel_factor`² pixels."""
        return (height // self.pixel_factor) * (width // self.pixel_factor)

    def visual_tokens(self, frames: int, height: int, width: int) -> int:
        """Return the tokens of a video's frames."""
        return self.slices(frames) * self.slice_tokens(height, width)

    def video_tokens(self, frames: int, height: int, width: int) -> int:
        """Tokens of a video in a prompt: its pictures', and at most the text's between its slices."""
        return self.visual_tokens(frames, height, width) + self.slices(frames) * self.slice_text_tokens

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Return the bytes of keys and values per token: 2 · layers · kv_heads · head_dim · element_bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes
