"""The interface of model families, and the search for the family of a model type.

A folder of `models/families/` implements `ModelFamily`, for planning and without torch, and `FamilyRuntime`, which runs
the model; both are modules. Nothing outside the folder names a family.
"""

import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vidqa.models.config_validation import Values
from vidqa.models.spec import ModelSpec
from vidqa.types import Flops, PixelBounds, RunConfig
from vidqa.utils.cues import Cue

if TYPE_CHECKING:
    import numpy
    from torch import Tensor, nn

    from vidqa.models.decoder_layers import Rotary

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextSegment:
    """Consecutive token ids of a prompt."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VisionSegment:
    """Consecutive temporal slices of the video, with no text between them."""

    slices: int


Segment = TextSegment | VisionSegment


@dataclass(frozen=True, slots=True)
class VisionGrid:
    """A vision segment in tokens: slices, rows and columns, and the seconds from one slice to the next.

    Where slices are not even, `slice_seconds` has the time of each slice of the prompt, from the first one on.
    """

    slices: int
    rows: int
    columns: int
    seconds_per_slice: float
    slice_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A published score at a size (frames, tokens or parameters), and its source."""

    size: float
    points: float
    source: str


class ModelFamily(Protocol):
    """A family for planning and for checks of checkpoints. Without torch."""

    @property
    def TITLE(self) -> str:
        """The family's name in messages."""

    @property
    def RUNNABLE_TYPES(self) -> tuple[str, ...]:
        """Values of config.json's model_type that the engine runs."""

    @property
    def PLANNED_TYPES(self) -> tuple[str, ...]:
        """Values of model_type that can be planned; the runnable ones are among them."""

    @property
    def RELEASED(self) -> Mapping[str, ModelSpec]:
        """Known checkpoints by repository, which can be planned before they are downloaded."""

    @property
    def SHORT_NAMES(self) -> Mapping[str, str]:
        """Short names of released checkpoints, such as 2b."""

    @property
    def REFERENCE_BOUNDS(self) -> PixelBounds:
        """Frame and pixel bounds of checkpoints without their own."""

    @property
    def MODEL_SCORES(self) -> tuple[ScoreRow, ...]:
        """Published points by number of parameters, ascending."""

    @property
    def FOCUS_DEPTH(self) -> float:
        """The share (0 to 1) of the layers before the one whose attention to slices ranks them best (`--focus`)."""

    @property
    def PRECISION_SCORES(self) -> Mapping[str, tuple[ScoreRow, ...]]:
        """Difference of quantized weights from 16-bit ones in points, by precision and number of parameters."""

    @property
    def TOKENIZER_PATTERNS(self) -> tuple[str, ...]:
        """Regular expressions allowed in tokenizer.json; each must run in time proportional to the text."""

    @property
    def ALLOCATION_CODE(self) -> Mapping[str, tuple[str, ...]]:
        """The family's own code by the kind of tensor that it allocates (`profiling/allocation_classifier.py`)."""

    def check_config(self, config: Values) -> dict[str, Any]:
        """Return the checked values of config.json as transformers' configuration takes them; raise ModelError."""

    def spec_of(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return checked values of config.json as a spec."""

    def read_bounds(self, folder: Path, spec: ModelSpec) -> PixelBounds:
        """Return the frame and pixel bounds of a checkpoint folder; raise ModelError if it contradicts `spec`."""

    def vision_shapes(self, spec: ModelSpec) -> Iterable[tuple[str, Shape]]:
        """Yield name and shape of every tensor of the vision tower, without the tower's prefix."""

    def canonical_name(self, name: str) -> str:
        """Return a stored tensor's name as transformers' current class has it."""

    def vision_bytes(self, spec: ModelSpec, run_config: RunConfig) -> int:
        """Return the peak bytes, without weights, of encoding a group of slices."""

    def vision_flops(self, spec: ModelSpec, run_config: RunConfig) -> Flops:
        """Return the floating-point operations of encoding all slices."""

    def load_runtime(self) -> "FamilyRuntime":
        """Import and return the family's runtime."""


class FamilyRuntime(Protocol):
    """A family for running a model: tensors and modules."""

    @property
    def LANGUAGE_MODEL(self) -> str:
        """Name of the language model within transformers' class: has `layers`, `norm` and `embed_tokens`."""

    @property
    def VISION_TOWER(self) -> str:
        """Name of the vision tower within transformers' class."""

    def hf_classes(self) -> tuple[type, type]:
        """Import and return transformers' configuration and model class."""

    def hf_video_inputs(
        self, frames: "Tensor", spec: ModelSpec, seconds_per_slice: float, **options: Any
    ) -> "dict[str, Tensor]":
        """Run transformers' own video processor on frames (n, 3, height, width) that have their final size.

        Return what its model takes of the video, as a processor with the true times would.
        """

    def hf_config(self, spec: ModelSpec) -> Any:
        """Return transformers' configuration of a spec, for models of random weights."""

    def decoder_layer(self, spec: ModelSpec) -> "nn.Module":
        """Make one decoder layer of a spec, its weights uninitialised."""

    def rotary(self, language_model: Any) -> "Rotary":
        """Return the rotary embedding of a loaded language model."""

    def random_rotary(self, spec: ModelSpec, device: Any) -> "Rotary":
        """Return the rotary embedding for a layer of `decoder_layer`."""

    def patch_vision_for_fp16(self, tower: Any, scaled: Callable[[Any], Any]) -> None:
        """Keep the vision tower finite in float16; `scaled` wraps a linear layer (`models/fp16.py`)."""

    def layout(
        self,
        head: Sequence[int],
        tail: Sequence[int],
        slice_times: Sequence[float],
        tokenizer: Any,
        subtitles: Sequence[Cue] = (),
    ) -> tuple[Segment, ...]:
        """Return a prompt's segments, the first and the last of them text.

        `head` and `tail` are the ids before and after the video token of the rendered chat template; `slice_times` the
        mean time of each temporal slice in seconds. `subtitles`, by start and free of special tokens, stand between the
        slices where the family takes text there, else in a block behind the video (`models/subtitle_prompt.py`). Their
        ids do not depend on the question.
        """

    def vision_positions(self, spec: ModelSpec, start: int, grid: VisionGrid, first_slice: int) -> "Tensor":
        """Return M-RoPE positions (3, slices·rows·columns) of a part of a vision segment that begins at `start`.

        `grid` is the part's grid; `first_slice` is the index of its first slice in the segment.
        """

    def position_after(self, spec: ModelSpec, start: int, grid: VisionGrid) -> int:
        """Return the position of the text after a whole vision segment."""

    def resize_frame(self, rgb: "numpy.ndarray", height: int, width: int) -> "Tensor":
        """Resize one picture (h, w, 3) uint8 to (3, height, width) uint8, on the host."""

    def to_patches(self, frames: "Tensor", spec: ModelSpec) -> "Tensor":
        """Cut (n, 3, height, width) uint8 frames into patches (slices, patches, values) in float32."""

    def encode(
        self, tower: "nn.Module", patches: "Tensor", rows: int, columns: int, check_cancel: Callable[[], None]
    ) -> "Tensor":
        """Encode patches (slices, patches, values): (slices, tokens, embedding_width). rows and columns count patches.

        `check_cancel` is called before each block; what it raises ends the run.
        """


@cache
def families() -> tuple[ModelFamily, ...]:
    """Return all families: the folders of `models/families/`, by title."""
    package = import_module("vidqa.models.families")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    modules: list[Any] = [import_module(f"{package.__name__}.{name}") for name in names]
    return tuple(sorted(modules, key=lambda module: module.TITLE))


def planned_types() -> tuple[str, ...]:
    """Return all values of model_type that can be planned."""
    return tuple(name for family in families() for name in family.PLANNED_TYPES)


def runnable_types() -> tuple[str, ...]:
    """Return all values of model_type that the engine runs."""
    return tuple(name for family in families() for name in family.RUNNABLE_TYPES)


def find_family(model_type: object) -> ModelFamily | None:
    """Return the family of a model_type, None if there is none."""
    return next((family for family in families() if model_type in family.PLANNED_TYPES), None)


def family_of(spec: ModelSpec) -> ModelFamily:
    """Return a spec's family."""
    family = find_family(spec.model_type)
    assert family is not None, spec.model_type
    return family
