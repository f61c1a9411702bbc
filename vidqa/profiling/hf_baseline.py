"""Plain transformers beside the engine: every frame at once, the whole prompt at once, `generate`.

Its own modules, SDPA and its growing cache, as its users run it. The frames are the very ones
that vidqa takes, resized one by one, so its video stage is already leaner than theirs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidqa.engine.prompt import PromptTokens, build_prompt
from vidqa.engine.timers import Stopwatch
from vidqa.models.loader import Loaded, load_model
from vidqa.types import Placement, Request
from vidqa.video.reader import VideoReader


@dataclass(frozen=True, slots=True)
class Spoken:
    """What one `generate` gave: seconds from the opened video to the first token, the answer, its ids."""

    first_token_seconds: float
    text: str
    tokens: tuple[int, ...]
    visual_tokens: int
    prompt_tokens: int


class _FirstToken:
    """A stopping criterion that stops nothing: notes when the first token was known on the host."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch, self.seconds = watch, 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        input_ids[0, -1].item()  # waits for the device
        self.seconds = self.seconds or self._watch.seconds()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class PlainTransformers:
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
        self,
        request: Request,
        reader: VideoReader,
        indices: tuple[int, ...],
        size: tuple[int, int],
    ) -> Spoken:
        """Answer greedily from these frames at `size` (height, width)."""
        watch = Stopwatch()
        model = self._loaded.model
        made = model.family.hf_video_inputs(self._frames(reader, indices, size), model.spec)
        prompt = build_prompt(self._loaded, request.question, request.system)
        inputs = self._inputs(prompt, made)
        length, clock = inputs["input_ids"].shape[1], _FirstToken(watch)
        with torch.no_grad():
            output = self._generate(inputs, request.max_tokens, clock)[0, length:].tolist()
        text = self._loaded.tokenizer.decode(output, skip_special_tokens=True).strip()
        if output and output[-1] in self._loaded.stop_ids:
            output.pop()
        visual = length - len(prompt.head) - len(prompt.tail)
        return Spoken(clock.seconds, text, tuple(output), visual, length)

    def _frames(self, reader: VideoReader, indices: tuple[int, ...], size: tuple[int, int]) -> Tensor:
        """All frames at once: (n, 3, height, width) uint8."""
        resize = self._loaded.model.family.resize_frame
        return torch.stack([resize(frame.rgb, *size) for frame in reader.frames(indices)])

    def _inputs(self, prompt: PromptTokens, made: dict[str, Tensor]) -> dict[str, Tensor]:
        spec, device = self._loaded.model.spec, self._loaded.model.device
        visual = int(made["video_grid_thw"].prod()) // spec.vision.merge**2
        ids = torch.tensor([[*prompt.head, *[spec.video_token] * visual, *prompt.tail]])
        kinds = {"attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == spec.video_token).int() * 2}
        return {name: tensor.to(device) for name, tensor in ({"input_ids": ids} | kinds | made).items()}

    def _generate(self, inputs: dict[str, Tensor], max_tokens: int, clock: _FirstToken) -> Tensor:
        from transformers import StoppingCriteriaList

        made: Tensor = self._model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
            stopping_criteria=StoppingCriteriaList([clock]),
        )  # fmt: skip
        return made
