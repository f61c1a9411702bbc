"""The demo model in every precision on the same pictures and questions: accuracy and KL divergence against fp32.

Loads one copy of the model per setup, side by side, and runs the engine's own stages on pictures that
were decoded once. Knows models and tensors; knows no files of video.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from demo_world.questions import Turn
from demo_world.times import is_right_or_near
from vidqa.engine.decode import decode
from vidqa.engine.decode_runners import make_decode_runner
from vidqa.engine.kv_cache import make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import build_prompt, means_of_slices, text_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.vision import GroupEncoder, PreparedFrame
from vidqa.models.attention.selector import make_kernel
from vidqa.models.family import TextSegment, VisionGrid
from vidqa.models.hub import demo_folder
from vidqa.models.loader import Loaded, load_model
from vidqa.types import Placement

_CPU = torch.device("cpu")
_MOST_TOKENS = 64
REFERENCE = "fp32"
_PLAIN = Placement()


@dataclass(frozen=True, slots=True)
class Setup:
    """A setup of the model: precision of the weights, of the computation and of the KV cache."""

    weights: str
    dtype: str
    kv: str = "native"
    placement: Placement = _PLAIN


# Quantized weights compute in bf16 here, as they do on a GPU that has it; `nf4/fp16` is for one that has not.
SETUPS = {
    REFERENCE: Setup("fp32", "fp32"),
    "bf16": Setup("bf16", "bf16"),
    "fp16": Setup("fp16", "fp16"),
    "int8": Setup("int8", "bf16"),
    "int4": Setup("int4", "bf16"),
    "nf4": Setup("nf4", "bf16"),
    "nf4-dq": Setup("nf4-dq", "bf16"),
    "nf4/fp16": Setup("nf4", "fp16"),
    "nf4+vision": Setup("nf4", "bf16", placement=Placement(vision_quantized=True)),
    "nf4+lm_head": Setup("nf4", "bf16", placement=Placement(lm_head_quantized=True)),
    "fp32+kv-int8": Setup("fp32", "fp32", "int8"),
}


@dataclass(slots=True)
class Measured:
    """One setup's results, question by question, in the order of the reference's."""

    weights_bytes: int
    right: list[bool] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)

    def row(self, reference: "Measured") -> dict[str, float]:
        """Shares and counts against the reference; KL divergence in nats, `points` in percentage points."""
        pairs = list(zip(reference.right, self.right, strict=True))
        lost, won = pairs.count((True, False)), pairs.count((False, True))
        count, ordered = len(pairs), sorted(self.divergence)
        change = (won - lost) / count
        spread = ((won + lost) / count - change**2) / count  # variance of a mean of -1, 0 and 1
        return {
            "right": sum(self.right) / count, "count": count, "lost": lost, "won": won,
            "points": 100 * change, "points_error": 100 * spread**0.5,
            "kl_mean": fmean(ordered), "kl_p99": ordered[int(0.99 * (count - 1))],
            "weights_bytes": self.weights_bytes,
        }  # fmt: skip


def with_separate_lm_head(source: Path | None = None) -> Any:
    """A demo model in float32 with an untied lm_head: the same numbers, but a matrix that can be quantized.

    `source` is its folder; default: the shipped one.
    """
    model: Any = AutoModelForImageTextToText.from_pretrained(source or demo_folder(), dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    return model


def write_checkpoint(model: Any, folder: Path, source: Path | None = None, **how: Any) -> Path:
    """Save a changed demo model with the tokenizer and processor in `source`; default: the shipped one's."""
    model.save_pretrained(folder, **how)
    source = source or demo_folder()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "video_preprocessor_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


class Copies:
    """The demo model once per setup, and what each of them has answered so far."""

    def __init__(self, setups: Sequence[str], folder: Path) -> None:
        self._models = {name: self._load(SETUPS[name], folder) for name in dict.fromkeys((REFERENCE, *setups))}
        self.measured = {name: Measured(loaded.model.weights_bytes) for name, loaded in self._models.items()}

    @staticmethod
    def _load(setup: Setup, folder: Path) -> Loaded:
        where = demo_folder()
        if setup.placement.lm_head_quantized:
            where = write_checkpoint(with_separate_lm_head(), folder)
        return load_model(where, _CPU, setup.weights, setup.dtype, setup.placement)

    @torch.no_grad()
    def ask(self, rgb: np.ndarray, seconds: Sequence[float], turns: Sequence[Turn]) -> None:
        """Ask every copy the same questions about the same frames (n, height, width, 3) uint8, with their times."""
        pictures = [
            PreparedFrame(picture, time)
            for picture, time in zip(torch.from_numpy(rgb).permute(0, 3, 1, 2), seconds, strict=True)
        ]
        expected: list[Tensor] = []
        for name, loaded in self._models.items():
            result = self.measured[name]
            for number, (turn, logits, text) in enumerate(answers(loaded, SETUPS[name], pictures, turns)):
                if name == REFERENCE:
                    expected.append(logits)
                distance = (seconds[-1] - seconds[0]) / max(len(seconds) - 1, 1)
                result.right.append(is_right_or_near(text, turn, distance))
                result.divergence.append(divergence(expected[number], logits))

    def table(self) -> dict[str, dict[str, float]]:
        """A row per setup."""
        return {name: measured.row(self.measured[REFERENCE]) for name, measured in self.measured.items()}


def divergence(reference: Tensor, other: Tensor) -> float:
    """KL(reference || other) in nats of the distributions that two rows of logits (vocabulary,) stand for."""
    expected, got = (torch.log_softmax(logits.double(), dim=-1) for logits in (reference, other))
    return max(float((expected.exp() * (expected - got)).sum()), 0.0)


def answers(
    loaded: Loaded, setup: Setup, pictures: Sequence[PreparedFrame], turns: Sequence[Turn]
) -> Iterator[tuple[Turn, Tensor, str]]:
    """First-token logits and the greedy answer to each question; the video is encoded once."""
    model, spec = loaded.model, loaded.model.spec
    encoder = GroupEncoder(model, len(pictures))
    for picture in pictures:
        encoder.push(picture)
    group = encoder.encode()
    assert group is not None
    for turn in turns:
        parts, position = prompt_parts(loaded, turn.question, group.embeddings, pictures)
        total = sum(len(embeddings) for embeddings, _ in parts)
        cache = make_cache(spec, total + _MOST_TOKENS, model.dtype, model.device, quantized=setup.kv == "int8")
        kernel = make_kernel("flash", model.device)
        prefill = Prefill(model, kernel, total)
        for embeddings, positions in parts:
            _drain(prefill.push(cache, embeddings, positions))
        _drain(prefill.flush(cache))
        logits = prefill.logits(cache)
        runner = make_decode_runner(model, cache, kernel, position, Sampler(0.0, 1.0, None))
        tokens = list(decode(runner, logits, loaded.stop_ids, _MOST_TOKENS))
        yield turn, logits[0], loaded.tokenizer.decode(tokens, skip_special_tokens=True)


def prompt_parts(
    loaded: Loaded, question: str, embeddings: Tensor, pictures: Sequence[PreparedFrame]
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """Rows (n, embedding_width) and positions (3, n) of a prompt's segments in their order, and the next position."""
    model, spec, prompt = loaded.model, loaded.model.spec, build_prompt(loaded, question, None)
    _, height, width = pictures[0].pixels.shape
    rows, columns = height // spec.pixel_factor, width // spec.pixel_factor
    times = means_of_slices([picture.timestamp_seconds for picture in pictures], spec)
    parts, position = list[tuple[Tensor, Tensor]](), 0
    for segment in model.family.layout(prompt.head, prompt.tail, times, loaded.tokenizer):
        if isinstance(segment, TextSegment):
            count = len(segment.ids)
            parts.append((model.embed_prompt(torch.tensor(segment.ids)), text_positions(position, count)))
            position += count
        else:
            grid, count = VisionGrid(segment.slices, rows, columns, 1.0), segment.slices * rows * columns
            parts.append((embeddings[:count], model.family.vision_positions(spec, position, grid, 0)))
            embeddings, position = embeddings[count:], model.family.position_after(spec, position, grid)
    return parts, position


def _drain(stage: Iterator[int]) -> None:
    """Run a stage and drop its events."""
    for _ in stage:
        pass
