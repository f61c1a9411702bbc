"""Runs the toy family: transformers' Qwen3-VL decoder behind a tower of three matrices."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextModel

from vidqa.models.decoder_layers import Rotary
from vidqa.models.families.qwen2_vl.runtime import resize_frame, to_patches
from vidqa.models.family import Segment, TextSegment, VisionGrid, VisionSegment
from vidqa.models.spec import ModelSpec
from vidqa.models.subtitle_prompt import block_after_video
from vidqa.utils.cues import Cue

__all__ = [
    "LANGUAGE_MODEL", "VISION_TOWER", "decoder_layer", "encode", "hf_classes", "hf_config", "hf_video_inputs", "layout",
    "patch_vision_for_fp16", "position_after", "random_rotary", "resize_frame", "rotary", "to_patches",
    "vision_positions",
]  # fmt: skip

LANGUAGE_MODEL, VISION_TOWER = "model.language_model", "model.visual"
SECTIONS = (6, 5, 5)  # of head_dim / 2 = 16 frequencies


class ToyConfig(PreTrainedConfig):
    """config.json's numbers."""

    model_type = "toy_vl"

    def __init__(self, **numbers: Any) -> None:
        self.numbers = {key: value for key, value in numbers.items() if isinstance(value, int)}
        super().__init__(tie_word_embeddings=False)

    def text(self) -> Qwen3VLTextConfig:
        """transformers' configuration of the decoder."""
        numbers = self.numbers
        return Qwen3VLTextConfig(
            vocab_size=numbers["vocabulary"], hidden_size=numbers["hidden"], intermediate_size=numbers["intermediate"],
            num_hidden_layers=numbers["layers"], num_attention_heads=numbers["heads"],
            num_key_value_heads=numbers["kv_heads"], head_dim=numbers["head_dim"], max_position_embeddings=4096,
            rope_parameters={
                "rope_type": "default", "rope_theta": 1e4, "mrope_section": list(SECTIONS), "mrope_interleaved": True,
            },
        )  # fmt: skip


class Tower(nn.Module):
    """Three matrices: patches to the width, and a token's patches to its embedding and to what is added later."""

    def __init__(self, numbers: dict[str, int]) -> None:
        super().__init__()
        width, hidden = numbers["width"], numbers["hidden"]
        self.embed = nn.Linear(3 * 2 * 14 * 14, width)
        self.merger, self.deep = nn.Linear(4 * width, hidden), nn.Linear(4 * width, hidden)


class ToyModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The tower, the decoder and lm_head, as transformers loads them."""

    config_class = ToyConfig
    _no_split_modules = ("Qwen3VLTextDecoderLayer",)

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = nn.Module()
        self.model.visual = Tower(config.numbers)
        self.model.language_model = Qwen3VLTextModel(config.text())
        self.lm_head = nn.Linear(config.numbers["hidden"], config.numbers["vocabulary"], bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        table: nn.Module = self.model.language_model.embed_tokens
        return table


def hf_classes() -> tuple[type, type]:
    """Return the classes above."""
    return ToyConfig, ToyModel


def hf_config(spec: ModelSpec) -> ToyConfig:
    """Return the configuration of a spec."""
    return ToyConfig(
        layers=spec.layers, hidden=spec.hidden, intermediate=spec.intermediate, heads=spec.heads,
        kv_heads=spec.kv_heads, head_dim=spec.head_dim, vocabulary=spec.vocabulary, video_token=spec.video_token,
        width=spec.vision.embed_dim, eos_token_id=0,
    )  # fmt: skip


def hf_video_inputs(frames: Tensor, spec: ModelSpec, seconds_per_slice: float, **options: Any) -> dict[str, Tensor]:
    """There is no processor of transformers to compare with."""
    raise NotImplementedError


def decoder_layer(spec: ModelSpec) -> nn.Module:
    """Make one decoder layer."""
    layer: nn.Module = Qwen3VLTextDecoderLayer(hf_config(spec).text(), 0)
    return layer


def _components(frequencies: int) -> list[int]:
    """The component that turns each frequency: time, row, column in turn, the rest with time."""
    components = [0] * frequencies
    for component in (1, 2):
        for place in range(component, 3 * SECTIONS[component], 3):
            components[place] = component
    return components


def rotary(language_model: Any) -> Rotary:
    """Return the interleaved rotary embedding."""
    frequencies = language_model.rotary_emb.inv_freq
    return Rotary(frequencies, _components(len(frequencies)))


def random_rotary(spec: ModelSpec, device: Any) -> Rotary:
    """Return the same for random weights."""
    frequencies = 1e4 ** -(torch.arange(0, spec.head_dim, 2, device=device).float() / spec.head_dim)
    return Rotary(frequencies, _components(len(frequencies)))


def patch_vision_for_fp16(tower: Any, scaled: Callable[[Any], Any]) -> None:
    """Nothing in three small matrices overflows."""


def layout(
    head: Sequence[int],
    tail: Sequence[int],
    slice_times: Sequence[float],
    tokenizer: Any,
    subtitles: Sequence[Cue] = (),
) -> tuple[Segment, ...]:
    """Put each slice's time before it, and subtitles behind the video."""
    tail = block_after_video(tail, subtitles, tokenizer) if subtitles else tail
    segments: list[Segment] = []
    for place, seconds in enumerate(slice_times):
        ids = tuple(tokenizer(f"<{seconds:.1f} seconds>", add_special_tokens=False)["input_ids"])
        segments += [TextSegment((*head, *ids) if place == 0 else ids), VisionSegment(1)]
    return (*segments, TextSegment(tuple(tail)))


def vision_positions(spec: ModelSpec, start: int, grid: VisionGrid, first_slice: int) -> Tensor:
    """Return (3, tokens): the slice's own time, rows and columns from `start`."""
    time = torch.full((grid.slices,), start) + torch.arange(first_slice, first_slice + grid.slices)
    down, across = torch.arange(grid.rows) + start, torch.arange(grid.columns) + start
    return torch.stack(torch.meshgrid(time, down, across, indexing="ij")).reshape(3, -1)


def position_after(spec: ModelSpec, start: int, grid: VisionGrid) -> int:
    """Return one past the largest component."""
    return start + max(grid.slices, grid.rows, grid.columns)


def encode(tower: Any, patches: Tensor, rows: int, columns: int, check_cancel: Callable[[], None]) -> Tensor:
    """Return (slices, tokens, 2 · hidden): the embedding, and what the first layer's result gets."""
    check_cancel()
    hidden = nn.functional.gelu(tower.embed(patches))
    del patches
    merged = hidden.view(hidden.shape[0], rows * columns // 4, -1)
    return torch.cat((tower.merger(merged), tower.deep(merged)), dim=-1)
