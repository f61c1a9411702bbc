"""Plain transformers as its users run it: all frames at once, the whole prompt at once, SDPA, `generate`.

The baseline of `vidqa sweep`, `vidqa profile` and the benchmarks. It gets the frames that vidqa chose, resized one by
one, so its video stage needs less memory than transformers' own.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vidqa.devices.memory_tracker import phase_mark
from vidqa.engine.prompt import PromptTokens, build_prompt, means_of_slices
from vidqa.models.family import Segment, TextSegment
from vidqa.models.loader import Loaded, load_model
from vidqa.types import Placement, Request
from vidqa.video.frame_sampling import sampled_times
from vidqa.video.reader import VideoReader

_VIDEO = 2  # transformers' mm_token_type_ids: text 0, image 1, video 2


@dataclass(frozen=True, slots=True)
class BaselineAnswer:
    """The answer of one `generate`; seconds run from the opened video to the first token."""

    first_token_seconds: float
    text: str
    tokens: tuple[int, ...]
    visual_tokens: int
    prompt_tokens: int


class TokenTimes:
    """A stopping criterion that never stops. `times` has `time.perf_counter()` when each token was on the host."""

    def __init__(self, phases: ExitStack) -> None:
        self.times: list[float] = []
        self._phases = phases
        phases.enter_context(phase_mark("prefill"))

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        input_ids[0, -1].item()  # waits for the device
        self.times.append(time.perf_counter())
        if len(self.times) == 1:
            self._phases.close()
            self._phases.enter_context(phase_mark("decode"))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class HFBaseline:
    """A checkpoint loaded in one precision, without quantization, on one device."""

    def __init__(self, folder: Path, device: torch.device, dtype: str) -> None:
        self._loaded: Loaded = load_model(folder, device, dtype, dtype, Placement())
        self._model: Any = self._loaded.model.model
        self._model.set_attn_implementation({"text_config": "sdpa", "vision_config": "sdpa"})

    @property
    def weights_bytes(self) -> int:
        """Bytes of all parameters."""
        return self._loaded.model.weights_bytes

    def ask(
        self, request: Request, reader: VideoReader, indices: tuple[int, ...], size: tuple[int, int]
    ) -> BaselineAnswer:
        """Answer greedily from these frames at `size` (height, width)."""
        start = time.perf_counter()
        times = means_of_slices(sampled_times(reader.info, indices), self._loaded.model.spec)
        with phase_mark("video"):
            video = process_video(self._loaded, stack_frames(self._loaded, reader, indices, size), times)
        prompt = build_prompt(self._loaded, request.question, request.system)
        inputs = model_inputs(self._loaded, prompt, video, times)
        with _calls_marked(self._loaded.model.visual, "vision"):
            tokens, seconds = generate(self._model, inputs, request.max_tokens)
        text = self._loaded.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        if tokens and tokens[-1] in self._loaded.stop_ids:
            tokens.pop()
        prompt_tokens = inputs["input_ids"].shape[1]
        visual_tokens = int((inputs["mm_token_type_ids"] == _VIDEO).sum())
        return BaselineAnswer(seconds[0] - start, text, tuple(tokens), visual_tokens, prompt_tokens)


def stack_frames(loaded: Loaded, reader: VideoReader, indices: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """Return all frames, resized, as (n, 3, height, width) uint8."""
    resize = loaded.model.family.resize_frame
    return torch.stack([resize(frame.rgb, *size) for frame in reader.frames(indices)])


def process_video(
    loaded: Loaded, frames: Tensor, slice_times: Sequence[float] = (), **options: Any
) -> dict[str, Tensor]:
    """Run transformers' video processor on (n, 3, height, width) frames that have their final size.

    `slice_times` are the mean times of the temporal slices; without them slices are a second apart.
    """
    model, gaps = loaded.model, max(len(slice_times) - 1, 1)
    between = (slice_times[-1] - slice_times[0]) / gaps if slice_times else 1.0
    return model.family.hf_video_inputs(frames, model.spec, between, **options)


def model_inputs(
    loaded: Loaded, prompt: PromptTokens, video: Mapping[str, Tensor], slice_times: Sequence[float] = ()
) -> dict[str, Tensor]:
    """Return transformers' inputs for a prompt and a processed video, on the model's device."""
    model, grid = loaded.model, video["video_grid_thw"][0].tolist()
    each = grid[1] * grid[2] // model.spec.vision.merge**2
    times = slice_times or range(grid[0])
    layout = model.family.layout(prompt.head, prompt.tail, times, loaded.tokenizer)
    ids = torch.tensor([[token for segment in layout for token in _ids(segment, model.spec.video_token, each)]])
    kinds = (ids == model.spec.video_token).int() * _VIDEO
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    return {name: tensor.to(model.device) for name, tensor in (text | dict(video)).items()}


def _ids(segment: Segment, video_token: int, slice_tokens: int) -> Sequence[int]:
    return segment.ids if isinstance(segment, TextSegment) else [video_token] * (segment.slices * slice_tokens)


def generate(model: Any, inputs: dict[str, Tensor], max_tokens: int, **options: Any) -> tuple[list[int], list[float]]:
    """Run greedy `generate`; return the new tokens and `time.perf_counter()` of each. `options` go to `generate`."""
    from transformers import StoppingCriteriaList

    with ExitStack() as phases, torch.no_grad():
        clock = TokenTimes(phases)
        output = model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
            stopping_criteria=StoppingCriteriaList([clock]), **options,
        )  # fmt: skip
    return output[0, inputs["input_ids"].shape[1] :].tolist(), clock.times


@contextmanager
def _calls_marked(module: nn.Module, phase: str) -> Iterator[None]:
    """Mark the module's calls as a phase in profiler traces."""
    marks = ExitStack()

    def begin(*_: Any) -> None:
        marks.enter_context(phase_mark(phase))

    def end(*_: Any) -> None:
        marks.close()

    with module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True):
        yield
