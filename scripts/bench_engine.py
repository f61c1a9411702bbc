"""First token and decode speed of vidqa's engine against plain transformers, on the same frames and weights.

One warm process, alternating repeats, medians. The model is random, with Qwen2-VL-2B's head
layout at a reduced width, or a checkpoint folder. --json prints an object.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[1])]
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLVideoProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from vidqa.engine.decode import decode
from vidqa.engine.kv_cache import make_cache
from vidqa.engine.prefill import Prefill
from vidqa.engine.prompt import position_after_video, text_positions, video_positions
from vidqa.engine.sampler import Sampler
from vidqa.engine.vision import GroupEncoder, Picture
from vidqa.engine.writers import make_writer
from vidqa.memory.planner import CHUNKS
from vidqa.models.attention import make_kernel
from vidqa.models.qwen2_vl import Qwen2VL
from vidqa.models.specs import parse_spec

HEAD, TAIL, VIDEO = (5, 6, 7, 8, 1002), (1003, 9, 10, 11, 12, 13, 14, 15), 1001


def configuration(layers: int, width: int) -> Qwen2VLConfig:
    """Qwen2-VL-2B's head layout (12 query, 2 key heads) at a reduced width."""
    return Qwen2VLConfig(
        text_config={
            "vocab_size": 16384, "hidden_size": width, "intermediate_size": width * 4, "num_hidden_layers": layers,
            "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 1e6,
                "mrope_section": [width // 96, width // 64, width // 24 - width // 96 - width // 64],
            },
            "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
        },
        vision_config={"depth": layers, "embed_dim": 320, "num_heads": 4, "hidden_size": width, "mlp_ratio": 4},
        image_token_id=1000, video_token_id=VIDEO, vision_start_token_id=1002, vision_end_token_id=1003,
    )  # fmt: skip


def build(layers: int, width: int) -> tuple[Any, Any]:
    """The same random weights twice: for transformers and for vidqa."""
    torch.manual_seed(0)
    oracle: Any = Qwen2VLForConditionalGeneration(configuration(layers, width)).eval()
    ours: Any = Qwen2VLForConditionalGeneration(configuration(layers, width)).eval()
    ours.load_state_dict(oracle.state_dict())
    oracle.set_attn_implementation("sdpa")
    return oracle, ours


def adapter(model: Any) -> Qwen2VL:
    spec = parse_spec(model.config.to_dict(), "the benchmark's model")
    return Qwen2VL(model, spec, torch.device("cpu"), torch.float32, 0)


class TokenClock(StoppingCriteria):
    """Notes when each of transformers' tokens was made; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class Run:
    """When a run began and each token was made, in seconds, and the tokens."""

    began: float
    times: list[float]
    tokens: list[int]

    @property
    def first_token_s(self) -> float:
        return self.times[0] - self.began

    @property
    def tokens_per_s(self) -> float:
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def run_transformers(model: Any, processor: Any, frames: torch.Tensor, tokens: int) -> Run:
    """Pixels to tokens as transformers' users do it."""
    began, clock = time.perf_counter(), TokenClock()
    made = processor(videos=[frames], return_tensors="pt", do_sample_frames=False)
    visual = int(made["video_grid_thw"].prod()) // 4
    ids = torch.tensor([[*HEAD, *[VIDEO] * visual, *TAIL]])
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == VIDEO).int() * 2, **made,
        max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([clock]),
    )  # fmt: skip
    return Run(began, clock.times, output[0, ids.shape[1] :].tolist())


def drain(stage: Iterator[Any]) -> None:
    """Run a stage for what it does."""
    for _ in stage:
        pass


def run_vidqa(model: Qwen2VL, frames: torch.Tensor, tokens: int) -> Run:
    """The same through vidqa's stages with their default chunks."""
    began = time.perf_counter()
    vision_chunk, prefill_chunk = CHUNKS[0]
    rows, columns, slices = frames.shape[2] // 28, frames.shape[3] // 28, len(frames) // 2
    total = len(HEAD) + slices * rows * columns + len(TAIL)
    cache, kernel = (
        make_cache(model.spec, total + tokens, torch.float32, model.device),
        make_kernel("flash", model.device),
    )
    prefill, encoder, seen = Prefill(model, kernel, prefill_chunk), GroupEncoder(model, vision_chunk), 0
    drain(prefill.push(cache, model.embed(torch.tensor(HEAD)), text_positions(0, len(HEAD))))
    for frame in frames:
        if encoder.push(Picture(frame, 0.0)) and (group := encoder.encode()):
            drain(prefill.push(cache, group.embeddings, video_positions(len(HEAD), group.slices, rows, columns, seen)))
            seen += group.slices
    if rest := encoder.encode():
        drain(prefill.push(cache, rest.embeddings, video_positions(len(HEAD), rest.slices, rows, columns, seen)))
    after = position_after_video(len(HEAD), slices, rows, columns)
    drain(prefill.push(cache, model.embed(torch.tensor(TAIL)), text_positions(after, len(TAIL))))
    drain(prefill.flush(cache))
    logits, start = prefill.logits(cache), after + len(TAIL)
    made, times = [], []
    writer = make_writer(model, cache, kernel, start, Sampler(0, 1, 0))
    for token in decode(writer, logits, frozenset(), tokens):
        made.append(token)
        times.append(time.perf_counter())
    return Run(began, times, made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--size", type=int, nargs=2, default=(280, 280), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    oracle, model = build(arguments.layers, arguments.width)
    ours = adapter(model)
    processor = Qwen2VLVideoProcessor(do_resize=False, cap_pixels_per_frame=True)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 255, (arguments.frames, 3, *arguments.size), dtype=torch.uint8, generator=generator)
    prompt = len(HEAD) + arguments.frames // 2 * arguments.size[0] * arguments.size[1] // 784 + len(TAIL)
    sides: dict[str, Callable[[], Run]] = {
        "transformers": lambda: run_transformers(oracle, processor, frames, arguments.tokens),
        "vidqa": lambda: run_vidqa(ours, frames, arguments.tokens),
    }
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for repeat in range(arguments.repeats + 1):  # the first round warms both up
        for name, side in sides.items():
            run = side()
            if repeat:
                runs[name].append(run)
    report: dict[str, Any] = {
        "prompt_tokens": prompt,
        "frames": arguments.frames,
        "repeats": arguments.repeats,
        "same_tokens": runs["vidqa"][0].tokens == runs["transformers"][0].tokens,
        "first_token_s": {name: median(run.first_token_s for run in made) for name, made in runs.items()},
        "tokens_per_s": {name: median(run.tokens_per_s for run in made) for name, made in runs.items()},
    }
    for measure in ("first_token_s", "tokens_per_s"):
        report[f"{measure}_ratio"] = report[measure]["vidqa"] / report[measure]["transformers"]
    if arguments.json:
        print(json.dumps(report, indent=1))
        return 0
    print(f"{prompt} prompt tokens from {arguments.frames} frames, medians of {arguments.repeats} alternating repeats")
    for name in sides:
        print(
            f"{name:13} first token {report['first_token_s'][name]:7.3f} s   "
            f"decode {report['tokens_per_s'][name]:7.1f} tokens/s"
        )
    print(f"vidqa / transformers: first token {report['first_token_s_ratio']:.2f}x (bar <= 1.0), ", end="")
    print(f"decode {report['tokens_per_s_ratio']:.2f}x (bar >= 1.0), same tokens: {report['same_tokens']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
